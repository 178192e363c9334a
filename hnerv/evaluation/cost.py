"""What a decode costs: parameters, arithmetic, speed."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from hnerv.metrics import bits_per_pixel
from hnerv.model import DualHeadHNeRV, Scene, coded_parameters
from hnerv.model.predict import FRAMES_AT_ONCE, predict, to_uint8


class Cost(NamedTuple):
    """Coded parameters, their rate, 1e9 multiply-accumulates and 8-bit frames per second of a decode.

    The rate is that of the file where there is one, `bpp`; of a checkpoint it is an estimate and `bpp` is None.
    """

    parameters: dict[str, int]
    bpp: float | None
    bpp_estimate_8bit: float
    gmac_per_frame: float
    decode_fps: float

    def line(self, device: torch.device) -> str:
        """For people."""
        estimate = f"an estimated {self.bpp_estimate_8bit:.4f} bpp at 8 bits per parameter"
        rate = estimate if self.bpp is None else f"{self.bpp:.4f} bpp for the full file"
        return (
            f"{sum(self.parameters.values()):,} coded parameters ({rate}), {self.gmac_per_frame:.3f} GMAC per frame, "
            f"decodes {self.decode_fps:.1f} frames/s on {device.type} (batches of {FRAMES_AT_ONCE}, fp32)"
        )


def cost_of(model: DualHeadHNeRV, coded_bytes: int = 0) -> Cost:
    """Measured on the device that the model is on. `coded_bytes` is the size of the file that it came from."""
    parameters, scene = coded_parameters(model), model.scene
    estimate = estimated_rate(sum(parameters.values()), scene)
    rate = bits_per_pixel(coded_bytes, scene.frames, scene.height, scene.width) if coded_bytes else None
    return Cost(parameters, rate, estimate, gmac_per_frame(model), decode_fps(model))


def estimated_rate(parameters: int, scene: Scene) -> float:
    """Bits per pixel of the video if each parameter took 8 bits: an estimate, where nothing is coded yet."""
    return bits_per_pixel(parameters, scene.frames, scene.height, scene.width)


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
        to_uint8(predict(model, times, clip=False).rgb)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    decode()
    start, frames = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        decode()
        frames += FRAMES_AT_ONCE
    return frames / elapsed
