"""Our points and the rivals' -> who needs how much of whose bytes, in words, as a table, as files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hnerv.codec.comparison.bdrate import LEAST_POINTS, bd_rate
from hnerv.codec.comparison.points import Clip, RatePoint
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.metrics import bits_per_pixel, ms_ssim_scales
from hnerv.tables import Column, format_table
from hnerv.viz.colour import COLOURS

_COLUMNS = ("codec", "setting", "bytes", "bpp", "psnr_frame", "ms_ssim", "encode_seconds", "decode_seconds")
_MARKERS = "osD^vP"
_A_DRAW = 0.005


class Comparison(NamedTuple):
    """All that was measured on one clip. `rivals` maps a rival's label to its points."""

    clip: Clip
    ours: list[RatePoint]
    rivals: dict[str, list[RatePoint]]
    conversion_psnr: float
    """In dB, what the conversion to 4:2:0 and back alone leaves of the frames."""
    notes: tuple[str, ...] = ()
    """What a reader must know besides, in sentences."""


class Share(NamedTuple):
    """A rival at our PSNR: its bytes divided by ours. None where our PSNR lies outside what was measured of it."""

    ratio: float | None
    low: float
    high: float
    """The least and the largest PSNR of the rival, dB."""


def share_at_our_psnr(ours: RatePoint, rival: Sequence[RatePoint]) -> Share:
    """The rival's bytes at our PSNR, log bytes linear in PSNR between its neighbouring points, divided by ours."""
    ordered = sorted(rival, key=lambda point: point.psnr_frame)
    low, high = ordered[0].psnr_frame, ordered[-1].psnr_frame
    for below, above in pairwise(ordered):
        if below.psnr_frame <= ours.psnr_frame <= above.psnr_frame:
            step = above.psnr_frame - below.psnr_frame
            part = (ours.psnr_frame - below.psnr_frame) / step if step else 0.0
            log_bytes = (1 - part) * math.log(below.bytes) + part * math.log(above.bytes)
            return Share(math.exp(log_bytes) / ours.bytes, low, high)
    return Share(None, low, high)


def verdict(ours: RatePoint, label: str, rival: Sequence[RatePoint]) -> str:
    """One sentence: what share of our bytes the rival needs at our PSNR, and so who wins."""
    ratio, low, high = share_at_our_psnr(ours, rival)
    where = f"{ours.setting} ({ours.psnr_frame:.2f} dB)"
    if ratio is None:
        return f"{where}: {label} was measured only from {low:.2f} to {high:.2f} dB: no ratio at equal PSNR"
    result = "a draw" if abs(ratio - 1) < _A_DRAW else "we win" if ratio > 1 else "we lose"
    return f"{where}: {label} needs {100 * ratio:.{0 if ratio >= 0.1 else 1}f} % of our bytes at equal PSNR: {result}"


def bd_line(label: str, rival: Sequence[RatePoint], ours: Sequence[RatePoint]) -> str:
    """Our BD-rate against a rival in one sentence."""
    result = bd_rate(rival, ours)
    if result.percent is None:
        return f"BD-rate against {label} is not available: {result.why}"
    outcome = "a draw" if abs(result.percent) < 100 * _A_DRAW else "we win" if result.percent < 0 else "we lose"
    return (
        f"BD-rate against {label}: {result.percent:+.1f} % bytes at equal PSNR, averaged over {result.low:.2f} to "
        f"{result.high:.2f} dB: {outcome}"
    )


def text_table(found: Comparison) -> str:
    """For people: the points, the verdicts, the conditions."""
    clip = found.clip
    points = rows(found)
    columns = [
        Column("codec", "18"),
        Column("setting", str(max(len(point["setting"]) for point in points) + 2)),
        Column("bytes", ">11", ","),
        Column("bpp", ">9", ".4f"),
        Column("PSNR, dB", ">10", ".2f"),
        Column("MS-SSIM", ">9", ".4f"),
        Column("enc, s", ">9", ".2f"),
        Column("dec, s", ">9", ".2f"),
    ]
    lines = [f"{clip.frames} frames of {clip.height}x{clip.width}, {clip.fps:g} frames/s"]
    lines.append(format_table(columns, [list(point.values()) for point in points]))
    lines += ["", *verdicts(found), "", *_conditions(found)]
    return "\n".join(lines)


def verdicts(found: Comparison) -> list[str]:
    """A sentence for each of our points and each rival; BD-rates where we have points enough for a curve."""
    lines = [verdict(point, label, points) for point in found.ours for label, points in found.rivals.items()]
    if len(found.ours) >= LEAST_POINTS:
        lines += [bd_line(label, points, found.ours) for label, points in found.rivals.items()]
    return lines


def rows(found: Comparison) -> list[dict[str, object]]:
    """A dictionary per point, ours first, keys as in the CSV."""
    clip = found.clip
    points = [*found.ours, *(point for rival in found.rivals.values() for point in rival)]
    rates = [bits_per_pixel(point.bytes, clip.frames, clip.height, clip.width) for point in points]
    values = [(p.name, p.setting, p.bytes, rate, *p[3:]) for p, rate in zip(points, rates, strict=True)]
    return [dict(zip(_COLUMNS, row, strict=True)) for row in values]


def to_dict(found: Comparison) -> dict[str, object]:
    """Plain dictionary for JSON."""
    shares = [
        {"ours": point.setting, "rival": label, **share_at_our_psnr(point, points)._asdict()}
        for point in found.ours
        for label, points in found.rivals.items()
    ]
    curves = {label: bd_rate(points, found.ours)._asdict() for label, points in found.rivals.items()}
    return {
        "clip": found.clip._asdict(),
        "points": rows(found),
        "bytes_of_rival_over_ours_at_our_psnr": shares,
        "bd_rate_of_ours_against": curves if len(found.ours) >= LEAST_POINTS else {},
        "conversion_psnr": found.conversion_psnr,
        "verdicts": verdicts(found),
        "notes": list(found.notes),
    }


def write_comparison(folder: Path, found: Comparison) -> list[Path]:
    """comparison.csv, comparison.json and comparison.png; returns what was written.

    Raises UserError when they cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(found))
    contents = {
        "comparison.csv": text.getvalue().encode(),
        "comparison.json": (json.dumps(to_dict(found), indent=2) + "\n").encode(),
        "comparison.png": plot(found),
    }
    written = [folder / name for name in contents]
    try:
        for path in written:
            with replacing(path) as file:
                file.write(contents[path.name])
    except OSError as error:
        raise UserError(
            f"cannot write the comparison to {folder} ({error}): check disk space and permissions"
        ) from error
    return written


def plot(found: Comparison) -> bytes:
    """A PNG of PSNR over bits per pixel, a curve per codec."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    curves = {"hnerv": found.ours, **found.rivals}
    clip = found.clip
    for number, (label, points) in enumerate(curves.items()):
        ordered = sorted(points, key=lambda point: point.bytes)
        rate = [bits_per_pixel(point.bytes, clip.frames, clip.height, clip.width) for point in ordered]
        look = {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        axes.plot(rate, [point.psnr_frame for point in ordered], label=label, lw=2.5 if not number else 1.2, **look)
    axes.set_xscale("log")
    axes.set(xlabel="rate, bits per pixel (log scale)", ylabel="full-frame PSNR, mean over frames (dB)")
    axes.set_title(f"{clip.frames} frames of {clip.height}x{clip.width}", fontsize=10)
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()


def _conditions(found: Comparison) -> list[str]:
    scales = ms_ssim_scales(found.clip.height, found.clip.width)
    lines = [
        "Bytes: the full .hnerv file; the bare stream of the other codecs.",
        "The other codecs are tuned for PSNR and run on one CPU thread.",
        f"They use 4:2:0 chroma: converting to it and back, without any coding, gives {found.conversion_psnr:.2f} dB.",
    ]
    if scales < 5:
        lines.append(f"MS-SSIM uses {scales} scales instead of 5, the most that this frame size allows.")
    return [*lines, *found.notes]
