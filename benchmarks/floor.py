"""The time of a training step compared with its arithmetic, its memory traffic and its bare convolutions.

The floor of a step is the larger of two times: its multiply-accumulates at the rate of a matrix product, and the bytes
that it has to move at the rate of a copy. The bare convolutions are a bound that kernels reach in practice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common import BLOCK, advance, alternating, clip_trainer, machine_rates, repeated, warm_up
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hnerv.config import Config


class Conv(NamedTuple):
    """A convolution as it ran in a step: shapes of input and output, dtype, and whether the input has a gradient."""

    module: nn.Conv2d
    given: torch.Size
    made: torch.Size
    dtype: torch.dtype
    needs_grad: bool


def floor(config: Config, device, rounds: int, folder: str) -> dict:
    """Time a step on one batch without blends, with the configured optimiser and with Adam, next to its bounds."""
    trainers = {}
    for name in dict.fromkeys((config.train.optimizer, "adam")):
        trainers[name] = clip_trainer(config.replaced({"optimizer": name, "blend_freq": 0}), device, folder)
        batch = next(trainers[name].remaining_batches())
        trainers[name].step(batch)
    adam = trainers["adam"]
    convolutions, gmac = recorded(adam, batch), step_gmac(adam, batch)
    moved = {name: moved_bytes(trainer, convolutions) for name, trainer in trainers.items()}
    # name -> (call, number of steps of one batch in it)
    timed = {name: timed_steps(trainer, batch) for name, trainer in trainers.items()}
    timed["bare"] = repeated(bare(convolutions, device), times=BLOCK), BLOCK
    times = alternating({name: call for name, (call, _) in timed.items()}, rounds)
    step = {name: median(seconds) / timed[name][1] for name, seconds in times.items()}
    rates = machine_rates(device, torch.bfloat16 if config.train.in_bf16(device.type) else None)
    found: dict = {"gmac": gmac, **rates, "bare_ms": 1e3 * step["bare"], "convolutions": len(convolutions)}
    for name in trainers:
        arithmetic, traffic = gmac / rates["gmac_per_second"], moved[name] / 1e9 / rates["gb_per_second"]
        found[name] = {
            "step_ms": 1e3 * step[name],
            "arithmetic_ms": 1e3 * arithmetic,
            "moved_mb": moved[name] / 1e6,
            "traffic_ms": 1e3 * traffic,
            "times_floor": step[name] / max(arithmetic, traffic),
            "times_bare": step[name] / step["bare"],
        }
    return found


def timed_steps(trainer, batch) -> tuple[Callable[[], object], float]:
    """(call, its steps): BLOCK steps of the batch. Captured steps run an epoch; the last of these may be smaller."""
    if not trainer.captures:
        return repeated(trainer.step, batch, times=BLOCK), BLOCK
    warm_up(trainer)
    return lambda: advance(trainer, trainer.steps_per_epoch), trainer.batches.sizes.sum().item() / batch.real


def recorded(trainer, batch) -> list[Conv]:
    """Every convolution of one step."""
    found = []

    def hook(module, inputs, output) -> None:
        found.append(Conv(module, inputs[0].shape, output.shape, output.dtype, inputs[0].requires_grad))

    hooks = [m.register_forward_hook(hook) for m in trainer.model.modules() if isinstance(m, nn.Conv2d)]
    trainer.step(batch)
    for handle in hooks:
        handle.remove()
    return found


def bare(convolutions: list[Conv], device) -> Callable[[], None]:
    """Forward and backward of F.conv2d at the recorded shapes, channels last."""
    work = []
    for conv, given, _, dtype, needs_grad in convolutions:
        options = {"device": device, "dtype": dtype}
        x = torch.randn(given, **options).to(memory_format=torch.channels_last).requires_grad_(needs_grad)
        weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last, copy=True).requires_grad_()
        bias = torch.zeros(conv.out_channels, **options, requires_grad=True)
        settings = conv.stride, conv.padding, conv.dilation, conv.groups
        work.append((x, weight, bias, settings, torch.randn_like(F.conv2d(x, weight, bias, *settings))))

    def run() -> None:
        for x, weight, bias, settings, gradient in work:
            leaves = (x, weight, bias) if x.requires_grad else (weight, bias)
            torch.autograd.grad(F.conv2d(x, weight, bias, *settings), leaves, gradient)

    return run


def step_gmac(trainer, batch) -> float:
    """1e9 multiply-accumulates of forward and backward. The optimiser must be elementwise: Muon adds products."""
    with FlopCounterMode(display=False) as counter:
        trainer.step(batch)
    return counter.get_total_flops() / 2 / 1e9


def moved_bytes(trainer, convolutions: list[Conv]) -> float:
    """Bytes that a step moves at least, each tensor once per pass over it.

    Weights, their gradients and the optimiser state are read and written. A convolution reads its input, writes its
    output, reads the gradient of its output and writes that of its input, if there is one.
    """

    def size(value: object) -> int:
        if isinstance(value, Tensor):
            return value.nbytes
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return sum(map(size, parts))

    weights = sum(p.nbytes for p in trainer.model.parameters())
    state = sum(map(size, trainer.optimizer.state.values()))
    maps = sum(
        ((1 + c.needs_grad) * math.prod(c.given) + 2 * math.prod(c.made)) * c.dtype.itemsize for c in convolutions
    )
    return 2 * (2 * weights + state) + maps


class OperatorCounter(TorchDispatchMode):
    """Count the operators that torch dispatches within a block, views excluded. `counts`: {name: times}."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        # The two names are views as well; the profiler's annotations come from the optimiser.
        if not (func.is_view or func.namespace == "profiler" or name in ("aten::_unsafe_view", "aten::detach")):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def operators_per_step(call: Callable[[], object], steps: int = 5) -> int:
    """Operators of one warm step, the cost of a step on the host: the median, since a step may also make a blend."""
    counts = []
    for _ in range(steps):
        with OperatorCounter() as counter:
            call()
        counts.append(counter.counts.total())
    return median(counts)
