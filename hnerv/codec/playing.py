"""A model -> 8-bit pictures, a few at a time: memory does not grow with the length of the video."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from hnerv.codec.segmented import FilePart, Film
from hnerv.errors import UserError
from hnerv.evaluation import FRAMES_AT_ONCE, predict, whole_batch
from hnerv.model import DualHeadHNeRV
from hnerv.timeline import Timeline, concat_timelines

SPARSE = 4
"""Times as many frames from the first to the last: from there on only what each of them needs is read."""


@torch.no_grad()
def play(model: DualHeadHNeRV, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB, in order: those that an evaluation measures."""
    for times in _times(model, frames):
        yield from _pictures(predict(model, times, clip=False).rgb)


@torch.no_grad()
def play_patch(model: DualHeadHNeRV, frames: Sequence[int], patch: int) -> Iterator[np.ndarray]:
    """The same of one patch, (h, w, 3); only the patch and what its convolutions reach is computed."""
    for times in _times(model, frames):
        fill = whole_batch(len(times)).to(times.device)
        yield from _pictures(model.decode_patch(times[fill], patch).rgb[: len(times)])


def _times(model: DualHeadHNeRV, frames: Sequence[int]) -> Iterator[torch.Tensor]:
    device = next(model.parameters()).device
    for first in range(0, len(frames), FRAMES_AT_ONCE):
        yield torch.tensor(frames[first : first + FRAMES_AT_ONCE], dtype=torch.float32, device=device)


def _pictures(rgb: torch.Tensor) -> np.ndarray:
    return rgb.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def play_film(
    film: Film, frames: Sequence[int], device: torch.device, patch: int | None = None
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB of a file, or of one `patch` of each (h, w, 3); one segment is in memory at a time."""
    for part, group in film.by_part(frames):
        with _placed(film, part):
            stream = film.stream(part)  # what its index promises is checked before the positions are counted
        inner = [frame - part.first for frame in group]
        span = range(min(inner), max(inner) + 1)
        with _placed(film, part):
            model = stream.model(("rgb_head",), span if len(span) < SPARSE * len(inner) else inner).to(device)
        yield from play(model, inner) if patch is None else play_patch(model, inner, patch)


def film_times(film: Film, frames: Sequence[int]) -> Timeline:
    """When these frames of a file are shown in its source. Raises UserError."""
    clocks = []
    for part, group in film.by_part(frames):
        with _placed(film, part):
            clock = film.stream(part).scene.clock_from(part.first)
        clocks.append(clock.select(frame - part.first for frame in group))
    return concat_timelines(clocks)


@contextlib.contextmanager
def _placed(film: Film, part: FilePart) -> Iterator[None]:
    """A UserError of a segment says which frames of the whole it is about."""
    try:
        yield
    except UserError as error:
        if len(film.parts) == 1:
            raise
        last = part.first + part.frames - 1
        raise UserError(f"{error} (frames {part.first} to {last}; the other frames may be intact)") from error
