"""The log of a run: the same numbers go to TensorBoard event files and to metrics.jsonl.

Logging must not end a run: an error of the disk or of a service is logged once, as a warning, and training continues.
A tag that is not in the table is a bug of ours and raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from hnerv.errors import RunError
from hnerv.files import read_json
from hnerv.tracking.layout import layout
from hnerv.tracking.projector import Points, write_points
from hnerv.tracking.tags import tag_of
from hnerv.viz.image import Encoded


class NullLogger:
    """The contract of a logger, and the one that writes nothing.

    shows: whether images reach anyone; otherwise callers need not draw them. fresh: whether nothing was logged before,
    so that the pages of step 0 are still to be written.
    """

    shows = False
    fresh = True

    def __enter__(self) -> NullLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, values: dict[str, float], step: int) -> None:
        """{tag: value} at one step."""

    def curve(self, tag: str, steps: Sequence[int], values: Sequence[float], times: Sequence[float]) -> None:
        """One tag over many steps, each with its wall time in seconds since 1970."""

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Distribution of `values` (M,)."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A page of text."""

    def image(self, tag: str, picture: Encoded, step: int) -> None:
        """A PNG or an animated GIF."""

    def layout(self) -> None:
        """The custom-scalars dashboard of `hnerv.tracking.layout`."""

    def hparams(self, settings: dict[str, object], metrics: Sequence[str]) -> None:
        """The settings of the run and the tags by which TensorBoard compares runs."""

    def graph(self, model: nn.Module, inputs: Tensor) -> None:
        """The operations of `model` on `inputs`; all its outputs must be tensors."""

    def projector(self, points: Points) -> None:
        """Embeddings for the projector; they replace earlier ones."""

    def record(self, kind: str, values: dict[str, object]) -> None:
        """One line of metrics.jsonl."""

    def position(self) -> dict[str, int]:
        """Flush -> {file name: bytes written so far}, which a checkpoint stores and `rewind` takes."""
        return {}

    def close(self) -> None:
        """Flush and close; nothing may be logged afterwards."""


class RunLogger(NullLogger):
    """Writes event files to the folder `events` and lines to the file `metrics` (None: no lines).

    purge_step: 0 for a new run; for a resumed one, after `rewind`, its first step. report_to: 'tensorboard', 'wandb'
    (event files that Weights & Biases copies) or 'none' (no event files).
    """

    def __init__(self, events: Path, metrics: Path | None, purge_step: int, report_to: str = "tensorboard") -> None:
        self.events, self.metrics = events, metrics
        self.shows = report_to != "none"
        self.fresh = not any(events.glob("events.*"))
        self._warned = False
        self._writer = self._lines = self._wandb = self._hook = None
        if report_to == "wandb":
            self._guarded(self._start_wandb)
        if self.shows:
            self._guarded(self._open_writer, purge_step)
        if metrics:
            self._guarded(self._open_lines, metrics)

    def _start_wandb(self) -> None:
        """Start or resume the W&B run. wandb hooks into SummaryWriter, so this comes before the writer is created."""
        import wandb

        # A resumed run must continue its W&B run, and --overwrite must begin another in the same folder: the folder and
        # the time of its first start identify a run.
        run = self.events.parent
        starts = run / "environment.json"
        begun = read_json(starts)[0]["started"] if starts.is_file() else ""
        identity = hashlib.sha256(f"{run.resolve()} {begun}".encode()).hexdigest()[:16]
        self._wandb = wandb.init(
            project="hnerv", name=run.name, id=identity, dir=str(run), resume="allow", sync_tensorboard=True
        )

    def _open_writer(self, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # On a full disk TensorBoard's own thread would print a traceback. Its next flush raises the same error, and
        # that one becomes the warning.
        before = threading.excepthook
        self._hook, threading.excepthook = before, lambda fault: _is_writer(fault.thread) or before(fault)
        self._writer = SummaryWriter(str(self.events), purge_step=purge_step)

    def _open_lines(self, metrics: Path) -> None:
        self._lines = open(metrics, "a", encoding="utf-8")  # noqa: SIM115

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
        tag_of(tag, "image")
        self._guarded(self._add_encoded, tag, picture, step)

    def _add_encoded(self, tag: str, picture: Encoded, step: int) -> None:
        """`SummaryWriter.add_image` would decode the file and encode it again, and has no animations."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(height=picture.height, width=picture.width, colorspace=3)
        image.encoded_image_string = picture.data
        if self._writer:
            self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def layout(self) -> None:
        self._call("add_custom_scalars", layout())

    def hparams(self, settings: dict[str, object], metrics: Sequence[str]) -> None:
        for name in metrics:
            tag_of(name, "scalar")
        self._guarded(self._add_hparams, {name: _utf8(value) for name, value in settings.items()}, metrics)

    def _add_hparams(self, settings: dict[str, object], metrics: Sequence[str]) -> None:
        """`SummaryWriter.add_hparams` would write to a folder of its own, which TensorBoard lists as another run."""
        from torch.utils.tensorboard.summary import hparams

        if self._writer:
            for summary in hparams(settings, dict.fromkeys(metrics, 0.0)):
                self._writer.file_writer.add_summary(summary, 0)
        if self._wandb:
            self._wandb.config.update(settings, allow_val_change=True)

    def graph(self, model: nn.Module, inputs: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, which takes shapes for constants
            self._call("add_graph", model, inputs, False, False)

    def projector(self, points: Points) -> None:
        if self._writer:
            self._guarded(write_points, self.events, points)

    def record(self, kind: str, values: dict[str, object]) -> None:
        line = json.dumps({"kind": kind, **values}, allow_nan=False)
        if self._lines:
            self._guarded(self._lines.write, line + "\n")

    def position(self) -> dict[str, int]:
        """See NullLogger. Raises RunError where the folder cannot be read: a checkpoint without it would lose logs."""
        self._call("flush")
        if self._lines:
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
            with contextlib.suppress(OSError):  # deleted by someone else since it was listed
                sizes[path.name] = path.stat().st_size
        return sizes

    def _flush_lines(self) -> None:
        self._lines.flush()
        os.fsync(self._lines.fileno())

    def close(self) -> None:
        """Close files and writers; an error of one leaves none of the others open."""
        for end in (self._lines and self._lines.close, self._writer and self._writer.close):
            if end:
                self._guarded(end)
        if self._wandb:
            self._guarded(self._wandb.finish)
        threading.excepthook = self._hook or threading.excepthook
        self._writer = self._lines = self._wandb = self._hook = None

    def _write(self, kind: str, name: str, method: str, *values: object) -> None:
        tag_of(name, kind)
        self._call(method, name, *values)

    def _call(self, method: str, *values: object) -> None:
        if self._writer:
            self._guarded(getattr(self._writer, method), *values)

    def _guarded(self, call: Callable, *values: object) -> None:
        """Run `call`; log the first exception of this logger as a warning."""
        try:
            call(*values)
        except Exception as error:
            if not self._warned:
                logging.getLogger("hnerv").warning("logging to %s failed; the run continues: %s", self.events, error)
            self._warned = True


def _is_writer(thread: threading.Thread | None) -> bool:
    return type(thread).__name__ == "_AsyncWriterThread"


def _utf8(value: object) -> object:
    """File names need not be valid UTF-8, but event files must be."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def events_folder(run: Path) -> Path:
    """The folder to pass to `tensorboard --logdir`."""
    return run / "tensorboard"


def metrics_file(run: Path) -> Path:
    """One JSON object per line."""
    return run / "metrics.jsonl"


def rewind(run: Path, position: dict[str, int]) -> None:
    """Truncate the logs of a run to the `position` that a checkpoint stored, so that no step is logged twice.

    Files that the checkpoint does not know are deleted, and a last line of metrics.jsonl without its end is cut.
    """
    # TensorBoard's purge_step cannot do this alone: it drops all tags from one step on, but tags of an epoch count
    # epochs and tags of a batch count steps. A process appends only to an event file of its own, so the bytes after a
    # position are exactly those logged after the checkpoint.
    for path in _log_files(events_folder(run), metrics_file(run)):
        if path.name not in position:
            path.unlink()
        elif path.stat().st_size > position[path.name]:
            os.truncate(path, position[path.name])
    if (lines := metrics_file(run)).is_file():
        os.truncate(lines, lines.read_bytes().rfind(b"\n") + 1)


def _log_files(events: Path, metrics: Path | None) -> list[Path]:
    files = sorted(events.glob("events.*"))
    return [*files, metrics] if metrics and metrics.is_file() else files
