"""The values logged for an epoch, {Train/ or Model/ tag: value}, from the records of its steps. S steps of an epoch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hnerv.config import LossConfig
from hnerv.schedule import clip_weight
from hnerv.tracking import NullLogger
from hnerv.training.stability import stability_values


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
    """{tag: value} of a run with a CLIP head, without ratios that divide by 0."""
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
