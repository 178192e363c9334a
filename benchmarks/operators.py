"""Count the operators that torch dispatches, views excluded: the cost of a step on the host, for any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from statistics import median

from torch.utils._python_dispatch import TorchDispatchMode

# Views by another name, and the annotations of the optimiser's own profiling.
NOT_COUNTED = ("aten::_unsafe_view", "aten::detach")


class OperatorCounter(TorchDispatchMode):
    """Counts within its block, backward passes included. `counts`: {name: times}."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if not (func.is_view or func.namespace == "profiler" or name in NOT_COUNTED):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def operators_per_step(call: Callable[[], object], steps: int = 5) -> int:
    """Median over a few warm calls, each one step: a step may also make a blend, or begin an epoch."""
    counts = []
    for _ in range(steps):
        with OperatorCounter() as counter:
            call()
        counts.append(counter.total)
    return median(counts)
