"""Rate and distortion: the measure that all codecs share, and the Bjontegaard delta rate between two of them.

Legend: N frames, H W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.data.video.planes import Planes
from hnerv.metrics import frame_mse, ms_ssim, ms_ssim_db, plane_psnr, psnr, psnr_yuv
from hnerv.model.predict import round8
from hnerv.vmaf import VmafMeter

LEAST_POINTS = 4
"""Of each curve of a BD-rate, as in VCEG-M33."""


class Quality(NamedTuple):
    """Means over the 8-bit frames of a video: PSNR of each frame's MSE in dB, MS-SSIM in [0, 1] and in dB.

    `psnr_yuv` is weighted 6:1:1, in dB; `vmaf` in [0, 100]. None: not measured.
    """

    psnr_frame: float
    ms_ssim: float
    ms_ssim_db: float | None = None
    psnr_yuv: float | None = None
    vmaf: float | None = None


class DecodedBatch(NamedTuple):
    """decoded and source (B, 3, H, W) in [0, 1]; planes (decoded, source) of each frame, where they are measured."""

    decoded: Tensor
    source: Tensor
    planes: Sequence[tuple[Planes, Planes]] = ()


class RatePoint(NamedTuple):
    """Name of the codec, its setting, bytes of all N frames, `Quality`, seconds (None: not measured)."""

    name: str
    setting: str
    bytes: int
    psnr_frame: float
    ms_ssim: float
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    ms_ssim_db: float | None = None
    psnr_yuv: float | None = None
    vmaf: float | None = None


class Clip(NamedTuple):
    """The coded video: frames, rows and columns in pixels, frames per second."""

    frames: int
    height: int
    width: int
    fps: float


class BdRate(NamedTuple):
    """`percent` more (above 0) or fewer bytes than the anchor; None where it is not defined, for the reason `why`.

    `low` and `high` are the ends of the PSNR range, in dB, that both curves reach.
    """

    percent: float | None
    low: float
    high: float
    why: str = ""


@torch.no_grad()
def quality(batches: Iterable[DecodedBatch], yuv: bool = False, vmaf: VmafMeter | None = None) -> Quality:
    """A video in batches, in order -> Quality of its frames rounded to 8 bits; with `yuv` in YUV as well.

    Raises UserError when H or W is under 11 pixels.
    """
    psnrs, similarities, planes = [], [], []
    for batch in batches:
        rounded = round8(batch.decoded)
        psnrs.append(psnr(frame_mse(rounded, batch.source)).double().cpu())
        similarities.append(ms_ssim(rounded, batch.source).double().cpu())
        for pair in batch.planes:
            planes.append(plane_psnr(*pair))
            if vmaf is not None:
                vmaf.add(vmaf.count, *(one.to_bytes() for one in pair))
    similarity = torch.cat(similarities)
    return Quality(
        psnr_frame=float(torch.cat(psnrs).mean()),
        ms_ssim=float(similarity.mean()),
        ms_ssim_db=float(ms_ssim_db(similarity).mean()),
        psnr_yuv=float(psnr_yuv(torch.stack(planes)).mean()) if yuv else None,
        vmaf=statistics.fmean(vmaf.scores()) if vmaf else None,
    )


def bd_rate(anchor: Sequence[RatePoint], test: Sequence[RatePoint]) -> BdRate:
    """Points of two codecs, in any order -> bytes of `test` relative to `anchor` at equal PSNR.

    The mean difference of log rate over the PSNR that both reach (Bjontegaard, VCEG-M33, 2001), interpolated by
    piecewise cubic Hermite curves as in JVET-T2010, by the library `bjontegaard`. No number for fewer than 4 points of
    either, for curves that share no PSNR or do not rise, and without the library.
    """
    low = max(min((p.psnr_frame for p in points), default=0.0) for points in (anchor, test))
    high = min(max((p.psnr_frame for p in points), default=0.0) for points in (anchor, test))
    if why := _obstacle(anchor, test, low, high):
        return BdRate(None, low, high, why)
    try:
        import bjontegaard
    except ImportError:
        return BdRate(None, low, high, "the package bjontegaard is not installed: pip install -e '.[compare]'")
    # 100 (exp(m) - 1), with m the mean of log(bytes of test / bytes of anchor) over the PSNR from low to high
    percent = bjontegaard.bd_rate(
        *_curve(anchor), *_curve(test), method="pchip", require_matching_points=False, min_overlap=0
    )
    return BdRate(float(percent), low, high)


def _obstacle(anchor: Sequence[RatePoint], test: Sequence[RatePoint], low: float, high: float) -> str:
    fewest = min(len(anchor), len(test))
    if fewest < LEAST_POINTS:
        return f"each codec needs at least {LEAST_POINTS} points, one has {fewest}"
    if low >= high:
        return f"the PSNR ranges do not overlap: one curve ends at {high:.2f} dB, the other starts at {low:.2f} dB"
    for points in (anchor, test):
        sizes, psnrs = _curve(points)
        if any(a >= b for a, b in [*pairwise(sizes), *pairwise(psnrs)]):
            return "on one of the curves, PSNR does not rise with every step in bytes"
    return ""


def _curve(points: Sequence[RatePoint]) -> tuple[list[float], list[float]]:
    """(bytes, PSNR) by ascending bytes."""
    ordered = sorted(points, key=lambda point: point.bytes)
    return [float(point.bytes) for point in ordered], [point.psnr_frame for point in ordered]
