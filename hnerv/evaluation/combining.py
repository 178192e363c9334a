"""The values of several videos, or of the segments of one, as those of all their frames together.

Exact for what is a sum, a mean, an extreme or a deviation over frames or patches; retrieval stays what it was measured
as, among the patches of each segment. What cannot be put together from parts is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hnerv.evaluation.summary import CLIP_COLUMNS, gap_values

_MEANS = ("psnr", "psnr_frame", "ms_ssim", "clip_dist", *CLIP_COLUMNS)
_DEVIATIONS = {
    "Eval/PSNR_Stats/{}_std": "Eval/Frame/{}_psnr",
    "Eval/Patch/{}_psnr_std": "Eval/Frame/{}_psnr",
    "Eval/Patch/{}_clip_sim_std": "Eval/Frame/{}_clip_sim",
}
"""Tag of a deviation -> tag of the mean that it is from."""
_EXTREMES = ("Eval/PSNR_Stats/{}", "Eval/Patch/{}_clip_sim")
_COUNTS = ("Eval/Info/num_{}_frames", "Eval/Info/num_{}_patches")


def combined(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """{Eval/ tag: value} of each part -> of all of them; frames weigh alike. A split that no part has is left out."""
    values: dict[str, float] = {}
    for split in ("train", "val"):
        having = [part for part in parts if part.get(f"Eval/Info/num_{split}_frames")]
        if having:
            values |= _combined_split(split, having)
    return values | gap_values(values)


def _combined_split(split: str, parts: list[dict[str, float]]) -> dict[str, float]:
    weights = [part[f"Eval/Info/num_{split}_frames"] for part in parts]

    def mean(numbers: Sequence[float]) -> float:
        return math.fsum(w * x for w, x in zip(weights, numbers, strict=True)) / math.fsum(weights)

    def column(tag: str) -> list[float] | None:
        """Its value in each part; None where one lacks it."""
        found = [part.get(tag.format(split)) for part in parts]
        return None if None in found else found

    values: dict[str, float] = {}
    for tag in (f"Eval/Frame/{{}}_{name}" for name in _MEANS):
        if numbers := column(tag):
            values[tag.format(split)] = mean(numbers)
    for tag, centre in _DEVIATIONS.items():
        if (spreads := column(tag)) and (means := column(centre)):
            whole = mean(means)
            squares = [s**2 + (m - whole) ** 2 for s, m in zip(spreads, means, strict=True)]
            values[tag.format(split)] = math.sqrt(mean(squares))
    for tag in _EXTREMES:
        for name, pick in (("min", min), ("max", max)):
            if numbers := column(f"{tag}_{name}"):
                values[f"{tag}_{name}".format(split)] = pick(numbers)
    for tag in _COUNTS:
        if numbers := column(tag):
            values[tag.format(split)] = math.fsum(numbers)
    return values
