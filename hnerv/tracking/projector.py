"""The files that TensorBoard's projector reads from the events folder: vectors, metadata and thumbnails."""

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

CONFIG = f"""embeddings {{
  tensor_name: "patch embeddings"
  tensor_path: "projector/vectors.tsv"
  metadata_path: "projector/metadata.tsv"
  sprite {{
    image_path: "projector/sprite.png"
    single_image_dim: {THUMBNAIL}
    single_image_dim: {THUMBNAIL}
  }}
}}
"""


class Points(NamedTuple):
    """vectors (M, D); columns {name: M values}; thumbnails (M, h, w, 3) uint8, at most 2048 of them."""

    vectors: np.ndarray
    columns: dict[str, Sequence[object]]
    thumbnails: np.ndarray


def write_points(events: Path, points: Points) -> None:
    """Write projector_config.pbtxt and the folder projector/ that it refers to. Raises OSError.

    Unlike `SummaryWriter.add_embedding`, this replaces earlier points, each file atomically.
    """
    vectors = io.BytesIO()
    np.savetxt(vectors, points.vectors, fmt="%.4g", delimiter="\t")
    rows = [points.columns, *zip(*points.columns.values(), strict=True)]
    metadata = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    files = {
        "projector/vectors.tsv": vectors.getvalue(),
        "projector/metadata.tsv": metadata.encode(),
        "projector/sprite.png": _sprite(points.thumbnails),
        "projector_config.pbtxt": CONFIG.encode(),
    }
    for name, data in files.items():
        with replacing(events / name) as file:
            file.write(data)


def _sprite(thumbnails: np.ndarray) -> bytes:
    """PNG of a square sheet, side x side cells filled row by row; the projector cuts it by single_image_dim."""
    side = math.ceil(math.sqrt(len(thumbnails)))
    sheet = np.zeros((side * side, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for cell, picture in zip(sheet, thumbnails, strict=False):
        cell[:] = np.asarray(Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    # (row, column, y, x) -> (row, y, column, x): pixels of one image line become neighbours
    sheet = sheet.reshape(side, side, THUMBNAIL, THUMBNAIL, 3).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(sheet.reshape(side * THUMBNAIL, side * THUMBNAIL, 3)).save(file, "PNG", compress_level=3)
    return file.getvalue()
