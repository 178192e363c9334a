"""Pixel losses by name, each a weighted sum of a few terms, and the CLIP loss.

Adding a loss is one row of `LOSSES`; a new ingredient is one function and one row of `TERMS`. torch is imported by
the functions that need it, because the command line reads these tables for --help.

Legend: B batch, 3 colours, H W pixels, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hnerv.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def _l1(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).abs().sum() / pred.numel()  # the gradient of a mean would leave the layout of `pred`


def _l2(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).square().sum() / pred.numel()


def _one_minus_ssim(pred: Tensor, target: Tensor) -> Tensor:
    from hnerv.metrics import ssim

    return 1 - ssim(pred, target).mean()


def _one_minus_ms_ssim(pred: Tensor, target: Tensor) -> Tensor:
    from hnerv.metrics import ms_ssim

    return 1 - ms_ssim(pred, target).mean()


def _l1_of_fft(pred: Tensor, target: Tensor) -> Tensor:
    """Mean over real and imaginary parts of |FFT(pred) - FFT(target)|, not normalised (Boosting-NeRV).

    The transform is linear, so one of the difference does for two.
    """
    import torch

    return torch.view_as_real(torch.fft.fft2(pred - target)).abs().mean()


TERMS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "L1": _l1,
    "L2": _l2,
    "(1 - SSIM)": _one_minus_ssim,
    "(1 - MS-SSIM)": _one_minus_ms_ssim,
    "L1(FFT)": _l1_of_fft,
}
"""Name, as it reads in a formula -> function of pred, target (B, 3, H, W) fp32 -> scalar, 0 where they are equal."""

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
    "Fusion10_freq": {"L1": 60 * 0.7, "(1 - MS-SSIM)": 60 * 0.3, "L1(FFT)": 1},
}
"""Name -> term -> weight. Source: HNeRV (Chen et al. 2023); Fusion10_freq: Boosting-NeRV (Zhang et al. 2024)."""


def formula(name: str) -> str:
    """'Fusion1' -> '0.3 L2 + 0.7 (1 - SSIM)'. Raises UserError listing the names when there is no such loss."""
    return " + ".join(term if weight == 1 else f"{weight:g} {term}" for term, weight in _mix(name).items())


def pixel_loss(name: str, pred: Tensor, target: Tensor) -> Tensor:
    """The loss `name` between pred and target (B, 3, H, W) in [0, 1] -> scalar of 0 or more, in fp32.

    Raises UserError listing the names when there is no such loss, and when H or W is too small for its SSIM.
    """
    mix = _mix(name)
    pred, target = pred.float(), target.float()
    first, *rest = (weight * TERMS[term](pred, target) for term, weight in mix.items())
    return sum(rest, start=first)


def cosine_loss(pred: Tensor, target: Tensor) -> Tensor:
    """CLIP loss: mean of 1 - cosine similarity of pred and target (..., D) -> scalar in [0, 2], in fp32."""
    from hnerv.metrics import cosine

    return (1 - cosine(pred, target)).mean()


def _mix(name: str) -> Mapping[str, float]:
    if name not in LOSSES:
        raise UserError(f"--pixel-loss {name!r} is no known pixel loss: choose one of {', '.join(LOSSES)}")
    return LOSSES[name]
