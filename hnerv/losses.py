"""Pixel losses and CLIP losses by name, each a weighted sum of a few terms.

Adding a loss is one row of `LOSSES` or `CLIP_LOSSES`; a new ingredient is one function and one row of `TERMS` or
`CLIP_TERMS`. torch is imported by the functions that need it, because the command line reads these tables for --help.

Legend: B batch, 3 colours, H W pixels, P patches, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hnerv.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def _l1(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).abs().sum() / pred.numel()  # the gradient of .mean() would lose the layout of `pred`


def _l2(pred: Tensor, target: Tensor) -> Tensor:
    import torch.nn.functional as F

    # The gradient of mse_loss is always contiguous. Pictures are channels-last in memory: with channels moved last,
    # it has their layout, and the backward pass copies nothing.
    return F.mse_loss(pred.movedim(1, -1), target.movedim(1, -1))


def _one_minus_ssim(pred: Tensor, target: Tensor) -> Tensor:
    from hnerv.metrics import ssim

    return 1 - ssim(pred, target).mean()


def _one_minus_ms_ssim(pred: Tensor, target: Tensor) -> Tensor:
    from hnerv.metrics import ms_ssim

    return 1 - ms_ssim(pred, target).mean()


def _l1_of_fft(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over real and imaginary parts of |FFT(pred) - FFT(target)|, not normalised (Boosting-NeRV)."""
    import torch

    # The transform is linear: FFT(pred) - FFT(target) = FFT(pred - target), one transform instead of two.
    return torch.view_as_real(torch.fft.fft2(pred - target)).abs().mean()


TERMS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "L1": _l1,
    "L2": _l2,
    "(1 - SSIM)": _one_minus_ssim,
    "(1 - MS-SSIM)": _one_minus_ms_ssim,
    "L1(FFT)": _l1_of_fft,
}
"""Name in a formula -> function of pred, target (B, 3, H, W) fp32 -> scalar, 0 for equal pictures."""

LOSSES: Mapping[str, Mapping[str, float]] = {
    "L1": {"L1": 1},
    "L2": {"L2": 1},
    "SSIM": {"(1 - SSIM)": 1},
    "Fusion1": {"L2": 0.3, "(1 - SSIM)": 0.7},
    "Fusion2": {"L1": 0.3, "(1 - SSIM)": 0.7},
    "Fusion3": {"L2": 0.5, "(1 - SSIM)": 0.5},
    "Fusion4": {"L1": 0.5, "(1 - SSIM)": 0.5},
    "Fusion5": {"L2": 0.7, "(1 - SSIM)": 0.3},
    "Fusion6": {"L1": 0.7, "(1 - SSIM)": 0.3},
    "Fusion7": {"L2": 0.7, "L1": 0.3},
    "Fusion8": {"L2": 0.5, "L1": 0.5},
    "Fusion9": {"L1": 0.9, "(1 - SSIM)": 0.1},
    "Fusion10": {"L1": 0.7, "(1 - MS-SSIM)": 0.3},
    "Fusion11": {"L1": 0.9, "(1 - MS-SSIM)": 0.1},
    "Fusion12": {"L1": 0.8, "(1 - MS-SSIM)": 0.2},
    "L1_freq": {"L1": 0.006, "L1(FFT)": 0.00015},
    "Fusion10_freq": {"L1": 60 * 0.7, "(1 - MS-SSIM)": 60 * 0.3, "L1(FFT)": 1},
}
"""Name -> term -> weight. Source: HNeRV (Chen et al. 2023); Fusion10_freq: Boosting-NeRV (Zhang et al. 2024).

L1_freq is Fusion10_freq without MS-SSIM, which takes most of its time. It is scaled to the value of L2 at 33 dB and
160x320, so that the weight of the CLIP loss means about the same with both. It grows with the root of the pixels.
"""


def formula(name: str) -> str:
    """'Fusion1' -> '0.3 L2 + 0.7 (1 - SSIM)'. Raises UserError listing the names when there is no such loss."""
    return " + ".join(term if weight == 1 else f"{weight:g} {term}" for term, weight in _mix(name).items())


def pixel_loss(name: str, pred: Tensor, target: Tensor) -> Tensor:
    """The loss `name` between pred and target (B, 3, H, W) in [0, 1] -> scalar of 0 or more, in fp32.

    Raises UserError listing the names when there is no such loss, and when H or W is too small for its SSIM.
    """
    mix = _mix(name)
    pred, target = pred.float(), target.float()
    return _sum({term: TERMS[term](pred, target) for term in mix}, mix)


def _sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum, without operators for a weight of 1."""
    first, *rest = (value if weights[term] == 1 else weights[term] * value for term, value in terms.items())
    return sum(rest, start=first)


class Embedded(NamedTuple):
    """Predicted and true embeddings of the patches of frames, both (B, P, D)."""

    pred: Tensor
    target: Tensor


def cosine_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine similarity of pred and target (..., D) -> scalar in [0, 2], in fp32."""
    from hnerv.metrics import cosine

    return (1 - cosine(pred, target)).mean()


def _one_minus_cosine(here: Embedded, near: Embedded | None) -> Tensor:
    return cosine_loss(here.pred, here.target)


def _motion(here: Embedded, near: Embedded | None) -> Tensor:
    """Relative squared error of the difference between an embedding and that of a near frame."""
    # |(p - p') - (t - t')|^2 / (|t - t'|^2 + STILL). Frames of a shot have nearly the same embedding t. The cosine is
    # dominated by that common part, and reproducing it alone costs little; but search ranks frames by the small rest.
    # The common part cancels in the differences, and the quotient makes slow and fast motion count alike.
    count = len(near.pred)  # blends, which come last, have no near frame
    change = here.pred[:count].float() - near.pred.float()
    true_change = here.target[:count].float() - near.target.float()
    return ((change - true_change).square().sum(-1) / (true_change.square().sum(-1) + STILL)).mean()


STILL = 1e-3
"""Squared difference of true embeddings below which a patch counts as still and its error is not magnified further."""

CLIP_TERMS: Mapping[str, Callable[[Embedded, Embedded | None], Tensor]] = {
    "(1 - cosine)": _one_minus_cosine,
    "motion": _motion,
}
"""Name in a formula -> function of the embeddings of a step and of those of near frames -> scalar."""

CLIP_LOSSES: Mapping[str, Mapping[str, float]] = {
    "cosine": {"(1 - cosine)": 1},
    "motion": {"(1 - cosine)": 1, "motion": 0.05},
}
"""Name -> term -> weight."""


def compares_frames(name: str) -> bool:
    """Whether the CLIP loss `name` needs embeddings of frames near those of the step."""
    return "motion" in CLIP_LOSSES[name]


def clip_loss(name: str, here: Embedded, near: Embedded | None = None) -> Tensor:
    """The CLIP loss `name` -> scalar of 0 or more, in fp32.

    `near` are embeddings of as many near frames as `here` has first, if `compares_frames(name)`.
    """
    return _sum({term: CLIP_TERMS[term](here, near) for term in CLIP_LOSSES[name]}, CLIP_LOSSES[name])


def _mix(name: str) -> Mapping[str, float]:
    if name not in LOSSES:
        raise UserError(f"--pixel-loss {name!r} is not a known pixel loss: choose from {', '.join(LOSSES)}")
    return LOSSES[name]
