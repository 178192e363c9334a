"""A video in segments: one run after the other in one folder, each a run as any other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from hnerv.checkpoint import load_checkpoint
from hnerv.clip.targets import rows_of_file
from hnerv.errors import UserError
from hnerv.evaluation.combining import combined
from hnerv.files import move_aside
from hnerv.flags import Choice, Invocation
from hnerv.segments import Plan, Segment, SegmentedFolder, Wishes, plan_video, read_plan, write_plan
from hnerv.tracking import RunLogger, events_folder, metrics_file
from hnerv.training import lock
from hnerv.training.folder import RunFolder, folder_name, refuse_unwritable
from hnerv.training.limits import Limits
from hnerv.training.running import Finished, How, train_run


class Whole(NamedTuple):
    """All segments, trained: the folder, the record of the first, the values of all of them together."""

    folder: SegmentedFolder
    record: dict
    values: dict[str, float]


def train_segments(ask: Invocation, choice: Choice, device: torch.device, limits: Limits) -> Whole:
    """Trains what is not trained yet, in the order of the video; no more than one segment is in memory.

    Finished segments are taken as they are, their video is not read again. Raises as `train_run`, and UserError where
    the folder holds something else.
    """
    folder = SegmentedFolder(ask.output / folder_name(ask.exp_id, choice, ask.output))
    plan, fresh = _plan(folder, ask, choice)
    refuse_unwritable(folder.path)
    with _claimed(folder, plan, fresh, ask.overwrite):
        done = []
        for segment in plan.segments:
            print(f"\nsegment  {segment.number + 1} of {len(plan.segments)}: frames {segment.frames}", flush=True)
            before = folder.child(plan.segments[segment.number - 1]) if segment.number else None
            how = How(device, ask.log, limits, done[0].record if done else None)
            done.append(_train_one(folder, segment, choice, before, plan.wishes.init, how))
        values = combined([finished.values for finished in done])
        log_whole(folder, values, choice, len(done))
    return Whole(folder, done[0].record, values)


def choice_of(segment: Segment, choice: Choice) -> Choice:
    """What is trained in one segment of a video."""
    targets = choice.config.clip.clip_targets
    rows = rows_of_file(targets, segment.first, segment.count) if targets else ""
    return choice._replace(config=choice.config.replaced({"frames": segment.frames, "clip_targets": rows}))


def _train_one(
    folder: SegmentedFolder, segment: Segment, choice: Choice, before: Path | None, init: str, how: How
) -> Finished:
    """`before` is the run of the segment in front of it, None for the first."""
    ours, initial = choice_of(segment, choice), None
    if init == "previous" and before:
        initial = before / "checkpoints" / "latest.pt"
        width = load_checkpoint(initial)["run"]["model"]["width"]  # of equal width, whatever their frames
        ours = ours._replace(config=ours.config.replaced({"dec_width": width}))
    run = RunFolder.at(folder.path / "segments", segment.name, ours, overwrite=False)
    finished = finished_run(run)
    if finished:
        print("finished before")
    return finished or train_run(ours, run, how._replace(initial=initial))


def finished_run(run: RunFolder) -> Finished | None:
    """What a run that was trained to its end says of itself; None for any other. Raises UserError."""
    if not run.latest.is_file():
        return None
    state = load_checkpoint(run.latest)
    if state["progress"]["epoch"] < state["run"]["config"]["train"]["epochs"]:
        return None
    return Finished(state["run"], state["evaluation"])


def _plan(folder: SegmentedFolder, ask: Invocation, choice: Choice) -> tuple[Plan, bool]:
    """The plan that the folder holds, or a new one, and whether it is new. Raises UserError where the wishes differ."""
    video, wishes = choice.config.video, Wishes(ask.segment_frames, ask.segment_scenes, ask.segment_init)
    if folder.plan.is_file() and not ask.overwrite:
        plan = read_plan(folder.plan)
        if (plan.wishes, plan.frames) != (wishes, video.frames):
            raise UserError(
                f"{folder.path} holds a run in segments that were asked for otherwise ({_told(plan.wishes)}, --frames "
                f"{plan.frames or 'all'}): give these to resume it, choose another --exp-id, or --overwrite"
            )
        return plan, False
    if folder.path.is_dir() and not ask.overwrite and any(folder.path.iterdir()):
        raise UserError(
            f"{folder.path} holds something that is no run in segments: choose another --exp-id, or --overwrite to "
            "move it aside"
        )
    return plan_video(video.data, video.frames, wishes, progress=True), True


def _told(wishes: Wishes) -> str:
    scenes = " --segment-scenes" if wishes.scenes else ""
    return f"--segment-frames {wishes.frames}{scenes} --segment-init {wishes.init}"


@contextlib.contextmanager
def _claimed(folder: SegmentedFolder, plan: Plan, fresh: bool, overwrite: bool) -> Iterator[None]:
    """The folder with its plan, locked. A new one in which nothing could be trained is gone again afterwards."""
    if overwrite and folder.path.exists():
        with lock.locked(folder.path):
            pass
        move_aside(folder.path)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with lock.locked(folder.path):
            if fresh:
                write_plan(folder.plan, plan)
            try:
                yield
            except UserError:
                if fresh and not (folder.path / "segments").exists():
                    folder.plan.unlink()
                raise
    finally:
        with contextlib.suppress(OSError):
            folder.path.rmdir()  # where nothing is in it


def log_whole(folder: SegmentedFolder, values: dict[str, float], choice: Choice, parts: int) -> None:
    """The values of the whole, in the folder's own TensorBoard and metrics.jsonl, in place of earlier ones."""
    events, lines, epochs = events_folder(folder.path), metrics_file(folder.path), choice.config.train.epochs
    for old in (*events.glob("events.*"), lines):
        old.unlink(missing_ok=True)
    with RunLogger(events, lines, 0) as logger:
        logger.scalars(values, epochs)
        logger.text("Model/Info/run", f"{parts} segments; `Eval/` is of all their frames together.", epochs)
        logger.record("eval", {"epoch": epochs, "segments": parts, **values})
