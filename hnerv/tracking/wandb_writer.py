"""Weights & Biases behind the run logger: the same tags and values. The package is imported here alone."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from hnerv.files import read_json
from hnerv.tracking.projector import Points
from hnerv.viz.image import Encoded

BATCH_TAGS = "Train_Batch/"


def _first_start(run: Path) -> str:
    """When the run began: the same when it is resumed, another after --overwrite."""
    starts = run / "environment.json"
    return str(read_json(starts)[0]["started"]) if starts.is_file() else ""


class WandbWriter:
    """What a run of wandb can show, by the methods of a SummaryWriter.

    The service counts its own steps and takes nothing back, so each value carries its step or epoch as the axis, and
    a run that was killed may show values of the steps after its last checkpoint twice.
    """

    def __init__(self, run: Path) -> None:
        import wandb

        self._wandb = wandb
        identity = hashlib.sha256(f"{run.resolve()} {_first_start(run)}".encode()).hexdigest()[:16]
        self._run = wandb.init(project="hnerv", name=run.name, id=identity, dir=str(run), resume="allow")
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric(f"{BATCH_TAGS}*", step_metric="step")

    def add_scalar(self, tag: str, value: float, step: int, walltime: float | None = None) -> None:
        """One value at its step or epoch."""
        axis = "step" if tag.startswith(BATCH_TAGS) else "epoch"
        self._run.log({tag: value, axis: step})

    def add_histogram(self, tag: str, values: Tensor, step: int) -> None:
        """The distribution of values (M,)."""
        self._run.log({tag: self._wandb.Histogram(values.detach().float().cpu().flatten().numpy()), "epoch": step})

    def add_encoded(self, tag: str, picture: Encoded, step: int) -> None:
        """A picture, or an animation, as it is encoded."""
        import io

        if picture.data[:3] == b"GIF":
            shown = self._wandb.Video(io.BytesIO(picture.data), format="gif")
        else:
            from PIL import Image

            shown = self._wandb.Image(Image.open(io.BytesIO(picture.data)))
        self._run.log({tag: shown, "epoch": step})

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """A page of Markdown, shown as it is written."""
        self._run.log({tag: self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>"), "epoch": step})

    def add_settings(self, settings: dict[str, object], metrics: Sequence[str]) -> None:
        """Settings of the run; the service finds the metrics itself."""
        self._run.config.update(settings, allow_val_change=True)

    def add_custom_scalars(self, layout: dict) -> None:
        """Charts are arranged on the page of the service."""

    def add_graph(self, model: nn.Module, inputs: Tensor, *_: object) -> None:
        """The service draws none."""

    def add_points(self, points: Points) -> None:
        """A table of the same points: the service projects its columns itself."""
        names = [*points.columns, "picture", "embedding"]
        rows = [
            [*row, self._wandb.Image(picture), vector.tolist()]
            for *row, picture, vector in zip(*points.columns.values(), points.thumbnails, points.vectors, strict=True)
        ]
        self._run.log({"embeddings": self._wandb.Table(columns=names, data=rows)})

    def flush(self) -> None:
        """The service sends on its own."""

    def close(self) -> None:
        """Nothing may be written afterwards."""
        self._run.finish()
