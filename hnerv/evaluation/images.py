"""Ground truth and reconstruction side by side, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hnerv.dataset import FrameStore
from hnerv.errors import UserError
from hnerv.evaluation.measure import FRAMES_AT_ONCE, Report
from hnerv.metrics import round8
from hnerv.model import DualHeadHNeRV


@torch.no_grad()
def write_images(folder: Path, model: DualHeadHNeRV, store: FrameStore, report: Report) -> int:
    """One PNG per frame, source left and reconstruction right, named by frame and split. Returns their number.

    Raises UserError when they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_all(folder, model, store, report)
    except OSError as error:
        raise UserError(f"cannot write images to {folder} ({error}): free space or permission") from error


def _write_all(folder: Path, model: DualHeadHNeRV, store: FrameStore, report: Report) -> int:
    count = 0
    for name, split in report.splits():
        sees_frames = name == "val" and report.unseen == "encode"
        for where in split.positions.split(FRAMES_AT_ONCE):
            batch = store.batch(where)
            rgb = round8(model(batch.times, batch.frames if sees_frames else None, clip=False).rgb)
            pairs = torch.cat([batch.frames, rgb], dim=3).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            for position, pair in zip(where.tolist(), pairs, strict=True):
                Image.fromarray(np.ascontiguousarray(pair)).save(folder / f"{position:05d}_{name}.png")
                count += 1
    return count
