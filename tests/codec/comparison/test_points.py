"""The measure that ours and the rivals share, against numpy and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from hnerv.codec.comparison import quality
from hnerv.metrics import ms_ssim


def test_quality_is_the_mean_over_frames_whatever_the_batches(clip_frames):
    source = clip_frames.float() / 255
    noise = (
        torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
        * torch.linspace(0.01, 0.1, 8)[:, None, None, None]
    )
    decoded = source + noise
    whole = quality([(decoded, source)])
    parts = quality(zip(decoded.split(3), source.split(3), strict=True))
    assert whole == pytest.approx(parts, rel=1e-6)
    shown = (decoded.clamp(0, 1) * 255).round() / 255
    expected = [float(peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in zip(shown, source, strict=True)]
    assert whole.psnr_frame == pytest.approx(np.mean(expected), abs=1e-3)
    assert whole.ms_ssim == pytest.approx(float(ms_ssim(shown, source).mean()), rel=1e-5)


def test_what_8_bits_cannot_show_does_not_count(clip_frames):
    source = clip_frames.float() / 255
    assert quality([(source + 0.4 / 255, source)]).psnr_frame == 100
