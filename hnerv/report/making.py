"""Run folders -> the stories of a page: evaluates where that is due, decodes the frames that are shown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from hnerv.errors import UserError
from hnerv.evaluation import add_to_summary, cost_of, evaluate, open_run, write_files
from hnerv.report.page import Story
from hnerv.report.pictures import draw_frames, pick_frames
from hnerv.report.plots import disambiguated
from hnerv.report.reading import RunData, is_current, read_run
from hnerv.semantics import as_dict, measure

PICTURE_BYTES = 3_000_000
"""Of all pictures of a page together."""


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
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    stories: list[Story] = []
    for run in runs:
        like = next((story.frames_shown for story in stories if story.shown), ())
        stories.append(_story(run, wishes, PICTURE_BYTES // len(runs), like))
    return stories


def _story(run: RunData, wishes: Wishes, budget: int, like: Iterable[int]) -> Story:
    """`like` are the frames that an earlier run of the page shows: the same are shown of this one, if it has them."""
    checkpoint = run.folder / "checkpoints" / "latest.pt"
    if not checkpoint.is_file():
        return Story(run, [], [f"There is no {checkpoint}: the page has what training logged, and no pictures."])
    try:
        opened = open_run(run.folder, wishes.device, data=wishes.data, clip_targets=wishes.clip_targets)
    except UserError as error:
        return Story(run, [], [_without_model(run, error)])
    if not is_current(run.folder, opened.epoch, checkpoint):
        report = evaluate(opened.model, opened.store, opened.config.model.unseen, progress=True)
        try:
            write_files(opened, report, cost_of(opened.model))
        except UserError as error:
            return Story(run, [], [f"Its evaluation could not be kept: {error}"])
        run = read_run(run.folder, run.name)
    if opened.model.clip_head is not None and not run.beside:
        add_to_summary(run.folder, run.summary, "semantics", as_dict(measure(opened, progress=True)))
        run = read_run(run.folder, run.name)
    chosen = pick_frames(run.frames, wishes.frames, like)
    return Story(run, draw_frames(opened, run.frames, chosen, budget), [])


def _without_model(run: RunData, error: UserError) -> str:
    """What the page lacks without the model and its video, and the way to it."""
    way = f"Then again: hnerv report {run.folder} (--data and --clip-targets for a video and targets that moved)."
    lacks = "no pictures of frames"
    if not run.frames:
        lacks += ", no numbers by frame and patch: eval.py has not been run"
    elif run.summary.get("epoch") != run.epoch:
        lacks += f", and its numbers by frame and patch are those of epoch {run.summary.get('epoch')}"
    return f"This page has {lacks}. The model could not be opened with its video: {error}. {way}"
