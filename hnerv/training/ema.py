"""Exponential moving average of the weights (--ema-decay): the model that is evaluated, saved and coded."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hnerv.model import DualHeadHNeRV


def effective_decay(decay: float, updates: int) -> float:
    """Decay of an update, counted from 1: min(decay, (1 + updates) / (10 + updates)).

    Source: `num_updates` of tf.train.ExponentialMovingAverage.
    """
    # With a constant decay D the initialisation keeps the share D^n of the average after n updates: 37 % after 1000
    # of 0.999. While (1 + k) / (10 + k) is below D, that share is the product of the decays so far,
    #     prod_k (1 + k) / (10 + k) = 10! (n + 1)! / (n + 10)!,  6e-5 after 10 updates,
    # and 1 - decay = 9 / (10 + n): the average covers about the last n / 9 steps, a fixed part of the run.
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage:
    """A copy of `model` on its device, `self.model`, with the averages of all parameters. Buffers are its own.

    Its tensors keep their addresses, which CUDA graphs hold.
    """

    # torch.optim.swa_utils.AveragedModel keeps a copy too, but each update reads its counter back to the host and takes
    # the decay as a Python number: a CUDA graph can hold neither.

    def __init__(self, model: DualHeadHNeRV, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.averages, self.current = list(self.model.parameters()), list(model.parameters())

    @torch.no_grad()
    def update(self, share: Tensor) -> None:
        """Called after each step of the optimiser; share () of the current weights is 1 - effective decay."""
        # a <- d a + (1 - d) w = a + (1 - d) (w - a). torch._foreach_lerp_ would read a share from a tensor to the host.
        changes = torch._foreach_sub(self.current, self.averages)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(self.averages, changes)

    @torch.no_grad()
    def values(self, updates: int) -> dict[str, float]:
        """{Train/EMA/ tag: value} after so many updates."""
        differences = torch._foreach_sub(self.averages, self.current)
        distance, average, current = (
            torch.stack(torch._foreach_norm(tensors)).double() for tensors in (differences, self.averages, self.current)
        )
        trained = current > 0
        return {
            "Train/EMA/decay": effective_decay(self.decay, updates),
            "Train/EMA/distance": (distance[trained] / current[trained]).mean().item(),
            "Train/EMA/norm_ratio": (average.norm() / current.norm()).item(),
        }
