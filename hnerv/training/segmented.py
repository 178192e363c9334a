"""A video in segments: one run after the other in one folder, each a run as any other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from hnerv.data.clip import warned_once
from hnerv.data.clip.targets import check_rows
from hnerv.data.video import frame_count
from hnerv.errors import UserError
from hnerv.evaluation.combining import combined
from hnerv.files import move_aside
from hnerv.flags import Invocation
from hnerv.presets import Choice
from hnerv.runs import Plan, Segment, SegmentedFolder, Wishes, lock, plan_video, read_plan, targets_of, write_plan
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.folder import RunFolder, folder_name, refuse_unwritable
from hnerv.runs.record import RunRecord
from hnerv.tracking import RunLogger, events_folder, metrics_file
from hnerv.training.checks import check_settings
from hnerv.training.limits import Limits
from hnerv.training.running import Finished, How, train_run


class Whole(NamedTuple):
    """All segments, trained: the folder, the record of the first, the values of all of them together."""

    folder: SegmentedFolder
    record: RunRecord
    values: dict[str, float]


def train_segments(ask: Invocation, choice: Choice, device: torch.device, limits: Limits) -> Whole:
    """Trains what is not trained yet, in the order of the video; no more than one segment is in memory.

    Finished segments are taken as they are; their video is read again only where it has moved. Raises as `train_run`,
    and UserError where the folder holds something else.
    """
    check_settings(choice.config, ask.log)
    wishes = Wishes(ask.segment_frames, ask.segment_scenes, ask.segment_init)
    folder = SegmentedFolder(ask.output / folder_name(ask.exp_id, choice, ask.output, _words(wishes)))
    refuse_unwritable(folder.path)
    with _claimed(folder, ask.overwrite), warned_once():
        plan, done = _plan(folder, wishes, choice), []
        check_rows(choice.config.clip.clip_targets, plan.count)
        for segment in plan.segments:
            print(f"\nsegment  {segment.number + 1} of {len(plan.segments)}: frames {segment.frames}", flush=True)
            like = done[0].record if done else None
            how = How(device, ask.log, limits, like, frames=segment.count, compile=ask.compile)
            done.append(_train_one(folder, segment, choice, done[-1] if done else None, wishes.init, how))
            if (asked := done[-1].asked) and len(done) < len(plan.segments):
                raise asked.interruption(
                    f"stopped after segment {len(done)} of {len(plan.segments)}, which is saved; run the same command "
                    "without --overwrite to resume"
                )
        values = combined([finished.values for finished in done])
        log_whole(folder, values, choice.config.train.epochs, len(done), ask.log.report_to)
    return Whole(folder, done[0].record, values)


def choice_of(segment: Segment, choice: Choice) -> Choice:
    """What is trained in one segment of a video."""
    rows = targets_of(choice.config.clip.clip_targets, segment.first, segment.count)
    return choice._replace(config=choice.config.replaced({"frames": segment.frames, "clip_targets": rows}))


def _train_one(
    folder: SegmentedFolder, segment: Segment, choice: Choice, before: Finished | None, init: str, how: How
) -> Finished:
    """`before` is what became of the segment in front of it, None for the first."""
    ours, warm = choice_of(segment, choice), init == "previous" and before is not None
    if warm:  # of equal width, whatever their frames
        ours = ours._replace(config=ours.config.replaced({"dec_width": before.record.width}))
    run = RunFolder.at(folder.path / "segments", segment.name, ours, overwrite=False)
    if finished := finished_run(run):
        print("already finished")
        return finished
    source = folder.path / "segments" / f"{segment.number - 1:05d}" / "checkpoints" / "latest.pt"
    return train_run(ours, run, how._replace(initial=source if warm else None))


def finished_run(run: RunFolder) -> Finished | None:
    """What a run that was trained to its end says of itself; None for any other. Raises UserError."""
    if not run.latest.is_file():
        return None
    state = load_checkpoint(run.latest)
    if state["progress"]["epoch"] < state["run"].config.train.epochs:
        return None
    return Finished(state["run"], state["evaluation"])


def _plan(folder: SegmentedFolder, wishes: Wishes, choice: Choice) -> Plan:
    """The plan that the folder holds, else a new one, written. Raises UserError where it is of another division."""
    video = choice.config.video
    if folder.plan.is_file():
        plan = read_plan(folder.plan)
        if (plan.wishes, plan.frames) != (wishes, video.frames):
            raise UserError(
                f"{folder.path} holds a run segmented with other flags ({_told(plan)}; this command has "
                f"{_told(plan._replace(wishes=wishes, frames=video.frames))}): pass its flags to resume it, choose "
                "another --exp-id, or pass --overwrite to move it aside"
            )
        if (count := frame_count(video.data, raw_video=video.raw_video)) != plan.total:
            raise UserError(
                f"{folder.path} was started on a video of {plan.total} frames, but {video.data} has {count}: set "
                "--data to that video, or choose another --exp-id"
            )
        return plan
    if any(not path.name.startswith(".") for path in folder.path.iterdir()):
        raise UserError(
            f"{folder.path} is not a segmented run: choose another --exp-id, or pass --overwrite to move it aside"
        )
    plan = plan_video(video.data, video.frames, wishes, progress=True, raw_video=video.raw_video)
    write_plan(folder.plan, plan)
    return plan


def _words(wishes: Wishes) -> list[str]:
    """As `{params}` and messages have them; those that were not asked for are left out."""
    return [f"segment_{name}={value}" for name, value in wishes._asdict().items() if value not in (0, False, "none")]


def _told(plan: Plan) -> str:
    wishes = plan.wishes
    scenes = "--segment-scenes " if wishes.scenes else ""
    return f"--segment-frames {wishes.frames} {scenes}--segment-init {wishes.init} --frames {plan.frames or 'all'}"


@contextlib.contextmanager
def _claimed(folder: SegmentedFolder, overwrite: bool) -> Iterator[None]:
    """The folder, locked; one that is to be overwritten moved aside.

    Where a UserError leaves it without a segment it is as it was before, and so are the folders above it.
    """
    aside = None
    if overwrite and folder.path.exists():
        with lock.locked(folder.path):
            pass
        aside = move_aside(folder.path)
    made = [parent for parent in folder.path.parents if not parent.exists()]
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with lock.locked(folder.path):
            for half_written in folder.path.glob(".*.tmp"):
                half_written.unlink()
            try:
                yield
            except UserError:
                if not (folder.path / "segments").exists():
                    folder.plan.unlink(missing_ok=True)
                raise
    finally:
        with contextlib.suppress(OSError):
            folder.path.rmdir()  # where nothing is in it
            if aside:
                aside.rename(folder.path)
            for parent in made:
                parent.rmdir()


def log_whole(folder: SegmentedFolder, values: dict[str, float], epochs: int, segments: int, report_to: str) -> None:
    """The values of the whole, in the folder's own TensorBoard and metrics.jsonl, in place of earlier ones."""
    events, lines = events_folder(folder.path), metrics_file(folder.path)
    for old in (*events.glob("events.*"), lines):
        old.unlink(missing_ok=True)
    with RunLogger(events, lines, 0, report_to) as logger:
        logger.scalars(values, epochs)
        logger.text("Model/Info/run", f"{segments} segments; the `Eval/` tags cover the frames of all of them.", epochs)
        logger.record("eval", {"epoch": epochs, "segments": segments, **values})
