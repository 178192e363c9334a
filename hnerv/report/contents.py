"""Contents of a page for each run: evaluates if that is due, and decodes a few frames.

A run has chunks, mostly one, and only one model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from hnerv.data.clip import warned_once
from hnerv.errors import UserError
from hnerv.evaluation import (
    OpenedRun,
    add_to_summary,
    compare_head,
    decoded_frames,
    evaluate_chunk,
    open_run,
)
from hnerv.report.results import Measurement, RunResults, is_current, read_run
from hnerv.runs import Chunk, chunks_of
from hnerv.viz.image import error_map, resized, webp_uri

PICTURE_BYTES = 3_000_000
"""Budget of all pictures of a page together."""
QUALITIES = (85, 70, 50, 30)
WIDEST = 480
"""Pixels of the longer side of a picture: larger frames are reduced."""
MAX_NOTES = 3
"""Many chunks may lack the same thing, such as their video: the first few notes explain it."""


class ReportOptions(NamedTuple):
    """`data` and `clip_targets` are new locations, '' for the locations in the run; `frames` is how many to show."""

    device: torch.device
    data: str = ""
    clip_targets: str = ""
    frames: int = 12


class ShownFrame(NamedTuple):
    """A frame of the slider, its three pictures as data URIs; `reason` is why it was chosen, '' for an even spread."""

    row: Measurement
    reason: str
    truth: str
    reconstruction: str
    error: str


class RunReport(NamedTuple):
    """A run and its frames. `missing` are sentences about missing contents and the command that adds them."""

    run: RunResults
    shown: list[ShownFrame]
    missing: list[str]


class _Missing(Exception):
    """A sentence about missing contents of the page."""


def collect(folders: list[Path], options: ReportOptions) -> list[RunReport]:
    """Reads every run, evaluates those without a current evaluation, and picks frames, the same of each run.

    Raises UserError for a folder that is no run; anything else that is missing is a sentence in the report.
    """
    names = [folder.resolve().name for folder in folders]
    names = [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    reports: list[RunReport] = []
    for run in runs:
        like = next(([frame.row.frame for frame in report.shown] for report in reports if report.shown), [])
        with warned_once():
            reports.append(_report(run, options, PICTURE_BYTES // len(runs), like))
    return reports


def pick_frames(rows: list[Measurement], count: int, like: Collection[int] = ()) -> dict[int, str]:
    """{frame: reason} for at most `count` frames (at least 4): the worst and best of each split by PSNR.

    The others are spread evenly over the video, a third of them unseen if there are any. If all frames of `like` were
    measured, those are chosen.
    """
    ends: dict[int, str] = {}
    for name, seen in (("training", True), ("unseen", False)):
        if ranked := sorted((row.values["psnr"], row.frame) for row in rows if row.seen == seen):
            ends |= {ranked[-1][1]: f"best {name} frame"}
            ends |= {ranked[0][1]: f"worst {name} frame"}
    if like and {row.frame for row in rows}.issuperset(like):
        return {frame: ends.get(frame, "") for frame in like}
    room = max(0, count - len(ends))
    unseen = _spread([row.frame for row in rows if not row.seen and row.frame not in ends], (room + 2) // 3)
    seen = _spread([row.frame for row in rows if row.seen and row.frame not in ends], room - len(unseen))
    return dict(sorted((ends | dict.fromkeys([*unseen, *seen], "")).items()))


def _spread(frames: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly: each is the middle of its share."""
    count = min(count, len(frames))
    return [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]


def draw_frames(
    run: OpenedRun, rows: list[Measurement], reasons: dict[int, str], budget: int, first: int = 0
) -> list[ShownFrame]:
    """Decodes the frames of `rows`, counted from `first` in this chunk; `reasons` is what `pick_frames` returned.

    The pictures take about `budget` bytes, or have the lowest of QUALITIES.
    """
    pictures = {}
    for position, truth, rgb, _ in decoded_frames(run.model, run.store, {row.frame - first: row.split for row in rows}):
        # Reduced at once: full frames of all positions together may not fit into memory.
        width = round(truth.shape[1] * min(1, WIDEST / max(truth.shape[:2])))
        three = truth, rgb, error_map(truth, rgb)
        pictures[position + first] = [resized(picture, width) for picture in three]
    for quality in QUALITIES:
        coded = [[webp_uri(picture, quality) for picture in pictures[row.frame]] for row in rows]
        if sum(len(uri) for uris in coded for uri in uris) <= budget:
            break
    return [ShownFrame(row, reasons[row.frame], *uris) for row, uris in zip(rows, coded, strict=True)]


def _report(run: RunResults, options: ReportOptions, budget: int, like: Collection[int]) -> RunReport:
    """`like` are the frames that an earlier run of the page shows."""
    parts, missing, opened = {part.path: part for part in chunks_of(run.folder)}, [], None
    if unstarted := len(parts) - len(run.chunks):
        missing.append(f"{unstarted} of {len(parts)} segments not started: run the training command again.")
    for chunk in run.chunks:
        opened = None  # frees the model of the previous chunk first
        try:
            opened = _evaluated(chunk, parts[chunk.folder], options, alone=len(parts) == 1)
        except _Missing as sentence:
            missing.append(str(sentence))
    run = read_run(run.folder, run.name)
    if missing:
        return RunReport(run, [], missing[:MAX_NOTES])
    chosen, shown = pick_frames(run.frames, options.frames, like), []
    for chunk in run.chunks:
        frames = range(chunk.first, chunk.first + chunk.record.scene.frames)
        if rows := [row for row in run.frames if row.frame in chosen and row.frame in frames]:
            if len(run.chunks) > 1:
                opened = None
                opened = _opened(chunk, parts[chunk.folder], options)
            shown += draw_frames(opened, rows, chosen, budget * len(rows) // len(chosen), chunk.first)
    return RunReport(run, shown, [])


def _opened(chunk: RunResults, part: Chunk, options: ReportOptions) -> OpenedRun:
    targets = part.clip_targets(options.clip_targets)
    return open_run(chunk.folder, options.device, data=options.data, clip_targets=targets)


def _evaluated(chunk: RunResults, part: Chunk, options: ReportOptions, alone: bool) -> OpenedRun:
    """Opens a chunk and makes sure that its evaluation is current, with baselines if it is `alone` in the video.

    Raises _Missing.
    """
    checkpoint = chunk.folder / "checkpoints" / "latest.pt"
    if not checkpoint.is_file():
        raise _Missing(f"{checkpoint} is missing: this page shows what training logged, without frames.")
    try:
        opened = _opened(chunk, part, options)
    except UserError as error:
        raise _Missing(_without_model(chunk, error)) from error
    try:
        if not is_current(chunk.folder, opened.epoch, checkpoint):
            evaluate_chunk(opened, baselines=False)
            chunk = read_run(chunk.folder)
        if alone and opened.model.clip_head is not None and not chunk.baselines:
            add_to_summary(chunk.folder, chunk.summary, "semantics", compare_head(opened, progress=True).to_dict())
    except UserError as error:
        raise _Missing(f"The evaluation could not be saved: {error}") from error
    return opened


def _without_model(run: RunResults, error: UserError) -> str:
    """The contents that are missing without the model and its video, and the command that adds them."""
    lacks = "no frames to show"
    if not run.frames:
        lacks += " and no results per frame and patch, because eval.py has not been run"
    elif run.summary.get("epoch") != run.epoch:
        lacks += f", and its results per frame and patch are those of epoch {run.summary.get('epoch')}"
    return (
        f"This page has {lacks}. The model could not be opened with its video: {error}. Then run hnerv report "
        f"{run.folder} again, with --data or --clip-targets if the video or the targets moved."
    )
