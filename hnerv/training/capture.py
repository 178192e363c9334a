"""Training steps as CUDA graphs: one launch a step instead of hundreds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hnerv.training.timing import Clock

WARM_UP = 2
"""Steps of a kind that run eagerly first: they choose algorithms, make the optimiser's state, fill caches."""


class Captured(NamedTuple):
    """A graph, and where it leaves the gradients: (parameter, gradient or None)."""

    graph: torch.cuda.CUDAGraph
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class Graphs:
    """Runs `call(kind)` on CUDA: a kind's first steps eagerly, then as a graph that is captured once and replayed.

    `call` must be a function of tensors whose memory stays where it is, and must run the same operators for the same
    kind. Warm-up and capture run on one stream, as PyTorch requires; replays run on the caller's. Graphs share a pool
    of memory: none reads what another left in it.
    """

    def __init__(
        self, call: Callable[[Hashable], None], parameters: Sequence[nn.Parameter], device: torch.device, clock: Clock
    ) -> None:
        self.call, self.parameters, self.clock = call, parameters, clock
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.seen: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, Captured] = {}

    def __call__(self, kind: Hashable) -> bool:
        """One step -> whether it was replayed."""
        found = self.captured.get(kind)
        if found is None and self.seen[kind] < WARM_UP:
            self.seen[kind] += 1
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self.call(kind)
            current.wait_stream(self.stream)
            return False
        if found is None:
            found = self.captured[kind] = self._capture(kind)
            self.clock.mark("")  # a capture is no part of a step
        found.graph.replay()
        for parameter, gradient in found.gradients:
            parameter.grad = gradient
        self.clock.mark("graph")
        return True

    def _capture(self, kind: Hashable) -> Captured:
        """Records the operators of a step; none of them runs."""
        for parameter in self.parameters:
            parameter.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            self.call(kind)
        return Captured(graph, [(parameter, parameter.grad) for parameter in self.parameters])
