"""Quality against numpy and torchmetrics; BD-rate against cases with known results."""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from hnerv.codec.comparison.bd_rate import DecodedBatch, bd_rate, quality
from hnerv.metrics import ms_ssim

SIZES, PSNRS = [1000, 2100, 4300, 9000, 20000], [28.0, 31.1, 34.0, 36.6, 38.9]


def test_quality_is_the_mean_over_frames_whatever_the_batches(clip_frames):
    source = clip_frames.float() / 255
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    decoded = source + noise * torch.linspace(0.01, 0.1, 8)[:, None, None, None]
    found = quality([DecodedBatch(decoded, source)])
    parts = quality(map(DecodedBatch, decoded.split(3), source.split(3)))
    assert found[:3] == pytest.approx(parts[:3], rel=1e-6) and found[3:] == parts[3:] == (None, None)
    rounded = (decoded.clamp(0, 1) * 255).round() / 255
    expected = [float(peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in zip(rounded, source, strict=True)]
    assert found.psnr_frame == pytest.approx(np.mean(expected), abs=1e-3)
    assert found.ms_ssim == pytest.approx(float(ms_ssim(rounded, source).mean()), rel=1e-5)
    assert quality([DecodedBatch(source + 0.4 / 255, source)]).psnr_frame == 100, "8 bits cannot show this error"


@pytest.mark.parametrize("factor", [0.8, 1.0, 3.0])
def test_a_curve_with_a_factor_of_the_bytes_has_that_rate(curve, factor):
    pytest.importorskip("bjontegaard")
    found = bd_rate(curve("a", SIZES, PSNRS), curve("b", [factor * size for size in SIZES], PSNRS))
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert (found.low, found.high, found.why) == (28.0, 38.9, "")


def test_straight_lines_that_overlap_in_part(curve):
    """10 dB are a factor of 10 in both; at every PSNR the second takes half: -50 % whatever the overlap."""
    pytest.importorskip("bjontegaard")
    first = curve("a", [1000 * 10**k for k in range(4)], [20.0, 30.0, 40.0, 50.0])
    second = curve("b", [500 * 10 ** (k + 0.5) for k in range(5)], [25.0, 35.0, 45.0, 55.0, 65.0])
    found = bd_rate(first, second)
    assert (found.low, found.high) == (25.0, 50.0)
    assert found.percent == pytest.approx(-50, abs=1e-6)
    assert {round(bd_rate(second, [*order]).percent, 6) for order in permutations(first)} == {100}


@pytest.mark.parametrize(
    ("sizes", "psnrs", "why"),
    [
        ([1000, 2000, 3000], [28.0, 30.0, 32.0], "at least 4 points, one has 3"),
        ([], [], "at least 4 points, one has 0"),
        ([1, 2, 3, 4], [10.0, 11.0, 12.0, 13.0], "PSNR ranges do not overlap"),
        ([1, 2, 3, 4], [50.0, 51.0, 52.0, 53.0], "PSNR ranges do not overlap"),
        ([1, 2, 3, 4], [30.0, 32.0, 31.0, 34.0], "does not rise"),
        ([1, 2, 2, 4], [30.0, 31.0, 32.0, 34.0], "does not rise"),
        (SIZES, PSNRS, "pip install"),
    ],
)
def test_without_a_number_there_is_a_reason(curve, monkeypatch, sizes, psnrs, why):
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    good, other = curve("a", SIZES, PSNRS), curve("b", sizes, psnrs)
    for found in (bd_rate(good, other), bd_rate(other, good)):
        assert found.percent is None and why in found.why
