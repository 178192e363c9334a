"""Ground truth and reconstruction side by side, as PNG."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hnerv.data.store import Batch, FrameStore
from hnerv.errors import UserError
from hnerv.evaluation.measure import Report, frames_bar, in_batches
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import predict, to_uint8
from hnerv.tracking import split_label


@torch.no_grad()
def write_images(folder: Path, model: DualHeadHNeRV, store: FrameStore, report: Report, progress: bool = False) -> int:
    """One PNG per frame, source left and reconstruction right, named by frame and split. Returns their number.

    They replace those of an earlier evaluation. `progress` as in `evaluate`. Raises UserError when they cannot be
    written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_images(folder)
        count = sum(len(split.positions) for _, split in report.splits())
        with frames_bar("images", count, progress) as bar:
            for name, split in report.splits():
                label = split_label(name, report.unseen)
                for where in in_batches(split.positions, bar):
                    _write_batch(folder, model, store.batch(where), where, label, sees_frames=label != name)
        return count
    except OSError as error:
        raise UserError(f"cannot write images to {folder} ({error}): check disk space and permissions") from error


def remove_images(folder: Path) -> None:
    """Those that `write_images` once left in `folder`, and no others."""
    for path in folder.glob("*.png"):
        if re.fullmatch(r"\d{5,}_(train|val|val-encoded)\.png", path.name):
            path.unlink()


def _write_batch(
    folder: Path, model: DualHeadHNeRV, batch: Batch, where: Tensor, label: str, sees_frames: bool
) -> None:
    rgb = predict(model, batch.times, batch.frames if sees_frames else None, clip=False).rgb
    pairs = to_uint8(torch.cat([batch.frames, rgb], dim=3)).permute(0, 2, 3, 1).cpu().numpy()
    for position, pair in zip(where.tolist(), pairs, strict=True):
        Image.fromarray(np.ascontiguousarray(pair)).save(folder / f"{position:05d}_{label}.png")
