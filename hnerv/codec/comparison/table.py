"""The comparison for readers: who needs how many bytes at equal PSNR, as sentences, a table, CSV, JSON and a plot."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hnerv.codec.comparison.bd_rate import LEAST_POINTS, Clip, Quality, RatePoint, bd_rate
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.metrics import bits_per_pixel, ms_ssim_scales
from hnerv.tables import Column, format_table
from hnerv.viz.colour import COLOURS

_COLUMNS = (
    *("codec", "setting", "bytes", "bpp", "psnr_frame", "psnr_yuv", "ms_ssim", "ms_ssim_db", "vmaf"),
    *("encode_seconds", "decode_seconds"),
)
_OPTIONAL = ("psnr_yuv", "ms_ssim_db", "vmaf")
"""Columns that the printed table leaves out if they are empty."""
_MARKERS = "osD^vP"
_DRAW = 0.005
"""Relative difference in bytes up to which neither wins."""


class Comparison(NamedTuple):
    """All measurements on one video. `codecs` maps a codec's label to its points, `notes` are sentences.

    `no_planes` is why nothing was measured in YUV, '' if it was. `conversion` is the quality of a conversion without
    any coding: with planes of the source, from perfect RGB frames to these planes, else from RGB to 4:2:0 and back.
    """

    clip: Clip
    ours: list[RatePoint]
    codecs: dict[str, list[RatePoint]]
    conversion: Quality
    no_planes: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return text_table(self)

    @property
    def points(self) -> list[RatePoint]:
        """Ours first."""
        return [*self.ours, *(point for points in self.codecs.values() for point in points)]

    def rate(self, point: RatePoint) -> float:
        """Bits per pixel."""
        return bits_per_pixel(point.bytes, self.clip.frames, self.clip.height, self.clip.width)


class ByteRatio(NamedTuple):
    """Bytes of a codec at our PSNR divided by ours; None where its points, `low` to `high` dB, do not reach it."""

    ratio: float | None
    low: float
    high: float


def bytes_at_our_psnr(ours: RatePoint, points: Sequence[RatePoint]) -> ByteRatio:
    """log bytes of a codec, linear in PSNR between its two points around ours, as a ratio to our bytes."""
    ordered = sorted(points, key=lambda point: point.psnr_frame)
    low, high = ordered[0].psnr_frame, ordered[-1].psnr_frame
    # As in the BD-rate, log bytes as a function of PSNR: it is smooth, and between neighbouring CRF values a
    # straight line is close enough.
    for below, above in pairwise(ordered):
        if below.psnr_frame <= ours.psnr_frame <= above.psnr_frame:
            step = above.psnr_frame - below.psnr_frame
            weight = (ours.psnr_frame - below.psnr_frame) / step if step else 0.0
            log_bytes = (1 - weight) * math.log(below.bytes) + weight * math.log(above.bytes)
            return ByteRatio(math.exp(log_bytes) / ours.bytes, low, high)
    return ByteRatio(None, low, high)


def verdict(ours: RatePoint, label: str, points: Sequence[RatePoint]) -> str:
    """One sentence: the codec's share of our bytes at our PSNR, and so who wins."""
    ratio, low, high = bytes_at_our_psnr(ours, points)
    where = f"{ours.setting} ({ours.psnr_frame:.2f} dB)"
    if ratio is None:
        return f"{where}: {label} was measured only from {low:.2f} to {high:.2f} dB: no ratio at equal PSNR"
    share = f"{100 * ratio:.{0 if ratio >= 0.1 else 1}f} %"
    return f"{where}: {label} needs {share} of our bytes at equal PSNR: {_outcome(1 - ratio)}"


def bd_line(label: str, points: Sequence[RatePoint], ours: Sequence[RatePoint]) -> str:
    """Our BD-rate against a codec in one sentence."""
    result = bd_rate(points, ours)
    if result.percent is None:
        return f"BD-rate against {label} is not available: {result.why}"
    return (
        f"BD-rate against {label}: {result.percent:+.1f} % bytes at equal PSNR, averaged over {result.low:.2f} to "
        f"{result.high:.2f} dB: {_outcome(result.percent / 100)}"
    )


def _outcome(excess: float) -> str:
    """`excess`: our bytes relative to the codec's, less 1, or a number of the same sign."""
    return "a draw" if abs(excess) < _DRAW else "we lose" if excess > 0 else "we win"


def text_table(comparison: Comparison) -> str:
    """The points, the verdicts, the conditions."""
    clip, points = comparison.clip, point_rows(comparison)
    columns = [
        Column("codec", "18"),
        Column("setting", str(max(len(point["setting"]) for point in points) + 2)),
        Column("bytes", ">11", ","),
        Column("bpp", ">9", ".4f"),
        Column("PSNR, dB", ">10", ".2f"),
        Column("YUV, dB", ">9", ".2f"),
        Column("MS-SSIM", ">9", ".4f"),
        Column("in dB", ">7", ".2f"),
        Column("VMAF", ">7", ".2f"),
        Column("enc, s", ">9", ".2f"),
        Column("dec, s", ">9", ".2f"),
    ]
    lines = [f"{clip.frames} frames of {clip.height}x{clip.width}, {clip.fps:g} frames/s"]
    shown = [key for key in _COLUMNS if key not in _OPTIONAL or any(point[key] is not None for point in points)]
    columns = [column for key, column in zip(_COLUMNS, columns, strict=True) if key in shown]
    lines.append(format_table(columns, [[point[key] for key in shown] for point in points]))
    lines += ["", *verdicts(comparison), "", *_conditions(comparison)]
    return "\n".join(lines)


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each of our points and each codec; BD-rates where we have enough points for a curve."""
    codecs = comparison.codecs.items()
    lines = [verdict(point, label, points) for point in comparison.ours for label, points in codecs]
    if len(comparison.ours) >= LEAST_POINTS:
        lines += [bd_line(label, points, comparison.ours) for label, points in codecs]
    return lines


def point_rows(comparison: Comparison) -> list[dict[str, object]]:
    """A dictionary per point, ours first, keys as in the CSV."""
    rows = [p._asdict() | {"codec": p.name, "bpp": comparison.rate(p)} for p in comparison.points]
    return [{key: row[key] for key in _COLUMNS} for row in rows]


def to_dict(comparison: Comparison) -> dict[str, object]:
    """Plain dictionary for JSON."""
    ours, codecs = comparison.ours, comparison.codecs.items()
    ratios = [
        {"ours": point.setting, "rival": label, **bytes_at_our_psnr(point, points)._asdict()}
        for point in ours
        for label, points in codecs
    ]
    curves = {label: bd_rate(points, ours)._asdict() for label, points in codecs if len(ours) >= LEAST_POINTS}
    return {
        "clip": comparison.clip._asdict(),
        "points": point_rows(comparison),
        "bytes_of_rival_over_ours_at_our_psnr": ratios,
        "bd_rate_of_ours_against": curves,
        "conversion_psnr": comparison.conversion.psnr_frame if comparison.no_planes else None,
        "conversion_psnr_yuv": comparison.conversion.psnr_yuv,
        "no_psnr_yuv": comparison.no_planes,
        "verdicts": verdicts(comparison),
        "notes": list(comparison.notes),
    }


def write_comparison(folder: Path, comparison: Comparison) -> list[Path]:
    """Writes comparison.csv, comparison.json and comparison.png; returns their paths. Raises UserError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(point_rows(comparison))
    contents = {
        "comparison.csv": text.getvalue().encode(),
        "comparison.json": (json.dumps(to_dict(comparison), indent=2) + "\n").encode(),
        "comparison.png": plot(comparison),
    }
    try:
        for name, content in contents.items():
            with replacing(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise UserError(
            f"cannot write the comparison to {folder} ({error}): check disk space and permissions"
        ) from error
    return [folder / name for name in contents]


def plot(comparison: Comparison) -> bytes:
    """A PNG of PSNR over bits per pixel, a curve per codec."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, points) in enumerate({"hnerv": comparison.ours, **comparison.codecs}.items()):
        ordered = sorted(points, key=lambda point: point.bytes)
        look = {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        psnrs = [point.psnr_frame for point in ordered]
        axes.plot([*map(comparison.rate, ordered)], psnrs, label=label, lw=1.2 if number else 2.5, **look)
    axes.set_xscale("log")
    axes.set(xlabel="rate, bits per pixel (log scale)", ylabel="full-frame PSNR, mean over frames (dB)")
    axes.set_title(f"{comparison.clip.frames} frames of {comparison.clip.height}x{comparison.clip.width}", fontsize=10)
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()


def _conditions(comparison: Comparison) -> list[str]:
    scales = ms_ssim_scales(comparison.clip.height, comparison.clip.width)
    conversion = comparison.conversion
    lines = [
        "Bytes: the full .hnerv file; the bare stream of the other codecs.",
        "The other codecs are tuned for PSNR and run on one CPU thread.",
    ]
    if comparison.no_planes:
        lines += [
            "They use 4:2:0 chroma: converting to it and back, without any coding, gives "
            f"{conversion.psnr_frame:.2f} dB.",
            f"PSNR in YUV was not measured: {comparison.no_planes}.",
        ]
    else:
        lines.append(
            "They code the 4:2:0 planes of the source, which YUV is measured against; perfect RGB, converted to these, "
            f"has {conversion.psnr_yuv:.2f} dB."
        )
    if scales < 5:
        lines.append(f"MS-SSIM uses {scales} scales instead of 5, the most that this frame size allows.")
    return [*lines, *comparison.notes]
