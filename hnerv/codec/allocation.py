"""How fine the step of each tensor is: a range split into levels, or the spread of bits that costs least.

A tensor of n numbers under a step s costs the bits -n log2(s), up to a constant, and the distortion a s^2, where a is
measured. The least distortion for a sum of bits has a s^2 / n equal for all tensors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from hnerv.model import LATENTS, DualHeadHNeRV
from hnerv.quantise import HALF_BITS, SCHEMES, Scale, as_bfloat16, dequantise, quantise

SENSITIVITY = "sensitivity"
BIAS_BITS = 8
FRAMES = 4
"""Frames that the distortion is measured on."""

_LEVELS_MOST, _LEVELS_LEAST = 8191, 3


class Bits(NamedTuple):
    """Bits per number: of the weights, and of the stored codes of the embedding. 16: half floats."""

    weights: int
    latents: int

    def of(self, name: str, value: Tensor) -> int:
        """Biases are few: they get 8 bits, or 16."""
        bits = self.latents if LATENTS.fullmatch(name) else self.weights
        return max(bits, BIAS_BITS) if value.dim() == 1 else bits


def range_scales(weights: dict[str, Tensor], bits: Bits, scheme: str, per_channel: bool) -> dict[str, Scale | None]:
    """{tensor: its range in 2^bits levels, by a row of SCHEMES}; None where 16 bits mean half floats."""
    return {
        name: None if bits.of(name, value) == HALF_BITS else SCHEMES[scheme](value, bits.of(name, value), per_channel)
        for name, value in weights.items()
    }


@torch.no_grad()
def sensitivity_scales(
    model: DualHeadHNeRV, weights: dict[str, Tensor], bits: Bits, clip_weight: float
) -> dict[str, Scale | None]:
    """{tensor: scale per tensor} that distorts the model's own output least with as many bits in all as a symmetric
    range per output channel takes.

    The distortion is that of the objective: mean squared error plus `clip_weight` times 1 - cosine, both against the
    output of `weights` themselves: the video is not needed.
    """
    scales = range_scales(weights, bits, "symmetric", per_channel=False)
    trial = {name: scale for name, scale in scales.items() if scale is not None}
    harm = {name: max(_distortion(model, weights, name, s, clip_weight), 1e-16) for name, s in trial.items()}
    share = {name: weights[name].numel() * s.step.item() ** 2 / harm[name] for name, s in trial.items()}  # n / a
    budget = range_scales(weights, bits, "symmetric", per_channel=True)
    excess = {name: 2 * _mean_log(budget[name].step, weights[name]) - math.log(share[name]) for name in trial}
    count = sum(weights[name].numel() for name in trial)
    level = math.exp(sum(weights[name].numel() / count * log for name, log in excess.items()))
    return scales | {name: _of_step(weights[name], math.sqrt(level * share[name])) for name in trial}


def _mean_log(steps: Tensor, weight: Tensor) -> float:
    """Mean logarithm of the steps of channels that have a range; a channel of zeros takes no bits."""
    used = steps.log()[weight.flatten(1).abs().amax(1) > 0] if len(steps) > 1 else steps.log()
    return used.mean().item() if len(used) else 0.0


def coarser(weights: dict[str, Tensor], scales: dict[str, Scale | None], factor: float) -> dict[str, Scale | None]:
    """Every step, one per tensor, times `factor`, as far as a tensor keeps some levels."""
    return {
        name: None if scale is None else _of_step(weights[name], scale.step.item() * factor)
        for name, scale in scales.items()
    }


def _of_step(weight: Tensor, step: float) -> Scale:
    largest = weight.abs().max().item() or 1.0
    step = min(max(step, largest / _LEVELS_MOST), largest / _LEVELS_LEAST)
    return Scale(as_bfloat16(torch.tensor([step])), None, -2 * _LEVELS_MOST, 2 * _LEVELS_MOST)


def _distortion(model: DualHeadHNeRV, weights: dict[str, Tensor], name: str, scale: Scale, clip_weight: float) -> float:
    """What quantising one tensor does to the output."""
    device = next(model.parameters()).device
    times = torch.linspace(0, model.scene.frames - 1, min(FRAMES, model.scene.frames), device=device).round()
    before = functional_call(model, {name: weights[name].to(device)}, (times,))
    after = functional_call(model, {name: dequantise(quantise(weights[name], scale), scale).to(device)}, (times,))
    harm = (after.rgb - before.rgb).square().mean()
    if before.clip is not None:
        harm = harm + clip_weight * (1 - (after.clip * before.clip).sum(-1)).mean()
    return harm.item()
