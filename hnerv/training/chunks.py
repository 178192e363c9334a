"""The chunks of a run: which are left to train, in which folder, and the values over all of them.

Each chunk has its own network and run folder; most videos are one chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from hnerv.data.chunks import ChunkOptions, ChunkPlan, PlannedChunk, plan_video
from hnerv.data.clip import warned_once
from hnerv.data.clip.targets import check_rows
from hnerv.data.store import load_material
from hnerv.data.video import frame_count
from hnerv.errors import UserError
from hnerv.evaluation import combine
from hnerv.files import move_aside
from hnerv.model import build_model
from hnerv.presets import Choice
from hnerv.runs import ChunkedFolder, lock, read_plan, targets_of, write_plan
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.folder import RunFolder, refuse_unwritable
from hnerv.runs.names import folder_name
from hnerv.runs.record import RunRecord
from hnerv.tracking import RunLogger, events_folder, metrics_file
from hnerv.training.optim import build_optimizer
from hnerv.training.run import ChunkRun, Result, RuntimeOptions, check_material, device_errors, fit


class Run:
    """output/<exp>: the chunks of a video and their results so far. Made by `prepare_run`."""

    def __init__(self, choice: Choice, folder: RunFolder | ChunkedFolder, plan: ChunkPlan | None = None) -> None:
        self.choice, self.folder, self.plan = choice, folder, plan
        self.results: list[Result] = []

    @property
    def record(self) -> RunRecord:
        """The record of the first chunk."""
        return self.results[0].record

    def chunks(self) -> Iterator[ChunkRun]:
        """The chunks that are left to train, in the order of the video; each result is passed to `add`.

        Finished chunks are kept as they are; their video is read again only where it has moved. Raises UserError.
        """
        if self.plan is None:
            yield ChunkRun(self.choice, self.folder)
            return
        for planned in self.plan.chunks:
            print(f"\nsegment  {planned.number + 1} of {len(self.plan.chunks)}: frames {planned.frames}", flush=True)
            chunk = self._chunk(planned)
            if result := finished_run(chunk.folder):
                print("already finished")
                self.add(result)
            else:
                yield chunk

    def add(self, result: Result) -> None:
        """Raises Interrupted where a stop was requested and chunks are left."""
        self.results.append(result)
        done, count = len(self.results), len(self.plan.chunks) if self.plan else 1
        if result.stop and done < count:
            raise result.stop.interruption(
                f"stopped after segment {done} of {count}, which is saved; run the same command without --overwrite to "
                "resume"
            )

    def close(self, report_to: str) -> dict[str, float]:
        """{Eval/ tag: value} over all chunks, which are logged where there are several."""
        if self.plan is None:
            return self.results[0].values
        values = combine([result.values for result in self.results])
        log_chunks(self.folder, values, self.choice.config.train.epochs, len(self.results), report_to)
        return values

    def _chunk(self, planned: PlannedChunk) -> ChunkRun:
        choice, initial = chunk_choice(planned, self.choice), None
        if self.plan.options.init == "previous" and self.results:
            # Equal widths, whatever the number of frames, so that all weights can be copied.
            width = self.results[-1].record.width
            choice = choice._replace(config=choice.config.replaced({"dec_width": width}))
            previous = self.plan.chunks[planned.number - 1]
            initial = self.folder.child(previous) / "checkpoints" / "latest.pt"
        folder = RunFolder.at(self.folder.path / "segments", planned.name, choice, overwrite=False)
        return ChunkRun(choice, folder, planned.count, initial, self.results[0].record if self.results else None)


@contextlib.contextmanager
def prepare_run(output: Path, exp_id: str, choice: Choice, options: ChunkOptions, overwrite: bool) -> Iterator[Run]:
    """Open the folder of a run, and divide the video if `options` do. Raises UserError if the folder cannot be used."""
    if not options.divides:
        yield Run(choice, RunFolder.at(output, exp_id, choice, overwrite))
        return
    folder = ChunkedFolder(output / folder_name(exp_id, choice, output, _option_words(options)))
    refuse_unwritable(folder.path)
    with _claimed(folder, overwrite), warned_once():
        plan = _plan(folder, options, choice)
        check_rows(choice.config.clip.clip_targets, plan.count)
        yield Run(choice, folder, plan)


def train_chunk(chunk: ChunkRun, options: RuntimeOptions) -> Result:
    """One network from its video to its last evaluation: what train_patch_dual.py does. Raises as `fit`.

    Video and model are released on return.
    """
    config, device = chunk.config, options.device
    # The frames, their split into training and unseen ones, and the CLIP embedding of every patch.
    material = load_material(config, device, progress=True)
    check_material(chunk, material)
    with device_errors(config, chunk.folder.latest):
        # Embedding of a frame's time -> decoder stages -> RGB head; the CLIP head reads the features of one stage.
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, material.scene).to(device, memory_format=torch.channels_last)
        # Muon for the kernels, Adam for everything else; the knots of a grid learn faster.
        optimizer = build_optimizer(model, config.train)
        # Minimises the pixel loss, after the warm-up pixel + lambda x CLIP, with --rate-weight also the size of the
        # file; with logs, evaluations and checkpoints.
        return fit(chunk, material, model, optimizer, options)


def chunk_choice(planned: PlannedChunk, choice: Choice) -> Choice:
    """The choice for one chunk of a video: its frames and its rows of the targets."""
    rows = targets_of(choice.config.clip.clip_targets, planned.first, planned.count)
    return choice._replace(config=choice.config.replaced({"frames": planned.frames, "clip_targets": rows}))


def finished_run(run: RunFolder) -> Result | None:
    """The result of a run that was trained to its end, None for any other. Raises UserError."""
    if not run.latest.is_file():
        return None
    checkpoint = load_checkpoint(run.latest)
    if checkpoint["progress"]["epoch"] < checkpoint["run"].config.train.epochs:
        return None
    return Result(checkpoint["run"], checkpoint["evaluation"])


def log_chunks(folder: ChunkedFolder, values: dict[str, float], epochs: int, count: int, report_to: str) -> None:
    """Writes the values over all chunks to the folder's own TensorBoard and metrics.jsonl, replacing earlier ones."""
    events, lines = events_folder(folder.path), metrics_file(folder.path)
    for old in (*events.glob("events.*"), lines):
        old.unlink(missing_ok=True)
    with RunLogger(events, lines, 0, report_to) as logger:
        logger.scalars(values, epochs)
        logger.text("Model/Info/run", f"{count} segments; the `Eval/` tags cover the frames of all of them.", epochs)
        logger.record("eval", {"epoch": epochs, "segments": count, **values})


def _plan(folder: ChunkedFolder, options: ChunkOptions, choice: Choice) -> ChunkPlan:
    """The plan in the folder, else a new one, which is written. Raises UserError where it divides differently."""
    video = choice.config.video
    if folder.plan.is_file():
        plan = read_plan(folder.plan)
        if (plan.options, plan.frames) != (options, video.frames):
            raise UserError(
                f"{folder.path} holds a run segmented with other flags ({_flags(plan)}; this command has "
                f"{_flags(plan._replace(options=options, frames=video.frames))}): pass its flags to resume it, choose "
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
    plan = plan_video(video.data, video.frames, options, progress=True, raw_video=video.raw_video)
    write_plan(folder.plan, plan)
    return plan


def _option_words(options: ChunkOptions) -> list[str]:
    """The options as `{params}` names them, without those at their defaults."""
    return [f"segment_{name}={value}" for name, value in options._asdict().items() if value not in (0, False, "none")]


def _flags(plan: ChunkPlan) -> str:
    options = plan.options
    scenes = "--segment-scenes " if options.scenes else ""
    return f"--segment-frames {options.frames} {scenes}--segment-init {options.init} --frames {plan.frames or 'all'}"


@contextlib.contextmanager
def _claimed(folder: ChunkedFolder, overwrite: bool) -> Iterator[None]:
    """Locks the folder, and moves one that is to be overwritten aside.

    Where a UserError leaves it without a chunk, it and the folders above it are restored.
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
            folder.path.rmdir()  # only if it is empty
            if aside:
                aside.rename(folder.path)
            for parent in made:
                parent.rmdir()
