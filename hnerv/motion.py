"""Motion-compensated interpolation: the picture between two frames, both moved to where they meet.

B pairs of frames, H W pixels. A motion (B, 2, H, W) is in pixels, down and right, from the earlier to the later frame.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

COARSEST_SIDE = 20
"""Pixels of the shorter side below which the pyramid is not halved again."""
BLOCK = 7
"""Side of the square block that is matched around each pixel, in pixels."""
SMOOTHING = 5
"""Side of the square over which motions are averaged after each level, in pixels."""
STANDSTILL = 0.9
"""A motion is taken where its cost is below this fraction of that of no motion: noise moves nothing."""


@torch.no_grad()
def between(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    """low, high (B, 3, H, W) in [0, 1], share (B,) of the way from low to high -> (B, 3, H, W) in [0, 1].

    Without motion it is their linear blend.
    """
    flow, part = motion(low, high, share), share.view(-1, 1, 1, 1)
    ends = _moved(low, -part * flow, "bicubic"), _moved(high, (1 - part) * flow, "bicubic")
    return torch.lerp(*ends, part).clamp(0, 1)


@torch.no_grad()
def motion(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    """The motion (B, 2, H, W) at the pixels of the picture at `share` (B,) between low and high (B, 3, H, W)."""
    # Block matching, coarse to fine. A pixel p of the picture at share t, on an object that moves by v, shows low at
    # p - t v and high at p + (1 - t) v. The motion is the v that makes the two agree around p,
    #
    #     cost(p, v) = mean over a block of 7 x 7 around p of |low(q - t v) - high(q + (1 - t) v)|.
    #
    # Searched at full size, motions of up to r pixels would take (2 r + 1)^2 candidates. In a pyramid a motion of r
    # pixels is one of r / 2^l on level l. There 10 candidates are tried: none, twice the motion of the coarser level,
    # and its 8 neighbours. With steps of 2 and then 1 on the coarsest level, they reach every motion that is at most 3
    # pixels there. Averaging after each level keeps a wrong match from spreading to the finer ones. As v is defined at
    # p and not in `low`, every pixel has one: no holes to fill.
    part, pyramid = share.view(-1, 1, 1, 1), [(low, high)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * COARSEST_SIDE:
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
    """At each pixel the cheapest of no motion, `flow`, and its eight neighbours at a distance of `step`."""

    def cost_of(candidate: Tensor) -> Tensor:
        ends = _moved(low, -part * candidate, "bilinear"), _moved(high, (1 - part) * candidate, "bilinear")
        return _averaged((ends[0] - ends[1]).abs().mean(1, keepdim=True), BLOCK)

    # No motion comes first, at a discount, and a later candidate must be strictly cheaper: a still or flat region,
    # where costs differ by noise alone, stays still. Then comes `flow` itself, which wins ties against its neighbours.
    found = torch.zeros_like(flow)
    least = STANDSTILL * cost_of(found)
    for offset in torch.tensor([*itertools.product((0, -step, step), repeat=2)], device=flow.device).split(1):
        candidate = flow + offset.view(1, 2, 1, 1)
        cost = cost_of(candidate)
        found = torch.where(cost < least, candidate, found)
        least = torch.minimum(cost, least)
    return found


def _moved(x: Tensor, flow: Tensor, mode: str) -> Tensor:
    """x (B, C, H, W), sampled `flow` (B, 2, H, W) away from each pixel; the border is repeated outside."""
    height, width = x.shape[-2:]
    down = torch.arange(height, device=x.device).view(-1, 1) + flow[:, 0]
    right = torch.arange(width, device=x.device) + flow[:, 1]
    # grid_sample counts from -1 at the left edge of the first pixel to 1 at the right edge of the last one.
    grid = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], dim=-1)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def _averaged(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W), averaged over squares of an odd side; the border is repeated outside."""
    return F.avg_pool2d(F.pad(x, [side // 2] * 4, mode="replicate"), side, 1)
