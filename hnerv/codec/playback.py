"""Decoded frames in 8 bits, a few at a time: memory does not grow with the length of the video."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV
from hnerv.model.predict import FRAMES_AT_ONCE, predict, predict_patch, to_uint8
from hnerv.runs.video import Span, StoredVideo
from hnerv.timeline import Timeline, concat_timelines

SPARSE = 4
"""Frames selected with at least this mean spacing are sparse: only the sections of each of them are read, not those of
the range that they span."""


@torch.no_grad()
def play(model: DualHeadHNeRV, frames: Sequence[float]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB, in order: the ones that an evaluation measures; 12.5 lies between two of them."""
    for times in _batches(model, frames):
        yield from _pictures(predict(model, times, clip=False).rgb)


@torch.no_grad()
def play_patch(model: DualHeadHNeRV, frames: Sequence[int], patch: int) -> Iterator[np.ndarray]:
    """One patch of each frame, (h, w, 3) uint8 RGB; only the patch and its receptive field are computed."""
    for times in _batches(model, frames):
        yield from _pictures(predict_patch(model, times, patch))


def play_video(
    video: StoredVideo, frames: Sequence[int], device: torch.device, patch: int | None = None
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB of a video, or one `patch` of each (h, w, 3); one chunk is in memory at a time."""
    for entry, group in video.by_chunk(frames):
        with frames_in_errors(video, entry):
            chunk = video.open_chunk(entry)  # refuses an index that declares too many frames before they are listed
        inner = [frame - entry.first for frame in group]
        span = range(min(inner), max(inner) + 1)
        with frames_in_errors(video, entry):
            model = chunk.model(("rgb_head",), span if len(span) < SPARSE * len(inner) else inner).to(device)
        yield from play(model, inner) if patch is None else play_patch(model, inner, patch)
        del model  # before the next chunk is read


def frame_times(video: StoredVideo, frames: Sequence[int]) -> Timeline:
    """When these frames of a video are shown in its source. Raises UserError."""
    clocks = []
    for entry, group in video.by_chunk(frames):
        with frames_in_errors(video, entry):
            clock = video.open_chunk(entry).scene.clock_from(entry.first)
        clocks.append(clock.select(frame - entry.first for frame in group))
    return concat_timelines(clocks)


def _batches(model: DualHeadHNeRV, frames: Sequence[float]) -> Iterator[torch.Tensor]:
    device = next(model.parameters()).device
    for first in range(0, len(frames), FRAMES_AT_ONCE):
        yield torch.tensor(frames[first : first + FRAMES_AT_ONCE], dtype=torch.float32, device=device)


def _pictures(rgb: torch.Tensor) -> np.ndarray:
    return to_uint8(rgb).permute(0, 2, 3, 1).cpu().numpy()


@contextlib.contextmanager
def frames_in_errors(video: StoredVideo, entry: Span) -> Iterator[None]:
    """Adds to a UserError which frames it affects, where the file has other chunks that may be intact."""
    try:
        yield
    except UserError as error:
        if len(video.chunks) == 1:
            raise
        last = entry.first + entry.frames - 1
        raise UserError(f"{error} (frames {entry.first} to {last}; the other frames may be intact)") from error
