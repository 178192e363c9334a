"""The values logged for an epoch, {Train/ or Model/ tag: value}, from the records of its steps. S steps of an epoch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hnerv.config import LossConfig
from hnerv.schedule import clip_weight
from hnerv.tracking import NullLogger

WINDOW = 256
"""Steps that are looked at."""


class Objective(NamedTuple):
    """The CLIP term in an epoch: its weight lambda, 0 during warm-up, and whether its head is computed."""

    weight: float
    active: bool


def objective_of(loss: LossConfig, epoch: int, has_head: bool) -> Objective:
    """The objective of an epoch, counted from 0."""
    weight = clip_weight(
        epoch,
        weight=loss.clip_loss_weight,
        warmup_epochs=loss.pixel_loss_warmup_epochs,
        ramp_epochs=loss.clip_ramp_epochs,
    )
    return Objective(weight, has_head and epoch >= loss.pixel_loss_warmup_epochs)


def epoch_values(
    means: dict[str, float], norms: Tensor, window: Tensor, objective: Objective | None, grad_clip: float
) -> dict[str, float]:
    """{tag: value} of an epoch, from the means of its steps by column.

    norms (S,) of the gradients before clipping to `grad_clip`; window (M,) the newest total losses; `objective` is None
    without a CLIP head.
    """
    values = loss_values(means) | (clip_values(means, objective) if objective else {})
    return values | clipping_values(norms, grad_clip) | stability_values(window)


def loss_values(means: dict[str, float]) -> dict[str, float]:
    """{tag: value} of any run."""
    values = {
        "Train/PSNR": means["psnr"],
        "Train/Loss/pixel_loss": means["pixel_loss"],
        "Train/Loss/total_loss": means["total_loss"],
        **{f"Train/Gradients/{name}_norm": means[f"{name}_norm"] for name in ("total", "rgb_head", "decoder")},
        "Train/Gradients/embedding_norm": means["embedding_norm"],
    }
    if means["total_loss"] > 0:
        values["Train/Loss/pixel_share"] = 100 * means["pixel_loss"] / means["total_loss"]
    return values


def clip_values(means: dict[str, float], objective: Objective) -> dict[str, float]:
    """{tag: value} of a run with a CLIP head, without ratios whose divisor is 0."""
    weighted = objective.weight * means["clip_loss"]
    values = {
        "Train/Loss/clip_loss": means["clip_loss"],
        "Train/Loss/clip_loss_weighted": weighted,
        "Train/clip_weight": objective.weight,
        "Train/clip_loss_active": float(objective.active),
        "Train/Gradients/clip_head_norm": means["clip_head_norm"],
    }
    if means["total_loss"] > 0:
        values["Train/Loss/clip_share"] = 100 * weighted / means["total_loss"]
    if means["clip_loss"] > 0:
        values["Train/Loss/pixel_to_clip_ratio"] = means["pixel_loss"] / means["clip_loss"]
    if means["clip_head_norm"] > 0:
        values["Train/Gradients/rgb_to_clip_ratio"] = means["rgb_head_norm"] / means["clip_head_norm"]
    return values


def clipping_values(norms: Tensor, largest: float) -> dict[str, float]:
    """norms (S,) of the steps before clipping to `largest`; {} where nothing is clipped."""
    if not largest:
        return {}
    return {
        "Train/Gradients/total_norm_clipped": norms.clamp(max=largest).mean().item(),
        "Train/Gradients/clipped_share": 100 * (norms > largest).double().mean().item(),
    }


@torch.no_grad()
def parameter_values(parts: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    """{Model/Params tag: value}: mean and standard deviation (of the population) of each head."""
    values = {}
    for name in ("rgb_head", "clip_head"):
        if parts[name]:
            flat = torch.cat([p.flatten() for p in parts[name]]).double()
            values[f"Model/Params/{name}_mean"] = flat.mean().item()
            values[f"Model/Params/{name}_std"] = flat.std(correction=0).item()
    return values


@torch.no_grad()
def log_histograms(logger: NullLogger, model: nn.Module, epoch: int) -> None:
    """Logs every parameter and its last gradient. A parameter that no step has used yet has no gradient."""
    for name, parameter in model.named_parameters():
        logger.histogram(f"Model/Histogram/weight/{name}", parameter, epoch)
        if parameter.grad is not None:
            logger.histogram(f"Model/Histogram/gradient/{name}", parameter.grad, epoch)


def extended(window: Tensor, losses: Tensor) -> Tensor:
    """The window (M,) with the losses (S,) of an epoch appended, cut to its newest WINDOW steps."""
    return torch.cat([window, losses])[-WINDOW:].clone()


def stability_values(window: Tensor) -> dict[str, float]:
    """window (M,), fp64, finite -> {tag: value} as defined in the table of tags; {} under 3 steps."""
    # All three are free of the scale of the loss, so that runs with different losses compare:
    #   smoothness   1 / (1 + mean |L_i+1 - L_i| / mean L): 1 for a constant loss, 1/2 for jumps as large as the loss
    #   spike_ratio  max L / median L: a spike moves the maximum, but not the median
    #   trend_slope  100 x slope of log L: for a slow trend, the relative change over 100 steps
    if len(window) < 3:
        return {}
    values = {}
    mean, median = window.mean(), window.median()
    if mean > 0:
        values["Train/Stability/smoothness"] = (1 / (1 + window.diff().abs().mean() / mean)).item()
    if median > 0:
        values["Train/Stability/spike_ratio"] = (window.max() / median).item()
    if (window > 0).all():
        values["Train/Stability/trend_slope"] = 100 * slope(window.log())
    return values


def slope(values: Tensor) -> float:
    """Slope of the least-squares line through values (M,) at 0, 1, 2, ..."""
    # sum (x - mean x) y / sum (x - mean x)^2; centring x makes the mean of y drop out.
    x = torch.arange(len(values), dtype=values.dtype)
    x = x - x.mean()
    return ((x * values).sum() / x.square().sum()).item()
