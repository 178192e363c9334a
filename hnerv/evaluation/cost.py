"""What a decode costs: parameters, rate, arithmetic, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hnerv.metrics import bits_per_pixel
from hnerv.model import DualHeadHNeRV, Scene
from hnerv.model.predict import FRAMES_AT_ONCE, predict, to_uint8
from hnerv.runs.opening import OpenedRun


def cost_of(run: OpenedRun) -> dict[str, Any]:
    """The entries of a summary on costs, measured on the device of the model.

    coded_parameters {part: count}; for a .hnerv file its rate `bpp` and its `file_bytes`; bpp_estimate_8bit;
    gmac_per_frame, in 1e9 multiply-accumulates; decode_fps, in frames per second. Parameters and rates are those of
    the full model, even where its CLIP head is left out of the evaluation: the bytes of the file include the head.
    """
    scene = run.model.scene
    rate = bits_per_pixel(run.coded_bytes, scene.frames, scene.height, scene.width)
    return {
        "coded_parameters": run.record.coded_parameters,
        **({"bpp": rate, "file_bytes": run.coded_bytes} if run.coded_bytes else {}),
        "bpp_estimate_8bit": estimated_rate(run.record.parameters, scene),
        "gmac_per_frame": gmac_per_frame(run.model),
        "decode_fps": decode_fps(run.model),
    }


def cost_line(summary: Mapping[str, Any], device: torch.device) -> str:
    """The costs of a summary as one line of text."""
    parameters = summary["coded_parameters"]
    estimate = f"an estimated {summary['bpp_estimate_8bit']:.4f} bpp at 8 bits per parameter"
    rate = f"{summary['bpp']:.4f} bpp for the full file" if "bpp" in summary else estimate
    left_out = "clip_head" in parameters and summary["targets_kind"] == "none"
    return (
        f"{sum(parameters.values()):,} coded parameters{' including the CLIP head' * left_out} ({rate}), "
        f"{summary['gmac_per_frame']:.3f} GMAC per frame{' without it' * left_out}, "
        f"decodes {summary['decode_fps']:.1f} frames/s on {device.type} (batches of {FRAMES_AT_ONCE}, fp32)"
    )


def estimated_rate(parameters: int, scene: Scene) -> float:
    """Bits per pixel of the video if each parameter took 8 bits: an estimate, where nothing is coded yet."""
    return bits_per_pixel(parameters, scene.frames, scene.height, scene.width)


def gmac_per_frame(model: DualHeadHNeRV) -> float:
    """Multiply-accumulates of one decoded frame with both heads, in 1e9."""
    return gmac_of(lambda: model(torch.zeros(1, device=next(model.parameters()).device)))


@torch.no_grad()
def gmac_of(compute: Callable[[], object]) -> float:
    """Multiply-accumulates of a computation, in 1e9, counted by torch over its operators."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / 2 / 1e9  # torch counts a multiply-accumulate as two operations


@torch.no_grad()
def decode_fps(model: DualHeadHNeRV, seconds: float = 1.0) -> float:
    """Frames per second from embedding to 8-bit RGB, several at a time, fp32, for at least `seconds`."""
    device = next(model.parameters()).device
    times = torch.arange(FRAMES_AT_ONCE, device=device, dtype=torch.float32) % model.scene.frames

    def decode() -> None:
        to_uint8(predict(model, times, clip=False).rgb)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels run asynchronously: without it, launches would be timed

    decode()  # warm up: the first call selects algorithms and allocates
    start, frames = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        decode()
        frames += FRAMES_AT_ONCE
    return frames / elapsed
