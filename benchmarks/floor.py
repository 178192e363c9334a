"""The time of a training step compared with its arithmetic, its memory traffic and its bare layers.

The floor of a step is the larger of two times: its multiply-accumulates at the rate of a matrix product, and the bytes
that it has to move at the rate of a copy. The bare convolutions and linear layers are a bound that kernels reach in
practice. Norms, activations, upsampling and the optimiser are not in any of these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common import BLOCK, advance, alternating, clip_trainer, machine_rates, repeated, warm_up
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hnerv.config import Config


class Layer(NamedTuple):
    """A convolution or linear layer as it ran in a step: shapes, dtype, and whether the input has a gradient."""

    module: nn.Conv2d | nn.Linear
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
    layers = recorded(adam, batch)
    gmac = step_gmac(layers)
    moved = {name: moved_bytes(trainer, layers) for name, trainer in trainers.items()}
    # name -> (call, number of steps of one batch in it)
    timed = {name: timed_steps(trainer, batch) for name, trainer in trainers.items()}
    timed["bare"] = repeated(bare(layers, device), times=BLOCK), BLOCK
    times = alternating({name: call for name, (call, _) in timed.items()}, rounds)
    step = {name: median(seconds) / timed[name][1] for name, seconds in times.items()}
    rates = machine_rates(device, torch.bfloat16 if config.train.in_bf16(device.type) else None)
    found: dict = {"gmac": gmac, **rates, "bare_ms": 1e3 * step["bare"], "layers": len(layers)}
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


def recorded(trainer, batch) -> list[Layer]:
    """Every convolution and linear layer of one step."""
    found = []

    def hook(module, inputs, output) -> None:
        found.append(Layer(module, inputs[0].shape, output.shape, output.dtype, inputs[0].requires_grad))

    layers = [m for m in trainer.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    trainer.step(batch)
    for handle in hooks:
        handle.remove()
    return found


def bare(layers: list[Layer], device) -> Callable[[], None]:
    """Forward and backward of F.conv2d and F.linear at the recorded shapes, maps channels last."""
    work = []
    for module, given, _, dtype, needs_grad in layers:
        options = {"device": device, "dtype": dtype}
        call: Callable[..., Tensor] = F.linear
        layout, settings = torch.contiguous_format, {}
        if isinstance(module, nn.Conv2d):
            call, layout = F.conv2d, torch.channels_last
            settings = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
        x = torch.randn(given, **options).to(memory_format=layout).requires_grad_(needs_grad)
        weight = module.weight.detach().to(dtype, memory_format=layout, copy=True).requires_grad_()
        bias = None if module.bias is None else torch.zeros(len(weight), **options, requires_grad=True)
        leaves = [leaf for leaf in (x, weight, bias) if leaf is not None and leaf.requires_grad]
        run = partial(call, x, weight, bias, **settings)
        work.append((run, leaves, torch.randn_like(run())))

    def run_all() -> None:
        for run, leaves, gradient in work:
            torch.autograd.grad(run(), leaves, gradient)

    return run_all


def step_gmac(layers: list[Layer]) -> float:
    """1e9 multiply-accumulates of forward and backward. The latter has one product for the weights, one for the input.

    torch's FlopCounterMode ignores the groups of a depthwise convolution in its backward pass.
    """
    return sum((2 + s.needs_grad) * math.prod(s.module.weight.shape[1:]) * math.prod(s.made) for s in layers) / 1e9


def moved_bytes(trainer, layers: list[Layer]) -> float:
    """Bytes that a step moves at least, each tensor once per pass over it.

    Weights, their gradients and the optimiser state are read and written. A layer reads its input, writes its
    output, reads the gradient of its output and writes that of its input, if there is one.
    """

    def size(value: object) -> int:
        if isinstance(value, Tensor):
            return value.nbytes
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return sum(map(size, parts))

    weights = sum(p.nbytes for p in trainer.model.parameters())
    state = sum(map(size, trainer.optimizer.state.values()))
    maps = sum(((1 + c.needs_grad) * math.prod(c.given) + 2 * math.prod(c.made)) * c.dtype.itemsize for c in layers)
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
