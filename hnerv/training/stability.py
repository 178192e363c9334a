"""Stability of training: smoothness, trend and spikes of the loss over the last steps."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 256
"""Steps that are looked at."""


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
