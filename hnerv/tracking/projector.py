"""The files that TensorBoard's projector reads, beside the events: points, what is known of each, thumbnails."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hnerv.files import replacing

THUMBNAIL = 32
"""Height and width of a thumbnail, pixels."""


class Points(NamedTuple):
    """vectors (M, D); columns {name: M words}; thumbnails (M, h, w, 3) uint8, at most 2048 of them."""

    vectors: np.ndarray
    columns: dict[str, Sequence[object]]
    thumbnails: np.ndarray


def write_points(events: Path, points: Points) -> None:
    """projector_config.pbtxt, and the folder projector/ that it points to. Raises OSError."""
    folder = events / "projector"
    _write(folder / "vectors.tsv", _table(points.vectors))
    rows = zip(*points.columns.values(), strict=True)
    lines = ["\t".join(points.columns), *("\t".join(map(str, row)) for row in rows)]
    _write(folder / "metadata.tsv", ("\n".join(lines) + "\n").encode())
    _write(folder / "sprite.png", _sprite(points.thumbnails))
    _write(events / "projector_config.pbtxt", _config())


def _table(vectors: np.ndarray) -> bytes:
    text = io.StringIO()
    np.savetxt(text, vectors, fmt="%.4g", delimiter="\t")
    return text.getvalue().encode()


def _sprite(thumbnails: np.ndarray) -> bytes:
    """A square of cells, row by row, as the projector cuts it up."""
    side = math.ceil(math.sqrt(len(thumbnails)))
    sheet = np.zeros((side * side, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for cell, picture in zip(sheet, thumbnails, strict=False):
        cell[:] = np.asarray(Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    sheet = sheet.reshape(side, side, THUMBNAIL, THUMBNAIL, 3).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(sheet.reshape(side * THUMBNAIL, side * THUMBNAIL, 3)).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _config() -> bytes:
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    config = ProjectorConfig()
    embedding = config.embeddings.add(
        tensor_name="patch embeddings",
        tensor_path="projector/vectors.tsv",
        metadata_path="projector/metadata.tsv",
    )
    embedding.sprite.image_path = "projector/sprite.png"
    embedding.sprite.single_image_dim.extend([THUMBNAIL, THUMBNAIL])
    return text_format.MessageToString(config).encode()


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)
