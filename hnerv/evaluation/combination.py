"""The results of the chunks of a video, or of several videos -> those of all their frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hnerv.evaluation.summary import CLIP_COLUMNS, PAIRED_GAP, PAIRED_GAP_ERROR, gap_values

_MEANS = (
    *("psnr", "psnr_frame", "psnr_yuv", "psnr_y", "ms_ssim", "ms_ssim_db", "vmaf"),
    *("clip_dist", *CLIP_COLUMNS),
)
_DEVIATIONS = {
    "Eval/PSNR_Stats/{}_std": "Eval/Frame/{}_psnr",
    "Eval/Patch/{}_psnr_std": "Eval/Frame/{}_psnr",
    "Eval/Patch/{}_clip_sim_std": "Eval/Frame/{}_clip_sim",
}
"""Tag of a deviation -> tag of the mean that it is from."""
_EXTREMES = ("Eval/PSNR_Stats/{}", "Eval/Patch/{}_clip_sim")
_COUNTS = ("Eval/Info/num_{}_frames", "Eval/Info/num_{}_patches")


def combine(chunks: Sequence[Mapping[str, Any]], frames: Sequence[int] = ()) -> dict[str, Any]:
    """{Eval/ tag: value} of each chunk, or its summary -> the same of all frames together.

    Exact for sums, means, extremes and deviations over frames or patches. Retrieval searches one chunk at a time, and
    stays so: the combined value is the mean. A key that one of the chunks lacks is left out; a split without frames
    counts for nothing. The paired gap is that of the chunks that have one, in which frames have their neighbours.
    Epoch and costs are combined where `frames` gives the number of frames of each chunk, those of no split included:
    they are all decoded.
    """
    values: dict[str, Any] = {}
    for split in ("train", "val"):
        if measured := [chunk for chunk in chunks if chunk.get(f"Eval/Info/num_{split}_frames")]:
            values |= _combine_split(split, measured)
    values |= gap_values(values) | _combine_paired_gaps(chunks)
    return values | (_combine_costs(chunks, frames) if frames else {})


def _combine_split(split: str, chunks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    weights = _column(chunks, f"Eval/Info/num_{split}_frames")
    values: dict[str, float] = {}
    for tag in (f"Eval/Frame/{split}_{name}" for name in _MEANS):
        if numbers := _column(chunks, tag):
            values[tag] = _mean(numbers, weights)
    for tag, centre in ((tag.format(split), centre.format(split)) for tag, centre in _DEVIATIONS.items()):
        if (deviations := _column(chunks, tag)) and (means := _column(chunks, centre)):
            # Law of total variance: Var(x) = E[Var(x | chunk)] + Var(E[x | chunk]).
            mean = _mean(means, weights)
            squares = [s**2 + (m - mean) ** 2 for s, m in zip(deviations, means, strict=True)]
            values[tag] = math.sqrt(_mean(squares, weights))
    for tag in (tag.format(split) for tag in _EXTREMES):
        for name, pick in (("min", min), ("max", max)):
            if numbers := _column(chunks, f"{tag}_{name}"):
                values[f"{tag}_{name}"] = pick(numbers)
    for tag in (tag.format(split) for tag in _COUNTS):
        if numbers := _column(chunks, tag):
            values[tag] = math.fsum(numbers)
    return values


def _combine_paired_gaps(chunks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Chunks are independent draws: weights w_c give their mean the variance sum (w_c error_c)^2 / (sum w_c)^2."""
    measured = [chunk for chunk in chunks if PAIRED_GAP in chunk]
    if not measured:
        return {}
    weights = _column(measured, "Eval/Info/num_val_frames")
    errors = [w * error for w, error in zip(weights, _column(measured, PAIRED_GAP_ERROR), strict=True)]
    gap = _mean(_column(measured, PAIRED_GAP), weights)
    return {PAIRED_GAP: gap, PAIRED_GAP_ERROR: math.hypot(*errors) / math.fsum(weights)}


def _combine_costs(chunks: Sequence[Mapping[str, Any]], frames: Sequence[int]) -> dict[str, Any]:
    """Parameters are sums. Rate and arithmetic are per pixel or frame, so their means weigh chunks by frames.

    Times add up: the joint speed is all frames / sum of (frames / speed).
    """
    values: dict[str, Any] = {}
    if epochs := _column(chunks, "epoch"):
        values["epoch"] = min(epochs)
    if parts := _column(chunks, "coded_parameters"):
        values["coded_parameters"] = {name: sum(part.get(name, 0) for part in parts) for name in parts[0]}
    for key in ("bpp_estimate_8bit", "gmac_per_frame"):
        if numbers := _column(chunks, key):
            values[key] = _mean(numbers, frames)
    if speeds := _column(chunks, "decode_fps"):
        values["decode_fps"] = sum(frames) / sum(n / speed for n, speed in zip(frames, speeds, strict=True))
    return values


def _column(chunks: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Its value in each chunk; empty where one lacks it."""
    return [chunk[key] for chunk in chunks] if all(key in chunk for chunk in chunks) else []


def _mean(numbers: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * x for w, x in zip(weights, numbers, strict=True)) / math.fsum(weights)
