"""What eval.py leaves of a video in segments: the files of each, and of all frames together."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.evaluation.combining import combined
from hnerv.evaluation.cost import Cost
from hnerv.files import replacing, write_json
from hnerv.tracking import RunLogger, events_folder

_SAME = ("targets", "targets_kind", "unseen", "ms_ssim_scales", "video")
_TABLES = ("per_frame.csv", "per_patch.csv")


class PartResult(NamedTuple):
    """A segment that was evaluated: position of its first frame, its frames, their pixels, folder, summary, cost."""

    first: int
    frames: int
    pixels: int
    folder: Path
    summary: dict
    cost: Cost


def combined_cost(parts: Sequence[PartResult], coded_bytes: int = 0) -> Cost:
    """Of all segments: parameters are sums, rates over all pixels, arithmetic and speed means by frame.

    `coded_bytes` is the size of the file, index included, where there is one.
    """
    frames = sum(part.frames for part in parts)
    parameters: dict[str, int] = {}
    for part in parts:
        for name, count in part.cost.parameters.items():
            parameters[name] = parameters.get(name, 0) + count
    estimate = sum(part.cost.bpp_estimate_8bit * part.frames for part in parts) / frames
    gmac = sum(part.cost.gmac_per_frame * part.frames for part in parts) / frames
    seconds = sum(part.frames / part.cost.decode_fps for part in parts)
    rate = 8 * coded_bytes / (frames * parts[0].pixels) if coded_bytes else None
    return Cost(parameters, rate, estimate, gmac, frames / seconds)


def write_whole(folder: Path, path: Path, parts: Sequence[PartResult], cost: Cost, coded_bytes: int = 0) -> dict:
    """eval/ of the whole: summary.json, the tables of all frames and patches, segments.csv; and the Eval/ tags.

    Returns the summary. Raises UserError when they cannot be written.
    """
    place = folder / "eval"
    values = combined([_tags(part.summary) for part in parts])
    epoch = min(part.summary["epoch"] for part in parts)
    summary = {
        "checkpoint": str(path),
        "epoch": epoch,
        "segments": len(parts),
        **{key: parts[0].summary[key] for key in _SAME},
        **values,
        "same_pixels_as_trained_on": all(part.summary["same_pixels_as_trained_on"] for part in parts),
        "coded_parameters": cost.parameters,
        **({"bpp": cost.bpp, "file_bytes": coded_bytes} if coded_bytes else {}),
        "bpp_estimate_8bit": cost.bpp_estimate_8bit,
        "gmac_per_frame": cost.gmac_per_frame,
        "decode_fps": cost.decode_fps,
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name in _TABLES:
            _join(place / name, [(part.first, part.folder / "eval" / name) for part in parts])
        _write_segments(place / "segments.csv", parts)
        _write_events(folder, values, epoch)
        write_json(place / "summary.json", summary)
    except OSError as error:
        raise UserError(
            f"cannot write the evaluation to {place} ({error}): check disk space and permissions"
        ) from error
    return summary


def _tags(summary: dict) -> dict[str, float]:
    return {key: value for key, value in summary.items() if key.startswith("Eval/")}


def _join(path: Path, tables: Sequence[tuple[int, Path]]) -> None:
    """One table of several, the frames of each counted on from its first."""
    with replacing(path) as file:
        for number, (first, table) in enumerate(tables):
            header, *lines = table.read_text(encoding="utf-8").splitlines()
            if not number:
                file.write(f"{header}\n".encode())
            for line in lines:
                frame, _, rest = line.partition(",")
                file.write(f"{int(frame) + first},{rest}\n".encode())


def _write_segments(path: Path, parts: Sequence[PartResult]) -> None:
    """A row per segment: where it is, and its values by tag."""
    tags = list(dict.fromkeys(tag for part in parts for tag in _tags(part.summary)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["segment", "first", "frames", *tags])
    for number, part in enumerate(parts):
        writer.writerow([number, part.first, part.frames, *(part.summary.get(tag, "") for tag in tags)])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _write_events(folder: Path, values: dict[str, float], epoch: int) -> None:
    events = events_folder(folder) / "eval"
    for old in events.glob("events.out.tfevents.*"):
        old.unlink()
    with RunLogger(events, metrics=None, purge_step=0) as logger:
        logger.scalars(values, epoch)
