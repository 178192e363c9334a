"""Scene cuts: frames that differ from the frame before far more than their neighbours do.

The video is decoded once, in order; of each frame a small grey picture is kept until the next one. N frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from hnerv.data.video import read_frames

CELLS = 16
"""Rows and columns of the grey picture: motion within a cell is not a change."""
MIN_CHANGE, MIN_RATIO = 12.0, 4.0
"""At a cut the cells change by at least MIN_CHANGE grey levels of 255, and by MIN_RATIO times what is usual there."""
NEIGHBOURS = 12
"""Frames before and after one whose median change is usual there."""
MIN_SCENE = 8
"""Frames from one cut to the next, at least: a flash starts one scene, not two."""


def find_cuts(data: str, chosen: range, progress: bool = False, raw_video: str = "") -> list[int]:
    """Indices > 0 into the `chosen` frames where a scene starts, ascending. Raises UserError for a damaged video."""
    if chosen.step < 0:
        return sorted(len(chosen) - cut for cut in find_cuts(data, chosen[::-1], progress, raw_video))
    frames = read_frames(data, chosen, raw_video)
    frames = tqdm(frames, "scenes", len(chosen), unit="frame", disable=None if progress else True)
    return cuts_of(frame_changes(frames))


def frame_changes(frames: Iterator[np.ndarray]) -> np.ndarray:
    """N frames (H, W, 3) uint8 -> (N,) mean absolute change of the cells from the frame before; 0 for the first."""
    before, changes = None, []
    for frame in frames:
        cells = grey_cells(frame)
        changes.append(0.0 if before is None else float(np.abs(cells - before).mean()))
        before = cells
    return np.array(changes)


def grey_cells(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (CELLS, CELLS) mean grey levels, fewer where the frame is smaller."""
    grey = frame.mean(axis=2)
    rows, cols = (np.linspace(0, side, min(CELLS, side), endpoint=False).astype(int) for side in grey.shape)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), cols, axis=1)
    heights, widths = (np.diff([*starts, side]) for starts, side in zip((rows, cols), grey.shape, strict=True))
    return sums / np.outer(heights, widths)


def cuts_of(changes: Sequence[float]) -> list[int]:
    """Changes (N,) from frame to frame -> indices of cuts, ascending; of two that are too close, the stronger."""
    changes = np.asarray(changes)
    if len(changes) < 2:
        return []
    # The median ignores a lone peak, but the frame itself is left out: close to the ends the window is short.
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(changes.astype(float), NEIGHBOURS, constant_values=np.nan), 2 * NEIGHBOURS + 1
    ).copy()
    windows[:, NEIGHBOURS] = np.nan
    usual = np.nanmedian(windows, axis=1)
    strong = np.flatnonzero(changes >= np.maximum(MIN_CHANGE, MIN_RATIO * usual)).tolist()
    kept: list[int] = []
    for k in sorted(strong, key=lambda k: (-changes[k], k)):
        if min(abs(k - other) for other in (*kept, 0, len(changes))) >= MIN_SCENE:
            kept.append(k)
    return sorted(kept)
