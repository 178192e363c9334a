"""Where the numbers of a run go: TensorBoard and metrics.jsonl, from the same dictionaries.

A failing disk or writer warns once and the run goes on without its log. A tag that is not in the table is our own
mistake, and raises.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from hnerv.errors import RunError
from hnerv.tracking.layout import layout
from hnerv.tracking.projector import Points, write_points
from hnerv.tracking.repair import repair_events, repair_lines
from hnerv.tracking.tags import tag_of
from hnerv.viz.image import Encoded


class NullLogger:
    """Writes nothing: the contract of a logger, for tests and for runs that want none.

    `shows` says whether pictures are seen by anyone, so that they need not be drawn otherwise; `fresh` whether the
    pages that stand at the start of a run are still to be written.
    """

    shows = False
    fresh = True

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

    def image(self, tag: str, picture: Encoded, step: int) -> None:
        """A PNG, or a GIF, which plays."""

    def layout(self) -> None:
        """The custom-scalars dashboard of `hnerv.tracking.layout`."""

    def hparams(self, settings: dict[str, object], metrics: Sequence[str]) -> None:
        """The settings of the run, and the tags by which runs are compared, in the run itself: no sub-run."""

    def graph(self, model: nn.Module, inputs: Tensor) -> None:
        """The operations of `model` on `inputs`; its outputs are tensors."""

    def projector(self, points: Points) -> None:
        """Embeddings for the projector; they take the place of earlier ones."""

    def record(self, kind: str, values: dict[str, object]) -> None:
        """One line of metrics.jsonl."""

    def position(self) -> dict[str, int]:
        """Flushes; {file: bytes written so far}. `rewind` takes the run's files back to it. Saved in checkpoints."""
        return {}

    def close(self) -> None:
        """Nothing may be written afterwards."""


class RunLogger(NullLogger):
    """Writes event files into the folder `events` and lines into the file `metrics` (None: no lines).

    `purge_step` is 0 for a fresh run, and the first step still to come of a resumed one, after `rewind`. `report_to`
    is a row of WRITERS, or 'none'.
    """

    def __init__(
        self, events: Path, metrics: Path | None, purge_step: int, report_to: str = "tensorboard"
    ) -> None:  # fmt: skip
        self.events, self.metrics = events, metrics
        self.shows = report_to != "none"
        self.fresh = not any(events.glob("events.*"))
        self._warned = False
        self._writer = self._lines = self._hook = None
        if self.shows:
            self._guarded(self._open_writer, WRITERS[report_to], purge_step)
        self._guarded(self._open_lines)

    def _open_writer(self, opener: Callable, purge_step: int) -> None:
        before = threading.excepthook
        self._hook, threading.excepthook = before, lambda fault: _is_writer(fault.thread) or before(fault)
        self._writer = opener(self.events, purge_step)

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
        self._write("text", tag, "add_text", _utf8(markdown), step)

    def image(self, tag: str, picture: Encoded, step: int) -> None:
        self._write("image", tag, "add_encoded", picture, step)

    def layout(self) -> None:
        self._call("add_custom_scalars", layout())

    def hparams(self, settings: dict[str, object], metrics: Sequence[str]) -> None:
        for name in metrics:
            tag_of(name, "scalar")
        self._call("add_settings", {name: _utf8(value) for name, value in settings.items()}, metrics)

    def graph(self, model: nn.Module, inputs: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about the shapes that it takes for constants
            self._call("add_graph", model, inputs, False, False)

    def projector(self, points: Points) -> None:
        self._call("add_points", points)

    def record(self, kind: str, values: dict[str, object]) -> None:
        line = json.dumps({"kind": kind, **values}, allow_nan=False)
        if self._lines:
            self._guarded(self._lines.write, line + "\n")

    def position(self) -> dict[str, int]:
        """{name of a log file: its bytes}, once all that was logged is on the disk; see `rewind`.

        Raises RunError where the folder can no longer be read: a checkpoint that knew no logs would lose them.
        """
        self._guarded(self._flush_writer)
        self._guarded(self._flush_lines)
        sizes = {}
        try:
            files = _log_files(self.events, self.metrics)
        except OSError as error:
            raise RunError(
                f"cannot write logs to {self.events} ({error}); what was saved is intact: fix the folder, then run "
                "the same command"
            ) from error
        for path in files:
            with contextlib.suppress(OSError):  # it may vanish at any time
                sizes[path.name] = path.stat().st_size
        return sizes

    def close(self) -> None:
        for file in (self._lines, self._writer):
            if file:
                self._guarded(file.close)
        threading.excepthook = self._hook or threading.excepthook
        self._writer = self._lines = self._hook = None

    def _write(self, kind: str, name: str, method: str, *values: object) -> None:
        tag_of(name, kind)
        self._call(method, name, *values)

    def _call(self, method: str, *values: object) -> None:
        if self._writer:
            self._guarded(lambda: getattr(self._writer, method)(*values))

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
                logging.getLogger("hnerv").warning("logging to %s failed; the run continues: %s", self.events, error)
            self._warned = True


def _is_writer(thread: threading.Thread | None) -> bool:
    """TensorBoard's own, whose errors its next flush raises too, where they are told in one line."""
    return type(thread).__name__ == "_AsyncWriterThread"


def _tensorboard(events: Path, purge_step: int):
    """A SummaryWriter, with pictures that are encoded already and hyperparameters that open no sub-run."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    class Writer(SummaryWriter):
        def add_points(self, points: Points) -> None:
            write_points(events, points)

        def add_encoded(self, tag: str, picture: Encoded, step: int) -> None:
            image = Summary.Image(
                height=picture.height, width=picture.width, colorspace=3, encoded_image_string=picture.data
            )
            self.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

        def add_settings(self, settings: dict[str, object], metrics: Sequence[str]) -> None:
            for summary in hparams(settings, dict.fromkeys(metrics, 0.0)):
                self.file_writer.add_summary(summary, 0)

    return Writer(str(events), purge_step=purge_step)


def _utf8(value: object) -> object:
    """File names need not be UTF-8, event files must be."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _wandb(events: Path, purge_step: int):
    from hnerv.tracking.wandb_writer import WandbWriter

    return WandbWriter(events.parent)


WRITERS: dict[str, Callable] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Name -> function of the events' folder and the purge step -> an object with the methods of `_tensorboard`'s."""


def events_folder(run: Path) -> Path:
    """What `tensorboard --logdir` is given."""
    return run / "tensorboard"


def metrics_file(run: Path) -> Path:
    """One JSON object a line."""
    return run / "metrics.jsonl"


def rewind(run: Path, position: dict[str, int]) -> None:
    """Cut the logs of a run back to where a checkpoint saw them, so that no step is logged twice, and mend them.

    TensorBoard's own purge cannot do it: it goes by step, and some tags count epochs and others steps.
    """
    for path in _log_files(events_folder(run), metrics_file(run)):
        if path.name not in position:
            path.unlink()
            continue
        if path.stat().st_size > position[path.name]:
            os.truncate(path, position[path.name])
        (repair_lines if path == metrics_file(run) else repair_events)(path)


def _log_files(events: Path, metrics: Path | None) -> list[Path]:
    found = sorted(events.glob("events.*"))
    return [*found, metrics] if metrics and metrics.is_file() else found
