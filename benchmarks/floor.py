"""The time of a training step compared with its arithmetic, its memory traffic and its bare convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from timing import BLOCK, advance, alternating, repeated, trainer_of, warm_up

from hnerv.config import Config


def floor(config: Config, device, rounds: int, folder: str) -> dict:
    """The step of one batch without blends against arithmetic, memory traffic, and its bare convolutions."""
    import torch

    trainers = {}
    for name in dict.fromkeys((config.train.optimizer, "adam")):
        trainers[name] = trainer_of(config.replaced({"optimizer": name, "blend_freq": 0}), device, folder)
        batch = next(trainers[name].remaining_batches())
        trainers[name].step(batch)
    adam = trainers["adam"]
    convolutions, gmac = recorded(adam, batch), step_gmac(adam, batch)
    moved = {name: moved_bytes(trainer, convolutions) for name, trainer in trainers.items()}
    timed = {name: timed_steps(trainer, batch) for name, trainer in trainers.items()}
    timed["bare"] = Timed(repeated(bare(convolutions, device)), BLOCK)
    times = alternating({name: one.call for name, one in timed.items()}, rounds, device)
    step = {name: median(seconds) / timed[name].steps for name, seconds in times.items()}
    rates = machine_rates(device, torch.bfloat16 if config.train.in_bf16(device.type) else None)
    found: dict = {"gmac": gmac, **rates, "bare_ms": 1e3 * step["bare"], "convolutions": len(convolutions)}
    print(
        f"machine    {rates['gmac_per_second']:.1f} GMAC/s for a matrix product, {rates['gb_per_second']:.1f} GB/s "
        f"for a copy\nbare       {found['bare_ms']:.1f} ms for the {len(convolutions)} convolutions alone, forward and "
        "backward"
    )
    for name in trainers:
        arithmetic, traffic = gmac / rates["gmac_per_second"], moved[name] / 1e9 / rates["gb_per_second"]
        ms = 1e3 * step[name]
        row = {
            "step_ms": ms,
            "arithmetic_ms": 1e3 * arithmetic,
            "moved_mb": moved[name] / 1e6,
            "traffic_ms": 1e3 * traffic,
            "times_floor": step[name] / max(arithmetic, traffic),
            "times_bare": step[name] / step["bare"],
        }
        found[name] = row
        print(
            f"{name:10} {ms:.1f} ms per step without blends; arithmetic {row['arithmetic_ms']:.1f} ms "
            f"({gmac:.2f} GMAC), memory traffic {row['traffic_ms']:.1f} ms ({row['moved_mb']:.0f} MB): "
            f"{row['times_floor']:.2f} x the larger, {row['times_bare']:.2f} x the bare convolutions",
            flush=True,
        )
    return found


class Timed(NamedTuple):
    """A call, and of how many steps of one batch it is the work."""

    call: Callable[[], object]
    steps: float


def timed_steps(trainer, batch) -> Timed:
    """BLOCK steps of the batch; where steps are captured, an epoch, the last step of which may be smaller."""
    if not trainer.captures:
        return Timed(repeated(trainer.step, batch), BLOCK)
    warm_up(trainer)
    return Timed(lambda: advance(trainer, trainer.steps_per_epoch), trainer.batches.sizes.sum().item() / batch.real)


def recorded(trainer, batch) -> list[tuple]:
    """(module, its input, dtype of its output) of every convolution of one step; of the input shape and needs only."""
    from torch import nn

    found = []

    def hook(module, inputs, output) -> None:
        found.append((module, (inputs[0].shape, inputs[0].requires_grad), (output.shape, output.dtype)))

    convolutions = [m for m in trainer.model.modules() if isinstance(m, nn.Conv2d)]
    hooks = [module.register_forward_hook(hook) for module in convolutions]
    trainer.step(batch)
    for handle in hooks:
        handle.remove()
    return found


def bare(convolutions: list[tuple], device) -> Callable[[], None]:
    """Forward and backward of plain F.conv2d at the recorded shapes, channels last."""
    import torch
    import torch.nn.functional as F

    work = []
    for conv, (shape, needs), (_, dtype) in convolutions:
        last = {"device": device, "dtype": dtype}
        x = torch.randn(shape, **last).to(memory_format=torch.channels_last).requires_grad_(needs)
        weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last, copy=True).requires_grad_()
        bias = torch.zeros(conv.out_channels, **last, requires_grad=True)
        settings = conv.stride, conv.padding, conv.dilation, conv.groups
        y = F.conv2d(x, weight, bias, *settings)
        work.append((x, weight, bias, settings, torch.randn_like(y)))

    def run() -> None:
        for x, weight, bias, settings, gradient in work:
            wanted = (x, weight, bias) if x.requires_grad else (weight, bias)
            torch.autograd.grad(F.conv2d(x, weight, bias, *settings), wanted, gradient)

    return run


def step_gmac(trainer, batch) -> float:
    """1e9 multiply-accumulates of forward and backward; of an elementwise optimiser, which adds no products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        trainer.step(batch)
    return counter.get_total_flops() / 2 / 1e9


def moved_bytes(trainer, convolutions: list[tuple]) -> float:
    """What must move once: weights, gradients, optimiser state in and out; inputs, outputs, both gradients."""
    from torch import Tensor

    def size(value: object) -> int:
        if isinstance(value, Tensor):
            return value.nbytes
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return sum(map(size, parts))

    weights = sum(p.nbytes for p in trainer.model.parameters())
    state = sum(map(size, trainer.optimizer.state.values()))
    maps = sum(
        ((1 + needs) * math.prod(given) + 2 * math.prod(made)) * dtype.itemsize
        for _, (given, needs), (made, dtype) in convolutions
    )
    return 2 * (2 * weights + state) + maps


def machine_rates(device, dtype=None) -> dict[str, float]:
    """Best of several: a matrix product in the arithmetic of the convolutions, and a copy far larger than caches."""
    import torch

    side, numbers = (8192, 1 << 28) if device.type == "cuda" else (1024, 1 << 25)
    a = torch.randn(side, side, device=device, dtype=dtype or torch.float32)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    calls = {"product": lambda: a @ a, "copy": lambda: target.copy_(source)}
    best = {name: min(seconds) for name, seconds in alternating(calls, 5, device).items()}
    return {"gmac_per_second": side**3 / best["product"] / 1e9, "gb_per_second": 8 * numbers / best["copy"] / 1e9}
