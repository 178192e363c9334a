"""From a model to the 8-bit frames that a viewer gets: the only decoder to 8 bits, with one rule for batches.

B times, H W frame, h w patch, in pixels; P patches of a frame, D embedding dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hnerv.geometry import Window
from hnerv.model.network import DualHeadHNeRV, Prediction

FRAMES_AT_ONCE = 4
"""Size of every batch that is decoded.

A convolution library picks its algorithm, and with it the order of its sums, by the shape of its input. With batches
of any size, the last bits of a frame, and now and then an 8-bit pixel, would depend on the frames decoded together with
it: a seek into a file would differ from playing it. So every batch has this size, and a shorter one is filled up with
copies of its last time, which costs arithmetic but no correctness.
"""


def to_uint8(rgb: Tensor) -> Tensor:
    """Colours, clamped to [0, 1] -> levels 0 ... 255 as uint8, rounded to the nearest (halves to even)."""
    return rgb.clamp(0, 1).mul(255).round().to(torch.uint8)


def round8(rgb: Tensor) -> Tensor:
    """Colours as 8 bits show them, in [0, 1]: decoded frames are measured after this rounding."""
    return to_uint8(rgb).float() / 255


@torch.no_grad()
def predict(model: DualHeadHNeRV, times: Tensor, frames: Tensor | None = None, clip: bool = True) -> Prediction:
    """At most FRAMES_AT_ONCE times (B,) -> Prediction of full frames, its rgb not yet rounded.

    `frames` (B, 3, H, W) in [0, 1] are read by the embedding `encoder`. Without `clip` the CLIP head does not run.
    """
    found = model(_filled(times), None if frames is None else _filled(frames), clip)
    return Prediction(found.rgb[: len(times)], None if found.clip is None else found.clip[: len(times)])


@torch.no_grad()
def predict_patch(model: DualHeadHNeRV, times: Tensor, patch: int) -> Tensor:
    """At most FRAMES_AT_ONCE times (B,) -> rgb (B, 3, h, w) of one patch in [0, P), not yet rounded."""
    return model.decode_patch(_filled(times), patch).rgb[: len(times)]


@torch.no_grad()
def predict_window(model: DualHeadHNeRV, times: Tensor, window: Window, frames: Tensor | None = None) -> Tensor:
    """At most FRAMES_AT_ONCE times (B,) -> rgb (B, 3, h, w) of a window of a patch's size, not yet rounded."""
    return model.decode_window(_filled(times), window, None if frames is None else _filled(frames))[: len(times)]


@torch.no_grad()
def predict_clip(model: DualHeadHNeRV, times: Tensor) -> Tensor:
    """At most FRAMES_AT_ONCE times (B,) -> `predict(model, times).clip` (B, P, D), without decoding a pixel."""
    return model.embed(_filled(times))[: len(times)]


def _filled(batch: Tensor) -> Tensor:
    """(B, ...) -> (FRAMES_AT_ONCE, ...), the last entry repeated."""
    return batch[torch.arange(FRAMES_AT_ONCE, device=batch.device).clamp(max=len(batch) - 1)]
