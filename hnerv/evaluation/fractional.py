"""PSNR of patches between those of the grid, compared with the patches that were trained.

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
from hnerv.tables import Column, format_table
from hnerv.tracking import split_name

SHIFTS: dict[str, tuple[int, int]] = {"horizontal": (0, 1), "vertical": (1, 0), "corner": (1, 1)}
"""Kind of position -> half patches that it lies below and to the right of a trained one."""


def half_grid(grid: PatchGrid) -> dict[str, list[Window]]:
    """{kind: windows of a patch's size}, row by row, offsets rounded down. A kind that does not fit has no windows."""
    height, width = grid.patch_size
    windows = {}
    for kind, (down, right) in SHIFTS.items():
        origins = (
            grid.origin_of(grid.index_of(r, c)) for r in range(grid.rows - down) for c in range(grid.cols - right)
        )
        shift = down * (height // 2), right * (width // 2)
        windows[kind] = [Window(top + shift[0], left + shift[1], height, width) for top, left in origins]
    return windows


def check_half_grid(grid: PatchGrid) -> None:
    """Raises UserError where the full frame is one patch."""
    if not any(half_grid(grid).values()):
        raise UserError("--positions fractional needs at least two patches, but the grid is 1x1: remove it")


@torch.no_grad()
def measure_fractional(
    model: DualHeadHNeRV, store: FrameStore, report: Report, progress: bool = False
) -> dict[str, dict[str, float]]:
    """{split: {'trained' or kind: PSNR in dB, mean over patches and frames, of 8-bit pixels}}.

    Patches are decoded at their position, see `DualHeadHNeRV.decode_window`. Splits, the values of 'trained', and
    whether the encoder sees unseen frames, are those of `report`.
    """
    windows = {kind: found for kind, found in half_grid(model.scene.grid).items() if found}
    values = {}
    with frames_bar("fractional", sum(len(s.positions) for _, s in report.splits()), progress) as bar:
        for name, split in report.splits():
            sees_frames = name == "val" and report.unseen == "encode"
            parts = [
                _window_psnr(model, store, where, windows, sees_frames) for where in in_batches(split.positions, bar)
            ]
            means = {kind: torch.cat([batch[kind] for batch in parts]).double().mean().item() for kind in windows}
            values[name] = {"trained": split.psnr.double().mean().item(), **means}
    return values


def _window_psnr(
    model: DualHeadHNeRV, store: FrameStore, where: Tensor, windows: dict[str, list[Window]], sees_frames: bool
) -> dict[str, Tensor]:
    """Positions (B,) -> {kind: PSNR (B, windows)}."""
    batch = store.batch(where)
    frames = batch.frames if sees_frames else None

    def one(window: Window) -> Tensor:
        rgb = round8(predict_window(model, batch.times, window, frames))
        return psnr(frame_mse(rgb, window.cut(batch.frames))).cpu()

    return {kind: torch.stack([one(window) for window in found], dim=1) for kind, found in windows.items()}


def fractional_table(values: dict[str, dict[str, float]], grid: PatchGrid, unseen: str = "") -> str:
    """`measure_fractional` as a text table, with the differences from the trained positions."""
    counts = {"trained": grid.patches, **{kind: len(windows) for kind, windows in half_grid(grid).items()}}

    def cell(split: dict[str, float], kind: str) -> str | None:
        if kind not in split:
            return None
        gap = "" if kind == "trained" else f" ({split[kind] - split['trained']:+.2f})"
        return f"{split[kind]:.3f}{gap}"

    columns = [Column("patch PSNR, dB", "36"), *(Column(split_name(name, unseen), ">20") for name in values)]
    rows = [
        (f"  {kind} positions ({count})", *(cell(split, kind) for split in values.values()))
        for kind, count in counts.items()
    ]
    return format_table(columns, rows)
