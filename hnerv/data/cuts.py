"""Where a new scene begins: frames that differ from the one before far more than their neighbours do.

The video is decoded once, in order, a frame at a time; of each a small grey picture is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from hnerv.data.video import read_frames

CELLS = 16
"""Rows and columns of means that a frame is compared by: what moves within a cell is no cut."""
LEAST, TIMES, AROUND = 12.0, 4.0, 12
"""A cut changes the cells by LEAST of 255 on average, and by TIMES the median of AROUND frames before and behind."""
SHORTEST = 8
"""Frames from one cut to the next, at least: a flash begins one scene, not two."""


def find_cuts(data: str, chosen: range, progress: bool = False, raw_video: str = "") -> list[int]:
    """Positions among the `chosen` frames, above 0, at which a scene begins. Raises UserError for a damaged video."""
    if chosen.step < 0:
        return sorted(len(chosen) - cut for cut in find_cuts(data, chosen[::-1], progress, raw_video))
    frames = read_frames(data, chosen, raw_video)
    frames = tqdm(frames, "scenes", len(chosen), unit="frame", disable=None if progress else True)
    return cuts_of(differences(frames))


def differences(frames: Iterator[np.ndarray]) -> np.ndarray:
    """N frames (H, W, 3) uint8 -> (N,), how far each is from the one before, in grey levels; 0 for the first."""
    before, found = None, []
    for frame in frames:
        cells = grey_cells(frame)
        found.append(0.0 if before is None else float(np.abs(cells - before).mean()))
        before = cells
    return np.array(found)


def grey_cells(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (CELLS, CELLS) mean grey levels, fewer where the frame is smaller."""
    grey = frame.mean(axis=2)
    rows, cols = (np.linspace(0, side, min(CELLS, side), endpoint=False).astype(int) for side in grey.shape)
    sums = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), cols, axis=1)
    heights, widths = (np.diff([*starts, side]) for starts, side in zip((rows, cols), grey.shape, strict=True))
    return sums / np.outer(heights, widths)


def cuts_of(changes: Sequence[float]) -> list[int]:
    """Changes (N,) from frame to frame -> the positions of cuts, ascending; of two that are too close, the stronger."""
    changes = np.asarray(changes)
    usual = [
        np.median(np.delete(window, min(k, AROUND))) if len(window) > 1 else 0.0
        for k, window in ((k, changes[max(k - AROUND, 0) : k + AROUND + 1]) for k in range(len(changes)))
    ]
    strong = [k for k in range(1, len(changes)) if changes[k] >= max(LEAST, TIMES * usual[k])]
    kept: list[int] = []
    for k in sorted(strong, key=lambda k: (-changes[k], k)):
        if min((abs(k - other) for other in (*kept, 0, len(changes))), default=SHORTEST) >= SHORTEST:
            kept.append(k)
    return sorted(kept)
