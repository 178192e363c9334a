"""Bit allocation: the quantisation step of each tensor, from its range, or from the distortion that it causes."""

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
    """{tensor: its range in 2^bits levels, by the scheme of that name; None for half floats}."""
    return {
        name: None if bits.of(name, value) == HALF_BITS else SCHEMES[scheme](value, bits.of(name, value), per_channel)
        for name, value in weights.items()
    }


@torch.no_grad()
def sensitivity_scales(
    model: DualHeadHNeRV, weights: dict[str, Tensor], bits: Bits, clip_weight: float
) -> dict[str, Scale | None]:
    """{tensor: scale per tensor} of least distortion, with as many bits in all as a symmetric range per channel takes.

    The distortion is that of the objective: mean squared error plus `clip_weight` times 1 - cosine, both against the
    output of `weights` themselves: the video is not needed.
    """
    # Tensor i of n_i numbers has the step s_i. At fine steps its entropy is that of its density minus n_i log2 s_i
    # bits, and its rounding error, uniform of variance s_i^2 / 12, changes the output to first order: distortion a_i
    # s_i^2. Minimise the distortion subject to a rate R:
    #
    #     L(s, lambda)  =  sum_i a_i s_i^2  -  lambda (sum_i n_i log2 s_i + R)
    #     dL / ds_i     =  2 a_i s_i - lambda n_i / (s_i ln 2)  =  0
    #     =>  s_i^2     =  c n_i / a_i   with c = lambda / (2 ln 2), the same for all tensors.
    #
    # So every number of the model causes the same distortion, a_i s_i^2 / n_i = c. Each a_i comes from one trial: the
    # step t_i of a range quantiser causes the distortion d_i = a_i t_i^2. The constraint fixes c: with b_i the steps of
    # the quantiser that defines the budget, sum_i n_i log s_i = sum_i n_i log b_i gives
    #
    #     log c  =  sum_i (n_i / sum_j n_j) (2 log b_i - log(n_i / a_i)).
    scales = range_scales(weights, bits, "symmetric", per_channel=False)
    trials = {name: scale for name, scale in scales.items() if scale is not None}
    budget = range_scales(weights, bits, "symmetric", per_channel=True)
    count = sum(weights[name].numel() for name in trials)
    ratios, log_c = {}, 0.0  # ratios: n_i / a_i = n_i t_i^2 / d_i
    for name, scale in trials.items():
        n, distortion = weights[name].numel(), max(_distortion(model, weights, name, scale, clip_weight), 1e-16)
        ratios[name] = n * scale.step.item() ** 2 / distortion
        log_c += n / count * (2 * _mean_log(budget[name].step, weights[name]) - math.log(ratios[name]))
    c = math.exp(log_c)
    return scales | {name: _of_step(weights[name], math.sqrt(c * ratio)) for name, ratio in ratios.items()}


def _mean_log(steps: Tensor, weight: Tensor) -> float:
    """Mean logarithm of the steps of channels that are not all zeros, which take no bits."""
    used = steps.log()[weight.flatten(1).abs().amax(1) > 0] if len(steps) > 1 else steps.log()
    return used.mean().item() if len(used) else 0.0


def coarser(weights: dict[str, Tensor], scales: dict[str, Scale | None], factor: float) -> dict[str, Scale | None]:
    """Every step times `factor`; a tensor with one step keeps some levels."""
    return {name: None if scale is None else _times(weights[name], scale, factor) for name, scale in scales.items()}


def _times(weight: Tensor, scale: Scale, factor: float) -> Scale:
    if scale.has_exponents:
        return scale._replace(step=as_bfloat16(scale.step * factor))
    # Training with a rate may leave a tensor one level: its steps are made no finer.
    return _of_step(weight, scale.step.item() * factor, scale.step.item())


def _of_step(weight: Tensor, step: float, least: float = 0.0) -> Scale:
    # Between 3 and 8191 levels on each side of 0: the formula holds for fine steps only, and for a tensor that hardly
    # matters it would leave nothing. Fine-tuning may move a weight beyond its range: the clamp leaves room for twice
    # it.
    largest = weight.abs().max().item() or 1.0
    step = min(max(step, largest / _LEVELS_MOST), max(largest / _LEVELS_LEAST, least))
    return Scale(as_bfloat16(torch.tensor([step])), None, -2 * _LEVELS_MOST, 2 * _LEVELS_MOST)


def _distortion(model: DualHeadHNeRV, weights: dict[str, Tensor], name: str, scale: Scale, clip_weight: float) -> float:
    """Distortion of the output when one tensor is quantised."""
    device = next(model.parameters()).device
    times = torch.linspace(0, model.scene.frames - 1, min(FRAMES, model.scene.frames), device=device).round()
    before = functional_call(model, {name: weights[name].to(device)}, (times,))
    after = functional_call(model, {name: dequantise(quantise(weights[name], scale), scale).to(device)}, (times,))
    distortion = (after.rgb - before.rgb).square().mean()
    if before.clip is not None:
        distortion = distortion + clip_weight * (1 - (after.clip * before.clip).sum(-1)).mean()
    return distortion.item()
