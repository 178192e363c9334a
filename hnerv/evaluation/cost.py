"""What a decode costs: parameters, arithmetic, speed."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from hnerv.evaluation.measure import FRAMES_AT_ONCE
from hnerv.model import DualHeadHNeRV, coded_parameters


class Cost(NamedTuple):
    """Coded parameters, 1e9 multiply-accumulates and 8-bit frames per second of a decode."""

    parameters: dict[str, int]
    gmac_per_frame: float
    decode_fps: float

    def line(self, device: torch.device) -> str:
        """For people."""
        return (
            f"{sum(self.parameters.values()):,} coded parameters, {self.gmac_per_frame:.3f} GMAC per frame, "
            f"decodes {self.decode_fps:.1f} frames/s on {device.type} ({FRAMES_AT_ONCE} at once, fp32)"
        )


def cost_of(model: DualHeadHNeRV) -> Cost:
    """Measured on the device that the model is on."""
    return Cost(coded_parameters(model), gmac_per_frame(model), decode_fps(model))


@torch.no_grad()
def gmac_per_frame(model: DualHeadHNeRV) -> float:
    """Multiply-accumulates of one decoded frame with both heads, in 1e9, counted by torch over its operators."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, device=next(model.parameters()).device))
    return counter.get_total_flops() / 2 / 1e9


@torch.no_grad()
def decode_fps(model: DualHeadHNeRV, seconds: float = 1.0) -> float:
    """Frames per second from embedding to 8-bit RGB, several at a time, fp32, for at least `seconds`."""
    device = next(model.parameters()).device
    times = torch.arange(FRAMES_AT_ONCE, device=device, dtype=torch.float32) % model.scene.frames

    def decode() -> None:
        model(times, clip=False).rgb.mul(255).round().to(torch.uint8)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    decode()
    start, frames = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        decode()
        frames += FRAMES_AT_ONCE
    return frames / elapsed
