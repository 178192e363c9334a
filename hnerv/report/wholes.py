"""A run in segments as the page wants it: one run, whose curves, frames and numbers are those of all segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.report.reading import Curve, Row, RunData, read_run
from hnerv.runs import is_segmented, parts_of
from hnerv.runs.record import RunRecord


class Segment(NamedTuple):
    """A segment that was begun: the position of its first frame in the whole, and what its folder holds."""

    first: int
    run: RunData


def read_any(folder: Path, name: str = "") -> RunData:
    """`read_run` of any run, one in segments put together. Raises UserError."""
    return joined(folder, segments_of(folder), name) if is_segmented(folder) else read_run(folder, name)


def segments_of(folder: Path) -> list[Segment]:
    """Of a run in segments those that were begun, in order; of any other the run itself. Raises UserError."""
    begun = [part for part in parts_of(folder) if not part.count or (part.path / "config.json").is_file()]
    if not begun:
        raise UserError(f"no segment of {folder} has been started: run the training command first")
    return [Segment(part.first, read_run(part.path)) for part in begun]


def joined(folder: Path, segments: Sequence[Segment], name: str = "") -> RunData:
    """Curves are means over the segments, frames and patches are counted on, numbers are those of all frames.

    Baselines of the CLIP head are left out: they are measured segment by segment.
    """
    from hnerv.evaluation.combining import combined

    runs = [segment.run for segment in segments]
    measured = [run for run in runs if run.values]
    return runs[0]._replace(
        folder=folder,
        name=name or folder.resolve().name,
        record=_record(runs),
        curves=_curves(runs),
        values=combined([run.values for run in measured]),
        values_epoch=min((run.values_epoch for run in measured), default=0),
        summary=_summary(runs),
        frames=_rows(segments, "frames"),
        patches=_rows(segments, "patches"),
        environment=runs[-1].environment,
        beside=(),
    )


def _record(runs: Sequence[RunData]) -> RunRecord:
    """That of the first, with the frames, the split and the parameters of all, and the whole range of frames."""
    from hnerv.model import joined_scene

    first, sizes = runs[0].record, [run.record.coded_parameters for run in runs]
    return dataclasses.replace(
        first,
        scene=joined_scene([run.record.scene for run in runs]),
        coded_parameters={name: sum(size.get(name, 0) for size in sizes) for name in sizes[0]},
        config=first.config.replaced({"frames": f"{len(runs)} segments"}),
    )


def _curves(runs: Sequence[RunData]) -> dict[str, Curve]:
    """{tag: mean over the segments that have the tag at that epoch}."""
    found: dict[str, Curve] = {}
    for tag in dict.fromkeys(tag for run in runs for tag in run.curves):
        at: dict[int, list[float]] = {}
        for run in runs:
            for epoch, value in run.curves.get(tag, []):
                at.setdefault(epoch, []).append(value)
        found[tag] = [(epoch, sum(values) / len(values)) for epoch, values in sorted(at.items())]
    return found


def _rows(segments: Sequence[Segment], kind: str) -> list[Row]:
    return [row._replace(frame=row.frame + segment.first) for segment in segments for row in getattr(segment.run, kind)]


def _summary(runs: Sequence[RunData]) -> dict:
    """What the page takes from summaries: the epoch, and the speed of decoding all frames."""
    summaries = [run.summary for run in runs]
    if not all("decode_fps" in summary for summary in summaries):
        return {}
    frames = [run.record.scene.frames for run in runs]
    seconds = sum(count / summary["decode_fps"] for count, summary in zip(frames, summaries, strict=True))
    return {"epoch": min(summary["epoch"] for summary in summaries), "decode_fps": sum(frames) / seconds}
