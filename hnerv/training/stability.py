"""How calmly the loss falls: {Train/Stability tag: value} of a window of steps."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 256
"""Steps."""


def extended(window: Tensor, losses: Tensor) -> Tensor:
    """The window (M,) with the losses of an epoch (S,) behind it, cut to its newest WINDOW steps."""
    return torch.cat([window, losses])[-WINDOW:].clone()


def stability_values(window: Tensor) -> dict[str, float]:
    """window (M,), fp64, finite -> smoothness, trend and spikes as the table of tags defines them; {} under 3 steps."""
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
    """Of the least-squares line through values (M,) at 0, 1, 2, ..."""
    x = torch.arange(len(values), dtype=values.dtype)
    x = x - x.mean()
    return ((x * values).sum() / x.square().sum()).item()
