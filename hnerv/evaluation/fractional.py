"""Patches between those of the grid: does a patch decoded half a patch away look as good as a trained one?

B frames, P patches, h w patch, H W frame, in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hnerv.data.store import FrameStore
from hnerv.errors import UserError
from hnerv.evaluation.measure import Report, frames_bar, in_batches
from hnerv.geometry import PatchGrid, Window
from hnerv.metrics import frame_mse, psnr
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import predict_window, round8
from hnerv.tracking import split_name

SHIFTS: dict[str, tuple[int, int]] = {"horizontal": (0, 1), "vertical": (1, 0), "corner": (1, 1)}
"""Kind of position -> half patches that it lies below and to the right of a trained one."""


def half_grid(grid: PatchGrid) -> dict[str, list[Window]]:
    """{kind: windows of a patch's size}, row by row; half a pixel is cut off. A kind that does not fit has none."""
    height, width = grid.patch_size
    found = {}
    for kind, (down, right) in SHIFTS.items():
        origins = (
            grid.origin_of(grid.index_of(r, c)) for r in range(grid.rows - down) for c in range(grid.cols - right)
        )
        shift = down * (height // 2), right * (width // 2)
        found[kind] = [Window(top + shift[0], left + shift[1], height, width) for top, left in origins]
    return found


def check_half_grid(grid: PatchGrid) -> None:
    """Raises UserError where the whole frame is one patch."""
    if not any(half_grid(grid).values()):
        raise UserError("--positions fractional needs at least two patches, but the grid is 1x1: remove it")


@torch.no_grad()
def measure_fractional(
    model: DualHeadHNeRV, store: FrameStore, report: Report, progress: bool = False
) -> dict[str, dict[str, float]]:
    """{split: {'trained' or kind: PSNR in dB, mean over patches and frames, of 8-bit pixels}}.

    The patch is decoded at its place, see `DualHeadHNeRV.decode_window`. The splits are those of `report`, from
    which 'trained' is; frames are shown to the embedding where that did.
    """
    places = {kind: windows for kind, windows in half_grid(model.scene.grid).items() if windows}
    found = {}
    with frames_bar("fractional", sum(len(s.positions) for _, s in report.splits()), progress) as bar:
        for name, split in report.splits():
            sees = name == "val" and report.unseen == "encode"
            rows = [_measure(model, store, where, places, sees) for where in in_batches(split.positions, bar)]
            means = {kind: torch.cat([row[kind] for row in rows]).double().mean().item() for kind in places}
            found[name] = {"trained": split.psnr.double().mean().item(), **means}
    return found


def _measure(
    model: DualHeadHNeRV, store: FrameStore, where: Tensor, places: dict[str, list[Window]], sees_frames: bool
) -> dict[str, Tensor]:
    """Positions (B,) -> {kind: PSNR (B, windows)}."""
    batch = store.batch(where)
    frames = batch.frames if sees_frames else None
    found = {}
    for kind, windows in places.items():
        columns = []
        for window in windows:
            rgb = round8(predict_window(model, batch.times, window, frames))
            columns.append(psnr(frame_mse(rgb, window.cut(batch.frames))).cpu())
        found[kind] = torch.stack(columns, dim=1)
    return found


def fractional_table(values: dict[str, dict[str, float]], grid: PatchGrid, unseen: str = "") -> str:
    """`measure_fractional` as a text table; a kind's distance to the trained positions behind it."""
    counts = {"trained": grid.patches, **{kind: len(windows) for kind, windows in half_grid(grid).items()}}
    lines = [f"{'patch PSNR, dB':36}" + "".join(f"{split_name(name, unseen):>20}" for name in values)]
    for kind, count in counts.items():
        cells = ""
        for split in values.values():
            gap = "" if kind == "trained" or kind not in split else f" ({split[kind] - split['trained']:+.2f})"
            cells += f"{f'{split[kind]:.3f}{gap}' if kind in split else '-':>20}"
        lines.append(f"{f'  {kind} positions ({count})':36}{cells}")
    return "\n".join(lines)
