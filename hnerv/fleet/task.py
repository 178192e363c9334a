"""Training one video of a fleet: from its newest checkpoint in storage to its end, in a local folder.

Imports no torch before the number of threads is known.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnerv.command import line_and_status, pick_device, set_up_torch
from hnerv.config import LogConfig
from hnerv.errors import Interrupted, OtherRun, RunError, first_line
from hnerv.files import scratch_folder
from hnerv.fleet.manifest import MANIFEST, FleetVideo
from hnerv.fleet.status import Status, read_status, write_status
from hnerv.runs import RUN_FILES
from hnerv.storage import Storage, StorageError

if TYPE_CHECKING:
    from hnerv.training.chunks import Run
    from hnerv.training.signals import StopSignals
    from hnerv.training.trainer import Trainer

FREE_SECONDS, TIME_SHARE = 2.0, 0.01
"""A checkpoint is handed over if this has so far taken at most FREE_SECONDS plus this share of the task's time."""
REPORT_SECONDS = 10.0
"""A status is written at least so often."""
WRITE_ORDER = {"segments.json": -2, "config.json": -1, "best.pt": 1, "latest.pt": 2}
"""All other files: 0. A checkpoint follows the logs that it refers to, which may be longer than it knows."""


class TaskOptions(NamedTuple):
    """Options of every task. `command` is recorded in environment.json; `gpu_share` is its share of a GPU."""

    log: LogConfig
    device: str
    threads: int
    command: list[str]
    deterministic: bool = False
    gpu_share: float = 1.0


def train_video(video: FleetVideo, address: str, options: TaskOptions) -> Status:
    """Train a video of the fleet at `address` -> its status, which is also written there. A finished one is kept.

    Errors of the video or its run become the status. If a newer attempt has taken over, its status is returned.
    Raises StorageError, and Interrupted with everything saved.
    """
    storage = Storage(address)
    if not storage.exists(MANIFEST):
        return Status("failed", f"{address} is not visible from this node: pass -o a shared folder or an address")
    if (before := read_status(storage, video.name)).state == "finished":
        return before
    hand_over = HandOver(storage, video.name, before)
    try:
        hand_over.fetch(before)
        values = _train(video, options, hand_over)
        status = hand_over.push(state="finished", values=values, progress=1.0)
    except (Interrupted, KeyboardInterrupt) as error:
        with contextlib.suppress(StorageError, TakenOver):  # the stop matters more than the steps it loses
            hand_over.push(state="stopped")
        if isinstance(error, Interrupted):  # its message names the local folder
            raise Interrupted(error.status - 128, "stopped; run the same command to resume") from None
        raise
    except TakenOver:
        return read_status(storage, video.name)
    except StorageError:
        raise
    except Exception as error:
        if not (expected := line_and_status(error)):
            logging.getLogger("hnerv").exception("a fault of the program")
        cause = expected[0] if expected else f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, OtherRun):
            cause = f"{error.cause}: pass its settings, choose another name, or move it aside"
        cause = cause.replace(str(hand_over.scratch), storage.address).replace("--exp-id", "name")
        return hand_over.push(state="failed", cause=cause)
    finally:
        hand_over.close()
    if hand_over.stop:
        raise hand_over.stop.interruption("stopped; run the same command to resume")
    return status


def _train(video: FleetVideo, options: TaskOptions, hand_over: HandOver) -> dict[str, object]:
    """Train all chunks -> the values of the table."""
    set_up_torch(options.threads, options.deterministic, benchmark=True)
    from hnerv.report.results import headline_values, read_run
    from hnerv.training.chunks import prepare_run, train_chunk
    from hnerv.training.run import RuntimeOptions, check_settings

    sys.argv, device = options.command, pick_device(options.device)
    runtime = RuntimeOptions(device, options.log, gpu_share=options.gpu_share, on_save=hand_over.on_save)
    check_settings(video.choice.config, options.log)
    with prepare_run(hand_over.scratch, video.name, video.choice, video.chunk_options, False) as run:
        for chunk in run.chunks():
            hand_over.begin(run)
            run.add(train_chunk(chunk, runtime))
            hand_over.push()
        hand_over.stop = run.results[-1].stop
        run.close(options.log.report_to)
    return headline_values(read_run(hand_over.folder))


class TakenOver(RunError):
    """A newer attempt is training the video."""


class HandOver:
    """Copies a run folder from and to storage, and writes its status there.

    The newest attempt owns a video. An earlier one that still runs, on a node that was cut off, ends at its next
    hand-over.
    """

    def __init__(self, storage: Storage, name: str, before: Status) -> None:
        self.storage, self.name = storage, name
        self.scratch = scratch_folder("run")
        self.folder = self.scratch / name
        lost = before.state == "running"
        repeated = before.repeated_steps + lost * max(before.trained - before.kept, 0)
        fresh = Status("running", owner=uuid.uuid4().hex, progress=before.progress)
        self.status = fresh._replace(retries=before.retries + lost, repeated_steps=repeated)
        self._start, self._span = time.monotonic(), (0.0, 1.0)
        self._trainer: Trainer | None = None
        self.stop: StopSignals | None = None  # a request that came after the last epoch
        self._first_step = 0
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._stored: dict[Path, tuple[int, int, int]] = {}
        self._write()
        self._reports = threading.Thread(target=self._report, daemon=True)
        self._reports.start()

    def fetch(self, before: Status) -> None:
        """Copy the run from storage. Raises StorageError if the checkpoint of the attempt `before` is not there."""
        self.storage.fetch(self.name, RUN_FILES, self.scratch)
        self._stored = self._versions()
        if before.kept and not any(path.name in ("latest.pt", "best.pt") for path in self._stored):
            raise StorageError(
                f"no checkpoint in {self.storage.address}/{self.name}: restore it, or remove that folder"
            )

    def begin(self, run: Run) -> None:
        """Called before each chunk: notes its part of the video, and lets go of the trainer of the one before."""
        self.status, self._trainer = self._current(), None
        counts, done = [chunk.count for chunk in run.plan.chunks] if run.plan else [1], len(run.results)
        self._span = sum(counts[:done]) / sum(counts), counts[done] / sum(counts)

    def on_save(self, trainer: Trainer) -> None:
        """Called when the training of a chunk starts, and after each write of latest.pt."""
        if trainer is not self._trainer:
            self._first_step, self._trainer = trainer.global_step - self.status.trained, trainer
        elif self.status.handing <= FREE_SECONDS + TIME_SHARE * (time.monotonic() - self._start):
            start = time.monotonic()
            try:
                self.push()
            except StorageError as error:
                self.status = self.status._replace(handing=self.status.handing + time.monotonic() - start)
                logging.getLogger("hnerv").warning("%s (training continues; the next checkpoint follows)", error)

    def push(self, **changes: object) -> Status:
        """Bring the run in storage up to date, checkpoints last, then write the status with `changes`."""
        start = time.monotonic()
        self._check_owner()
        self._store_changes()
        self._check_owner()
        with self._lock:
            now, end = self._current(), time.monotonic()
            times = {"seconds": end - self._start, "handing": now.handing + end - start}
            self.status = now._replace(kept=now.trained, **times, **changes)
            self._write()
        return self.status

    def close(self) -> None:
        """Stop the reports and remove the local folder."""
        self._closed.set()
        self._reports.join()  # a late report could replace the status of the next attempt
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _current(self) -> Status:
        """The status with the progress of the trainer."""
        if not (trainer := self._trainer):
            return self.status
        done, share = self._span
        steps = trainer.config.train.epochs * trainer.steps_per_epoch
        progress = done + share * trainer.global_step / max(steps, 1)
        return self.status._replace(trained=trainer.global_step - self._first_step, progress=progress)

    def _store_changes(self) -> None:
        """Write the files that differ from those in storage, and remove those that are gone."""
        versions = self._versions()
        for path in sorted(versions, key=lambda path: (WRITE_ORDER.get(path.name, 0), path)):
            if self._stored.get(path) != versions[path]:
                if path.suffix == ".pt":  # the attempt may have been paused since the last check
                    self._check_owner()
                self.storage.write(path.relative_to(self.scratch).as_posix(), path.read_bytes())
                self._stored[path] = versions[path]
        for path in set(self._stored) - set(versions):
            self.storage.remove(path.relative_to(self.scratch).as_posix())
            del self._stored[path]

    def _versions(self) -> dict[Path, tuple[int, int, int]]:
        """{file: (inode, bytes, ns)} of all files that are not hidden. One that is replaced gets another inode."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]}

    def _check_owner(self) -> None:
        """Raises TakenOver for an attempt that another one has replaced."""
        if read_status(self.storage, self.name).owner not in ("", self.status.owner):
            raise TakenOver(f"another task is training {self.name} now: this one ends")

    def _report(self) -> None:
        while not self._closed.wait(REPORT_SECONDS):
            with self._lock, contextlib.suppress(RunError):  # the next one may arrive
                self._check_owner()
                self.status = self._current()
                self._write()

    def _write(self) -> None:
        self.status = self.status._replace(time=time.time())
        write_status(self.storage, self.name, self.status)
