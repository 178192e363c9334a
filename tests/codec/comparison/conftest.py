"""A clip small enough to be coded in a blink."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hnerv.codec.comparison.bd_rate import Clip, Quality, RatePoint
from hnerv.codec.comparison.table import Comparison

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_frames() -> Tensor:
    """(8, 3, 64, 96) uint8: waves that move, and a texture that does not."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    texture = torch.rand(64, 96, generator=torch.Generator().manual_seed(0)) * 30
    waves = [
        torch.stack([((x + 3 * i) / 9).sin(), ((y - 2 * i) / 7).cos(), ((x + y + 2 * i) / 13).sin()]) for i in range(8)
    ]
    return (torch.stack(waves) * 90 + 110 + texture).round().clamp(0, 255).byte()


@pytest.fixture
def curve():
    """curve(name, bytes, psnrs) -> points."""
    return lambda name, sizes, psnrs: [
        RatePoint(name, f"crf {i}", size, psnr, 0.9, 1.5, 0.25)
        for i, (size, psnr) in enumerate(zip(sizes, psnrs, strict=True))
    ]


@pytest.fixture
def compared(curve):
    """compared(ours, **settings) -> a Comparison with two codecs, 25 to 40 dB."""
    codecs = {
        "x264 medium": curve("x264 medium", [1000, 2000, 4000, 8000], [25.0, 30.0, 35.0, 40.0]),
        "x265 medium": curve("x265 medium", [500, 1000, 2000, 4000], [25.0, 30.0, 35.0, 40.0]),
    }
    return lambda ours, **settings: Comparison(
        **{
            "clip": Clip(10, 20, 40, 24.0),
            "ours": ours,
            "codecs": codecs,
            "conversion": Quality(42.0, 0.99),
            "no_planes": "the source is not YUV video",
            **settings,
        }
    )
