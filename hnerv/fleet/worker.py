"""Work of a Ray worker: trains one run in a temporary folder and sends its checkpoints to the driver.

Imports no torch before the number of threads is known.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hnerv import __version__
from hnerv.command import pick_device, set_up_torch
from hnerv.config import LogConfig
from hnerv.errors import Interrupted, RunError, UserError
from hnerv.fleet.transfers import LATEST, ChangeTracker, FolderUpdate, apply_update
from hnerv.presets import Choice

if TYPE_CHECKING:
    from hnerv.fleet.locations import VideoLocation
    from hnerv.runs import ChunkOptions, ChunkPlan
    from hnerv.runs.record import RunRecord
    from hnerv.training.trainer import Trainer

FREE_SECONDS, TIME_SHARE = 2.0, 0.01
"""A checkpoint is sent if sending has so far taken at most FREE_SECONDS plus this share of the run's time."""
REPORT_INTERVAL = 1.0
"""Seconds between two progress reports."""


class Task(NamedTuple):
    """One run. `folder` is its folder on the driver; `command` is recorded in environment.json."""

    job: str
    attempt: int
    choice: Choice
    log: LogConfig
    device: str
    threads: int
    location: VideoLocation
    folder: str
    command: list[str]
    frames: int = 0
    """Number of frames that the video must have; 0: any number."""
    like: RunRecord | None = None
    """Record of the first segment's run, which decided on the targets."""
    initial: bytes | None = None
    """Checkpoint of the preceding segment that initialises the weights of a new run."""
    initial_name: str = ""
    deterministic: bool = False
    gpu_share: float = 1.0
    version: str = __version__


class Cost(NamedTuple):
    """Cost of an attempt: seconds in the worker, seconds of these spent sending, number of sends, bytes sent."""

    seconds: float = 0.0
    sending: float = 0.0
    sends: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def event_fields(self) -> dict[str, float]:
        """The value of "effort" in fleet.jsonl."""
        return dict(zip(("seconds", "handing", "times", "bytes"), self, strict=True))


class Outcome(NamedTuple):
    """End of an attempt: finished, failed, missing (the video must be sent) or stopped; `cause` on one line."""

    state: str
    cause: str = ""
    plan: ChunkPlan | None = None
    cost: Cost = Cost()


class Channel(Protocol):
    """Connection of a worker to the driver."""

    def send(self, update: FolderUpdate, saved: int) -> None:
        """Send an update; returns when it is stored outside the worker. `saved` is the step of its checkpoint."""

    def report(self, step: int, steps: int, saved: int) -> None:
        """Report progress: the current step, all steps, the step of the last sent checkpoint. May be lost."""


def train_run(task: Task, update: FolderUpdate, archive: bytes | None, channel: Channel) -> Outcome:
    """Train a run to its end, resuming from the files in `update`. Errors of the video or run become the outcome."""
    start = time.monotonic()
    with _errors_as_outcome() as outcome:
        _check_version(task)
        set_up_torch(task.threads, task.deterministic, benchmark=True)
        sys.argv = task.command
        folder = _new_run_folder()
        apply_update(update, folder)
        sender = CheckpointSender(channel, ChangeTracker(folder, update), LATEST in update.parts)
        try:
            outcome.append(_train(task, folder, archive, sender))
        except (UserError, RunError, Interrupted) as error:
            sender.send()
            cause = str(error).replace(str(folder), task.folder)
            outcome.append(Outcome("stopped" if isinstance(error, Interrupted) else "failed", _one_line(cause)))
        finally:
            sender.close()
            shutil.rmtree(folder, ignore_errors=True)
        cost = sender.cost._replace(seconds=round(time.monotonic() - start, 3))
        outcome[0] = outcome[0]._replace(cost=cost)
    return outcome[0]


def _train(task: Task, folder: Path, archive: bytes | None, sender: CheckpointSender) -> Outcome:
    import torch

    from hnerv.data.store import load_material
    from hnerv.fleet.locations import worker_path
    from hnerv.model import build_model
    from hnerv.runs.folder import RunFolder
    from hnerv.training.optim import build_optimizer
    from hnerv.training.run import ChunkRun, RuntimeOptions, check_material, check_settings, device_errors, fit

    path, device = worker_path(task.location, archive), pick_device(task.device)
    options = RuntimeOptions(device, task.log, gpu_share=task.gpu_share, on_save=sender.on_save)
    check_settings(task.choice.config, task.log)
    chunk = ChunkRun(task.choice, RunFolder(folder, False), task.frames, _initial(task, folder.parent), task.like)
    config = chunk.config
    material = load_material(config.replaced({"data": str(path)}) if path else config, device, progress=True)
    if path:  # the record contains the driver's path of the video
        material = material._replace(video=material.video._replace(source=task.location.source))
    check_material(chunk, material)
    with device_errors(config, chunk.folder.latest):
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, material.scene).to(device, memory_format=torch.channels_last)
        fit(chunk, material, model, build_optimizer(model, config.train), options)
    sender.send()
    return Outcome("finished")


def _initial(task: Task, folder: Path) -> Path | None:
    """Path of the initial checkpoint; its run's name is part of it, because the record contains that name."""
    if task.initial is None:
        return None
    path = folder / "initial" / task.initial_name / LATEST
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(task.initial)
    return path


def plan_segments(task: Task, options: ChunkOptions, archive: bytes | None) -> Outcome:
    """Divide a video into segments. Scene detection decodes all of it."""
    with _errors_as_outcome() as outcome:
        _check_version(task)
        set_up_torch(task.threads)
        from hnerv.fleet.locations import worker_path
        from hnerv.runs import plan_video

        path = worker_path(task.location, archive)
        data = str(path) if path else task.location.data
        video = task.choice.config.video
        plan = plan_video(data, video.frames, options, raw_video=video.raw_video)
        outcome.append(Outcome("finished", plan=plan))
    return outcome[0]


def no_op(task: Task, *inputs: object) -> Outcome:
    """A task that receives the inputs of a run and does nothing, to measure the overhead of the engine."""
    return Outcome("finished", task.job)


def _check_version(task: Task) -> None:
    if task.version != __version__:
        raise UserError(
            f"the worker has hnerv {__version__}, the driver {task.version}: install the same version on both"
        )


@contextlib.contextmanager
def _errors_as_outcome() -> Iterator[list[Outcome]]:
    """A list for the outcome; an expected error of the block becomes one."""
    from hnerv.fleet.locations import VideoMissing

    outcome: list[Outcome] = []
    try:
        yield outcome
    except VideoMissing as error:
        outcome.append(Outcome("missing", f"{error} is missing on the worker, or differs there"))
    except (UserError, RunError) as error:
        outcome.append(Outcome("failed", _one_line(str(error))))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        outcome.append(Outcome("failed", _one_line(f"on the worker, {name}{error.strerror or error}")))


class CheckpointSender:
    """Sends a run folder after each checkpoint, and reports progress in between."""

    def __init__(self, channel: Channel, tracker: ChangeTracker, resumed: bool) -> None:
        self.channel, self.tracker = channel, tracker
        self.resumed = resumed
        self.trainer: Trainer | None = None
        self.step_saved = 0
        self.cost = Cost()
        self._start = time.monotonic()
        self._closed = threading.Event()
        self._reporter = threading.Thread(target=self._report_regularly, daemon=True)

    def on_save(self, trainer: Trainer) -> None:
        """Called when training starts, and after each write of latest.pt."""
        if self.trainer is None:
            self.trainer = trainer
            self.step_saved = trainer.global_step if self.resumed else 0
            self._reporter.start()
        elif self.cost.sending <= FREE_SECONDS + TIME_SHARE * (time.monotonic() - self._start):
            self.send()
        self._report()

    def send(self) -> None:
        """Send all changes of the run folder."""
        start = time.monotonic()
        saved = self.trainer.global_step if self.trainer else self.step_saved
        update = self.tracker.changes()
        self.channel.send(update, saved)
        self.step_saved = saved
        sending = round(self.cost.sending + time.monotonic() - start, 3)
        self.cost = Cost(0.0, sending, self.cost.sends + 1, self.cost.bytes + update.size)

    def close(self) -> None:
        """Stop reporting."""
        self._closed.set()

    def _report(self) -> None:
        trainer = self.trainer
        steps = trainer.config.train.epochs * trainer.steps_per_epoch
        self.channel.report(trainer.global_step, steps, self.step_saved)

    def _report_regularly(self) -> None:
        while not self._closed.wait(REPORT_INTERVAL):
            self._report()


def _new_run_folder() -> Path:
    from hnerv.fleet.locations import scratch_folder

    folder = scratch_folder() / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _one_line(text: str) -> str:
    return " ".join(text.split())
