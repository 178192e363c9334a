"""One coded version of a video, and how close it comes: the same measure for every codec.

Legend: N frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.metrics import frame_mse, ms_ssim, psnr
from hnerv.model.predict import round8


class Quality(NamedTuple):
    """Means over the frames of a video of what each 8-bit frame has: PSNR from its MSE in dB, MS-SSIM in [0, 1]."""

    psnr_frame: float
    ms_ssim: float


class RatePoint(NamedTuple):
    """Name of the codec, its setting, bytes of all N frames, quality, seconds (None: not measured)."""

    name: str
    setting: str
    bytes: int
    psnr_frame: float
    ms_ssim: float
    encode_seconds: float | None = None
    decode_seconds: float | None = None


class Clip(NamedTuple):
    """What was coded: frames, rows and columns in pixels, frames per second."""

    frames: int
    height: int
    width: int
    fps: float


@torch.no_grad()
def quality(pairs: Iterable[tuple[Tensor, Tensor]]) -> Quality:
    """(decoded, source) batches (B, 3, H, W) in [0, 1] that make up a video -> Quality, rounded to 8 bits.

    Raises UserError when H or W is under 11 pixels.
    """
    errors, likenesses = [], []
    for decoded, source in pairs:
        rounded = round8(decoded)
        errors.append(psnr(frame_mse(rounded, source)).double().cpu())
        likenesses.append(ms_ssim(rounded, source).double().cpu())
    return Quality(float(torch.cat(errors).mean()), float(torch.cat(likenesses).mean()))
