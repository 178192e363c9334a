"""Run folders -> the stories of a page: evaluates where that is due, decodes the frames that are shown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from hnerv.data.clip import warned_once
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun, add_to_summary, cost_of, evaluate, open_run, write_files
from hnerv.evaluation.semantics import as_dict, measure
from hnerv.report.page import Story
from hnerv.report.pictures import draw_frames, pick_frames
from hnerv.report.plots import disambiguated
from hnerv.report.reading import RunData, is_current, read_run
from hnerv.report.wholes import Segment, read_any, segments_of
from hnerv.runs import is_segmented, parts_of, targets_of

PICTURE_BYTES = 3_000_000
"""Of all pictures of a page together."""
MOST_SENTENCES = 3
"""On what a page lacks: of many segments without their video, the first ones say enough."""


class Wishes(NamedTuple):
    """`data` and `clip_targets` say where these are now, '' for where the run found them; `frames` how many to show."""

    device: torch.device
    data: str = ""
    clip_targets: str = ""
    frames: int = 12


def tell(folders: list[Path], wishes: Wishes) -> list[Story]:
    """Reads every run, evaluates those whose eval/ is missing or older than the checkpoint, and picks their frames.

    What cannot be had (the video is gone, say) is told in the story. Raises UserError for a folder that is no run.
    """
    names = disambiguated((folder.resolve().name for folder in folders), map(str, folders))
    runs = [read_any(folder, name) for folder, name in zip(folders, names, strict=True)]
    stories: list[Story] = []
    for run in runs:
        like = next((story.frames_shown for story in stories if story.shown), ())
        with warned_once():
            stories.append(_story(run, wishes, PICTURE_BYTES // len(runs), like))
    return stories


def _story(run: RunData, wishes: Wishes, budget: int, like: Iterable[int]) -> Story:
    """`like` are the frames that an earlier run of the page shows: the same are shown of this one, if it has them.

    Of a run in segments one is in memory at a time: all are evaluated, then those opened again whose frames are shown.
    """
    divided, missing, opened = is_segmented(run.folder), [], None
    for segment in segments_of(run.folder):
        opened = None
        try:
            opened = _evaluated(segment.run, wishes, segment.first if divided else None)
        except _Lacking as lack:
            missing.append(str(lack))
    segments, run = segments_of(run.folder), read_any(run.folder, run.name)
    parts = tuple(segments) if divided else ()
    if divided and (unbegun := len(parts_of(run.folder)) - len(parts)):
        missing.insert(0, f"{unbegun} of {unbegun + len(parts)} segments not started: run the training command again.")
    if missing:
        return Story(run, [], missing[:MOST_SENTENCES], parts)
    chosen, shown = pick_frames(run.frames, wishes.frames, like), []
    for segment in segments:
        mine = {frame - segment.first: why for frame, why in chosen.items() if frame in _frames(segment)}
        if mine:
            opened = _opened(segment.run, wishes, segment.first) if divided else opened
            drawn = draw_frames(opened, segment.run.frames, mine, budget * len(mine) // len(chosen))
            shown += [shot._replace(row=shot.row._replace(frame=shot.row.frame + segment.first)) for shot in drawn]
    return Story(run, shown, [], parts)


class _Lacking(Exception):
    """A sentence on what the page lacks."""


def _frames(segment: Segment) -> set[int]:
    """Those that were measured, as the whole counts them."""
    return {segment.first + row.frame for row in segment.run.frames}


def _opened(run: RunData, wishes: Wishes, first: int | None) -> OpenedRun:
    """`first` is that of a segment, None where there are none. Raises UserError."""
    rows = wishes.clip_targets
    if first is not None:
        rows = targets_of(rows, first, run.record.scene.frames)
    return open_run(run.folder, wishes.device, data=wishes.data, clip_targets=rows)


def _evaluated(run: RunData, wishes: Wishes, first: int | None) -> OpenedRun:
    """The run with an evaluation of its checkpoint in its folder. Raises _Lacking."""
    checkpoint = run.folder / "checkpoints" / "latest.pt"
    if not checkpoint.is_file():
        raise _Lacking(f"{checkpoint} is missing: this page shows what training logged, without frames.")
    try:
        opened = _opened(run, wishes, first)
    except UserError as error:
        raise _Lacking(_without_model(run, error)) from error
    try:
        if not is_current(run.folder, opened.epoch, checkpoint):
            report = evaluate(opened.model, opened.store, opened.config.model.unseen, progress=True)
            write_files(opened, report, cost_of(opened.model))
            run = read_run(run.folder, run.name)
        if opened.model.clip_head is not None and not run.beside and first is None:
            add_to_summary(run.folder, run.summary, "semantics", as_dict(measure(opened, progress=True)))
    except UserError as error:
        raise _Lacking(f"The evaluation could not be saved: {error}") from error
    return opened


def _without_model(run: RunData, error: UserError) -> str:
    """What the page lacks without the model and its video, and the way to it."""
    way = f"Then run hnerv report {run.folder} again, with --data or --clip-targets if the video or the targets moved."
    lacks = "no frames to show"
    if not run.frames:
        lacks += " and no results per frame and patch, because eval.py has not been run"
    elif run.summary.get("epoch") != run.epoch:
        lacks += f", and its results per frame and patch are those of epoch {run.summary.get('epoch')}"
    return f"This page has {lacks}. The model could not be opened with its video: {error}. {way}"
