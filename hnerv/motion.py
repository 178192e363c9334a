"""A picture between two frames: both, moved along the motion that makes them meet there.

B pairs of frames, H W pixels. A motion (B, 2, H, W) is in pixels, down and right, from the earlier to the later frame.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

COARSEST = 20
"""Pixels: the search begins where halving once more would leave a shorter side."""
WINDOW = 7
"""Pixels along a side of the square in which two pictures are compared."""
SMOOTHING = 5
"""Pixels along a side of the square over which found motions are averaged."""
STANDSTILL = 0.9
"""A motion is taken where its difference is below this part of that without any: noise moves nothing."""


@torch.no_grad()
def between(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    """low, high (B, 3, H, W) in [0, 1], share (B,) of the way from low to high -> (B, 3, H, W) in [0, 1].

    Where nothing moves it is their linear blend.
    """
    flow, part = motion(low, high, share), share.view(-1, 1, 1, 1)
    ends = _moved(low, -part * flow, "bicubic"), _moved(high, (1 - part) * flow, "bicubic")
    return torch.lerp(*ends, part).clamp(0, 1)


@torch.no_grad()
def motion(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    """The motion (B, 2, H, W) at the pixels of the picture at `share` (B,) between low and high (B, 3, H, W).

    Block matching, coarse to fine: each level tries the doubled motion of the one before, its neighbours, and none.
    """
    part, pyramid = share.view(-1, 1, 1, 1), [(low, high)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * COARSEST:
        pyramid.append(tuple(F.avg_pool2d(x, 2) for x in pyramid[-1]))
    flow = low.new_zeros(len(low), 2, *pyramid[-1][0].shape[-2:])
    for level, (a, b) in enumerate(reversed(pyramid)):
        if level:
            flow = 2 * F.interpolate(flow, size=a.shape[-2:], mode="bilinear")
        for step in (2, 1) if level == 0 else (1,):
            flow = _better(a, b, part, flow, step)
        flow = _averaged(flow, SMOOTHING)
    return flow


def _better(low: Tensor, high: Tensor, part: Tensor, flow: Tensor, step: int) -> Tensor:
    """At each pixel the best of no motion, `flow`, and its eight neighbours at a distance of `step`."""

    def difference(moved: Tensor) -> Tensor:
        ends = _moved(low, -part * moved, "bilinear"), _moved(high, (1 - part) * moved, "bilinear")
        return _averaged((ends[0] - ends[1]).abs().mean(1, keepdim=True), WINDOW)

    found = torch.zeros_like(flow)
    least = STANDSTILL * difference(found)
    for offset in torch.tensor([*itertools.product((0, -step, step), repeat=2)], device=flow.device).split(1):
        moved = flow + offset.view(1, 2, 1, 1)
        cost = difference(moved)
        found = torch.where(cost < least, moved, found)
        least = torch.minimum(cost, least)
    return found


def _moved(x: Tensor, flow: Tensor, mode: str) -> Tensor:
    """x (B, C, H, W) -> at each pixel what x shows `flow` (B, 2, H, W) away; the border goes on outside."""
    height, width = x.shape[-2:]
    down = torch.arange(height, device=x.device).view(-1, 1) + flow[:, 0]
    right = torch.arange(width, device=x.device) + flow[:, 1]
    grid = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def _averaged(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W), averaged over squares of an odd side; the border goes on outside."""
    return F.avg_pool2d(F.pad(x, [side // 2] * 4, mode="replicate"), side, 1)
