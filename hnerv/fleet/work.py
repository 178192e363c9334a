"""What a worker does: one run, in a folder of its own, whose checkpoints it hands to the driver as they are written.

Imports no torch before it knows how many threads it has.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hnerv import __version__
from hnerv.command import pick_device, set_up_torch
from hnerv.config import LogConfig
from hnerv.errors import Interrupted, RunError, UserError
from hnerv.fleet.parcels import LATEST, Parcel, Sender, unpack
from hnerv.presets import Choice
from hnerv.runs.record import RunRecord

if TYPE_CHECKING:
    from hnerv.fleet.places import Place
    from hnerv.runs import ChunkOptions, ChunkPlan
    from hnerv.training.trainer import Trainer

SHARE, ALLOWANCE = 100, 2.0
"""Checkpoints are handed over while that has taken no more than ALLOWANCE seconds and a SHAREth of the run's time."""
BEAT = 1.0
"""Seconds between two words on how far a run is."""


class Task(NamedTuple):
    """One run. `folder` is where the driver keeps it; `command` is what environment.json says."""

    job: str
    attempt: int
    choice: Choice
    log: LogConfig
    device: str
    threads: int
    place: Place
    folder: str
    command: list[str]
    frames: int = 0
    """How many the video has to give; 0: any number."""
    like: RunRecord | None = None
    """Record of the run on whose targets this one is trained too."""
    initial: bytes | None = None
    """Checkpoint of the segment in front, whose weights a fresh run begins with."""
    initial_name: str = ""
    deterministic: bool = False
    gpu_share: float = 1.0
    version: str = __version__


class Effort(NamedTuple):
    """What an attempt took: seconds in the worker, of these in handing over, how often, and how many bytes."""

    seconds: float = 0.0
    handing: float = 0.0
    times: int = 0
    bytes: int = 0


class Outcome(NamedTuple):
    """How an attempt ended: finished, failed, absent (the video must be sent) or stopped; `cause` in a line."""

    state: str
    cause: str = ""
    plan: ChunkPlan | None = None
    effort: Effort = Effort()


class Courier(Protocol):
    """The way to the driver."""

    def hand(self, parcel: Parcel, saved: int) -> None:
        """Returns when the parcel is on its way for sure. `saved` is the step of its checkpoint."""

    def tell(self, step: int, steps: int, saved: int) -> None:
        """How far the run is, of how many steps, and at which step the driver has it. May be lost."""


def train(task: Task, parcel: Parcel, sent: bytes | None, courier: Courier) -> Outcome:
    """Trains a run from what `parcel` holds of it to its end. Faults of the video or the run are an outcome."""
    start = time.monotonic()
    with _one_line() as outcome:
        _check_version(task)
        set_up_torch(task.threads, task.deterministic, benchmark=True)
        sys.argv = task.command
        folder = _fresh_folder()
        unpack(parcel, folder)
        handing = Handing(courier, Sender(folder, parcel), LATEST in parcel.pieces)
        try:
            outcome.append(_train(task, folder, sent, handing))
        except (UserError, RunError, Interrupted) as error:
            handing.all()
            cause = str(error).replace(str(folder), task.folder)
            outcome.append(Outcome("stopped" if isinstance(error, Interrupted) else "failed", _line(cause)))
        finally:
            handing.end()
            shutil.rmtree(folder, ignore_errors=True)
        effort = handing.effort._replace(seconds=round(time.monotonic() - start, 3))
        outcome[0] = outcome[0]._replace(effort=effort)
    return outcome[0]


def _train(task: Task, folder: Path, sent: bytes | None, handing: Handing) -> Outcome:
    import torch

    from hnerv.data.store import load_material
    from hnerv.fleet.places import locate
    from hnerv.model import build_model
    from hnerv.runs.folder import RunFolder
    from hnerv.training.optim import build_optimizer
    from hnerv.training.run import ChunkRun, RuntimeOptions, check_settings, device_errors, fit

    path, device = locate(task.place, sent), pick_device(task.device)
    options = RuntimeOptions(device, task.log, gpu_share=task.gpu_share, on_save=handing.saved)
    check_settings(task.choice.config, task.log)
    chunk = ChunkRun(task.choice, RunFolder(folder, False), task.frames, _initial(task, folder.parent), task.like)
    config = chunk.config
    with device_errors(config, chunk.folder.latest):
        material = load_material(config.replaced({"data": str(path)}) if path else config, device, progress=True)
        if path:  # the record names the video as the driver knows it
            material = material._replace(video=material.video._replace(source=task.place.source))
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, material.scene).to(device, memory_format=torch.channels_last)
        fit(chunk, material, model, build_optimizer(model, config.train), options)
    handing.all()
    return Outcome("finished")


def _initial(task: Task, folder: Path) -> Path | None:
    """The checkpoint to begin with, under the name that its run has, which the record keeps."""
    if task.initial is None:
        return None
    path = folder / "initial" / task.initial_name / LATEST
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(task.initial)
    return path


def plan(task: Task, wishes: ChunkOptions, sent: bytes | None) -> Outcome:
    """Divides a video into segments, which means to decode it where scenes are wanted."""
    with _one_line() as outcome:
        _check_version(task)
        set_up_torch(task.threads)
        from hnerv.fleet.places import locate
        from hnerv.runs import plan_video

        path = locate(task.place, sent)
        data = str(path) if path else task.place.data
        video = task.choice.config.video
        plan = plan_video(data, video.frames, wishes, raw_video=video.raw_video)
        outcome.append(Outcome("finished", plan=plan))
    return outcome[0]


def nothing(task: Task, *given: object) -> Outcome:
    """A task of no work that is given what a run is given, to measure what the engine costs."""
    return Outcome("finished", task.job)


def _check_version(task: Task) -> None:
    if task.version != __version__:
        raise UserError(
            f"the worker has hnerv {__version__}, the driver {task.version}: install the same version on both"
        )


@contextlib.contextmanager
def _one_line() -> Iterator[list[Outcome]]:
    """A list to put the outcome into; what the block raises becomes one."""
    from hnerv.fleet.places import Absent

    outcome: list[Outcome] = []
    try:
        yield outcome
    except Absent as error:
        outcome.append(Outcome("absent", f"{error} is missing on the worker, or differs there"))
    except (UserError, RunError) as error:
        outcome.append(Outcome("failed", _line(str(error))))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        outcome.append(Outcome("failed", _line(f"on the worker, {place}{error.strerror or error}")))


class Handing:
    """Hands a run over as its checkpoints are written, and says between them how far it is."""

    def __init__(self, courier: Courier, sender: Sender, resumed: bool) -> None:
        self.courier, self.sender = courier, sender
        self.resumed = resumed
        self.trainer: Trainer | None = None
        self.step_saved = 0
        self.effort = Effort()
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._tell_now_and_then, daemon=True)

    def saved(self, trainer: Trainer) -> None:
        """The trainer begins, or has written latest.pt."""
        if self.trainer is None:
            self.trainer = trainer
            self.step_saved = trainer.global_step if self.resumed else 0
            self._beat.start()
        elif self.effort.handing <= ALLOWANCE + (time.monotonic() - self._start) / SHARE:
            self.all()
        self._tell()

    def all(self) -> None:
        """Hands over what there is."""
        start = time.monotonic()
        saved = self.trainer.global_step if self.trainer else self.step_saved
        parcel = self.sender.changes()
        self.courier.hand(parcel, saved)
        self.step_saved = saved
        _, handing, times, sent = self.effort
        handing += time.monotonic() - start
        self.effort = Effort(0.0, round(handing, 3), times + 1, sent + parcel.size)

    def end(self) -> None:
        """Says no more."""
        self._ended.set()

    def _tell(self) -> None:
        trainer = self.trainer
        steps = trainer.config.train.epochs * trainer.steps_per_epoch
        self.courier.tell(trainer.global_step, steps, self.step_saved)

    def _tell_now_and_then(self) -> None:
        while not self._ended.wait(BEAT):
            self._tell()


def _fresh_folder() -> Path:
    from hnerv.fleet.places import scratch

    folder = scratch() / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _line(text: str) -> str:
    return " ".join(text.split())


Entry = Callable[..., Outcome]
