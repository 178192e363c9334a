"""Small models, seeded, whose frames are as large as `frame_multiple` demands.

The helpers are fixtures that return functions, so that tests run under every import mode of pytest.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hnerv.config import Config
from hnerv.model import DualHeadHNeRV, Scene, build_model, frame_multiple

SMALL = {
    "dec_strides": (2, 2),
    "enc_strides": (2, 2),
    "dec_width": 10,
    "lower_width": 6,
    "embed_dim": 5,
    "grid_levels": 2,
    "enc_width": 6,
    "pe": "1.25_6",
    "pe_stem": 8,
    "clip_hidden": 8,
    "ks": "0_3_3",
}


def _scene(config: Config, times: tuple[int, int] = (1, 1), frames: int = 5, **changes) -> Scene:
    """A scene of `times` the smallest frame; even frames train, odd ones are unseen."""
    multiple = frame_multiple(config.video, config.model)
    rows, cols = map(int, config.video.grid.split("x"))
    settings = {
        "frames": frames,
        "height": times[0] * multiple[0],
        "width": times[1] * multiple[1],
        "rows": rows,
        "cols": cols,
        "fps": 24.0,
        "train": tuple(range(0, frames, 2)),
        "val": tuple(range(1, frames, 2)),
        "clip_dim": 7,
    }
    return Scene(**settings | changes)


@pytest.fixture
def small() -> Callable[..., Config]:
    """small(**fields) -> a configuration of a small model."""
    return lambda **fields: Config().replaced({**SMALL, **fields})


@pytest.fixture
def scene_of() -> Callable[..., Scene]:
    """scene_of(config, times, frames, **fields of Scene) -> Scene."""
    return _scene


@pytest.fixture
def make(small) -> Callable[..., DualHeadHNeRV]:
    """make(times, frames, scene fields as a dictionary, **config fields) -> a seeded model, its codes filled."""

    def build(times: tuple[int, int] = (1, 1), frames: int = 5, scene: dict | None = None, **fields) -> DualHeadHNeRV:
        config = small(**fields)
        torch.manual_seed(1)
        model = build_model(config.model, _scene(config, times, frames, **scene or {}))
        with torch.no_grad():
            for buffer in (b for name, b in model.named_buffers() if name.endswith("codes")):
                buffer.normal_()
        return model.eval()

    return build
