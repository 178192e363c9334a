"""A model -> 8-bit pictures, a few at a time: memory does not grow with the length of the video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from hnerv.evaluation import FRAMES_AT_ONCE, predict, whole_batch
from hnerv.model import DualHeadHNeRV


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
