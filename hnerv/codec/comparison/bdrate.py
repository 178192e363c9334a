"""Bjontegaard delta rate: how many more or fewer bytes a codec takes at equal PSNR, averaged over the PSNR both reach.

Source: Bjontegaard, VCEG-M33 (2001); log rate over PSNR by piecewise cubic Hermite curves, as JVET computes it
(JVET-T2010), by the library `bjontegaard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from hnerv.codec.comparison.points import RatePoint

LEAST_POINTS = 4


class BdRate(NamedTuple):
    """percent: more (above 0) or fewer bytes than the anchor; None where it cannot be said, and `why` says why."""

    percent: float | None
    low: float
    """PSNR in dB, the least that both curves reach."""
    high: float
    why: str = ""


def bd_rate(anchor: Sequence[RatePoint], test: Sequence[RatePoint]) -> BdRate:
    """Points of two codecs, in any order -> bytes of `test` relative to `anchor` at equal PSNR.

    No number for fewer than 4 points of either, for curves that share no PSNR or do not rise, and without the library.
    """
    low = max(min(_psnr(points), default=0.0) for points in (anchor, test))
    high = min(max(_psnr(points), default=0.0) for points in (anchor, test))
    why = _obstacle(anchor, test, low, high)
    if why:
        return BdRate(None, low, high, why)
    try:
        import bjontegaard
    except ImportError:
        return BdRate(None, low, high, "the package bjontegaard is not installed: pip install -e '.[compare]'")
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
    if not (_rises(anchor) and _rises(test)):
        return "on one of the curves, PSNR does not rise with every step in bytes"
    return ""


def _rises(points: Sequence[RatePoint]) -> bool:
    ordered = sorted(points, key=lambda point: point.bytes)
    return all(a.bytes < b.bytes and a.psnr_frame < b.psnr_frame for a, b in pairwise(ordered))


def _psnr(points: Sequence[RatePoint]) -> list[float]:
    return [point.psnr_frame for point in points]


def _curve(points: Sequence[RatePoint]) -> tuple[list[float], list[float]]:
    ordered = sorted(points, key=lambda point: point.bytes)
    return [float(point.bytes) for point in ordered], _psnr(ordered)
