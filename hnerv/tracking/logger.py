"""Where the numbers of a run go: TensorBoard and metrics.jsonl, from the same dictionaries.

A failing disk or writer warns once and the run goes on without its log. A tag that is not in the table is our own
mistake, and raises.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from hnerv.tracking.tags import tag_of


class NullLogger:
    """Writes nothing: the contract of a logger, for tests and for runs that want none."""

    def __enter__(self) -> NullLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """{tag: value} at a step."""

    def curve(self, tag: str, steps: Sequence[int], values: Sequence[float], times: Sequence[float]) -> None:
        """One tag over many steps, each with the wall time (seconds since the epoch) at which it was reached."""

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Distribution of `values` (M,)."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A page of text."""

    def record(self, kind: str, values: dict[str, object]) -> None:
        """One line of metrics.jsonl."""

    def position(self) -> dict[str, int]:
        """Flushes; {file: bytes written so far}. `rewind` takes the run's files back to it. Saved in checkpoints."""
        return {}

    def close(self) -> None:
        """Nothing may be written afterwards."""


class RunLogger(NullLogger):
    """Writes event files into the folder `events` and lines into the file `metrics` (None: no lines).

    `purge_step` is 0 for a fresh run, and the first step still to come of a resumed one, after `rewind`.
    """

    def __init__(self, events: Path, metrics: Path | None, purge_step: int) -> None:
        self.events, self.metrics = events, metrics
        self._warned = False
        self._writer = self._lines = None
        self._guarded(self._open_writer, purge_step)
        self._guarded(self._open_lines)

    def _open_writer(self, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.events), purge_step=purge_step)

    def _open_lines(self) -> None:
        if self.metrics:
            self._lines = open(self.metrics, "a", encoding="utf-8")  # noqa: SIM115

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._write("scalar", name, "add_scalar", value, step)

    def curve(self, tag: str, steps: Sequence[int], values: Sequence[float], times: Sequence[float]) -> None:
        for step, value, time in zip(steps, values, times, strict=True):
            self._write("scalar", tag, "add_scalar", value, step, time)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._write("histogram", tag, "add_histogram", values, step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        self._write("text", tag, "add_text", markdown, step)

    def record(self, kind: str, values: dict[str, object]) -> None:
        line = json.dumps({"kind": kind, **values}, allow_nan=False)
        if self._lines:
            self._guarded(self._lines.write, line + "\n")

    def position(self) -> dict[str, int]:
        """{name of a log file: its bytes}, once all that was logged is on the disk; see `rewind`."""
        self._guarded(self._flush_writer)
        self._guarded(self._flush_lines)
        sizes = {}
        for path in _log_files(self.events, self.metrics):
            with contextlib.suppress(OSError):  # it may vanish at any time
                sizes[path.name] = path.stat().st_size
        return sizes

    def close(self) -> None:
        for file in (self._lines, self._writer):
            if file:
                self._guarded(file.close)
        self._writer = self._lines = None

    def _write(self, kind: str, name: str, method: str, *values: object) -> None:
        tag_of(name, kind)
        if self._writer:
            self._guarded(getattr(self._writer, method), name, *values)

    def _flush_writer(self) -> None:
        if self._writer:
            self._writer.flush()

    def _flush_lines(self) -> None:
        if self._lines:
            self._lines.flush()
            os.fsync(self._lines.fileno())

    def _guarded(self, call: Callable, *values: object) -> None:
        """Logging must not end a run: whatever a writer raises is said once."""
        try:
            call(*values)
        except Exception as error:
            if not self._warned:
                logging.getLogger("hnerv").warning("logging to %s failed, the run goes on: %s", self.events, error)
            self._warned = True


def events_folder(run: Path) -> Path:
    """What `tensorboard --logdir` is given."""
    return run / "tensorboard"


def metrics_file(run: Path) -> Path:
    """One JSON object a line."""
    return run / "metrics.jsonl"


def rewind(run: Path, position: dict[str, int]) -> None:
    """Cut the logs of a run back to where a checkpoint saw them, so that no step is logged twice.

    TensorBoard's own purge cannot do it: it goes by step, and some tags count epochs and others steps.
    """
    for path in _log_files(events_folder(run), metrics_file(run)):
        if path.name not in position:
            path.unlink()
        elif path.stat().st_size > position[path.name]:
            os.truncate(path, position[path.name])


def _log_files(events: Path, metrics: Path | None) -> list[Path]:
    found = sorted(events.glob("events.*"))
    return [*found, metrics] if metrics and metrics.is_file() else found
