"""A training step as a function of tensors alone, so that a CUDA graph can hold it; and the graphs.

Everything that differs from step to step (frames, times, learning rates, lambda) lies in tables on the device. A step
reads the row that a counter on the device points to. No Python number in a step changes from one step to the next, and
nothing is read back to the host. The CPU runs the same code.

B frames of a step, S steps of an epoch, G parameter groups, W columns of a plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hnerv.config import Config
from hnerv.data.batches import Batches, Counts, EpochPlan, clip_loss_of
from hnerv.data.store import Batch
from hnerv.losses import pixel_loss
from hnerv.metrics import patch_mse, psnr
from hnerv.model import DualHeadHNeRV
from hnerv.rate import RateModel
from hnerv.training.ema import WeightAverage
from hnerv.training.optim import MODEL_PARTS, clip_gradients, parameters_of
from hnerv.training.timing import Clock

COLUMNS = ("psnr", "pixel_loss", "clip_loss", "total_loss", "total_norm", *(f"{name}_norm" for name in MODEL_PARTS))
"""The columns of a step's record; the first four come with its losses."""
COLUMN_TAGS = (
    *(f"Train_Batch/{name}" for name in ("PSNR", *COLUMNS[1:4])),
    *(f"Train/Gradients/{name}" for name in COLUMNS[4:]),
)
WARM_UP = 2
"""Eager steps of a kind before its graph is captured: they choose algorithms and create the optimiser state."""


class Kind(NamedTuple):
    """Steps of one kind have tensors of the same shapes and run the same operators.

    `clip`: with the CLIP loss. With a `RateModel`, `rate`: with the rate in the loss, `rounded`: without noise.
    """

    counts: Counts
    clip: bool
    rate: bool = False
    rounded: bool = False


class Schedule(NamedTuple):
    """What changes from step to step, tensors () on the device: learning rates (G,), lambda, the share of the current
    weights in their average, the weight of the rate, the number of the step in the run (exact below 2^24).
    """

    learning_rates: Tensor
    clip_weight: Tensor
    share: Tensor
    rate_weight: Tensor
    number: Tensor

    @classmethod
    def of(cls, row: Tensor) -> Schedule:
        """row (G + 4,)."""
        return cls(row[:-4], *row[-4:].unbind())


class Losses(NamedTuple):
    """total, a scalar with a gradient; logged (4,): PSNR of the training frames, pixel loss, CLIP loss, their total.

    The rate, which is not in the total of every step, is logged per epoch.
    """

    total: Tensor
    logged: Tensor


def losses_of(
    model: DualHeadHNeRV, config: Config, device: torch.device, rate_model: RateModel | None = None
) -> Callable[[Batch, Schedule, Kind], Losses]:
    """The forward pass of a step: (batch, schedule, kind) -> Losses, total = pixel + lambda x CLIP + W x rate."""
    loss, grid = config.loss, model.scene.grid
    bf16 = config.train.in_bf16(device.type)
    # Bits of the video -> bits per pixel, times N for the steps that leave the rate out.
    scale = config.train.rate_freq / model.scene.pixels

    zero = torch.zeros((), device=device)
    # During the warm-up no loss holds the CLIP head's weights: the rate would bring them to 0, where both of its layers
    # have no gradient left.
    others = [float(not name.startswith("clip_head.")) for name in rate_model.weights] if rate_model else []
    without_head = torch.tensor(others, device=device)

    def losses(batch: Batch, schedule: Schedule, kind: Kind) -> Losses:
        """See `losses_of`."""
        inputs, options = (batch.times, batch.frames), {"clip": kind.clip}
        if kind.clip:
            options["embedded"] = batch.embedded
        quantised = rate_model(schedule.number, kind.rounded) if rate_model else None
        # Each weight is cast once per step; autocast's cache would keep casts of a graph that no longer exists.
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            if quantised:
                prediction = functional_call(model, quantised.values, inputs, options)
            else:
                prediction = model(*inputs, **options)
        pixel = pixel_loss(loss.pixel_loss, prediction.rgb, batch.frames)
        embedding = clip_loss_of(loss.clip_loss, prediction.clip, batch) if kind.clip else zero
        total = pixel + schedule.clip_weight * embedding if kind.clip else pixel
        with torch.no_grad():
            real = slice(batch.real)
            quality = psnr(patch_mse(prediction.rgb[real], batch.frames[real], grid)).mean()
            logged = torch.stack([quality, pixel, embedding, total])
        if kind.rate:
            bits = rate_model.bits(quantised.symbols, kind.rounded)
            bits = bits.sum() if kind.clip else bits @ without_head
            total = total + schedule.rate_weight * scale * bits
        return Losses(total, logged)

    return losses


class TrainingStep:
    """The steps of an epoch of `batches`. Its tensors keep their addresses, which CUDA graphs hold."""

    def __init__(
        self,
        model: DualHeadHNeRV,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        config: Config,
        clock: Clock,
        compile: bool = False,
        average: WeightAverage | None = None,
        rate_model: RateModel | None = None,
    ) -> None:
        device = batches.store.device
        self.batches, self.clock, self.grad_clip = batches, clock, config.train.grad_clip
        self.parts, self.optimizer, self.average = parameters_of(model), optimizer, average
        losses = losses_of(model, config, device, rate_model)
        # Compiled at the first step of each kind, forward and backward; on CUDA before its graph is captured.
        self.losses = torch.compile(losses, dynamic=False) if compile else losses
        steps, width = len(batches.sizes), batches.width
        self.rows = torch.zeros(steps, width, dtype=torch.long, device=device)
        self.schedule_width = len(optimizer.param_groups) + 4
        # The schedule of each step, as in `load`, then the times of its frames.
        self.values = torch.zeros(steps, self.schedule_width + width, device=device)
        self.records = torch.zeros(steps, len(COLUMNS), device=device)
        self.number = torch.zeros(1, dtype=torch.long, device=device)
        self.numbers = torch.arange(steps, device=device)[:, None]
        self.plan: EpochPlan | None = None

    def load(self, plan: EpochPlan, schedule: Tensor, begin: int) -> None:
        """Loads an epoch, from step `begin` on.

        schedule (S, G + 4): a row of `Schedule` for each step.
        """
        self.plan = plan
        for table, values in ((self.rows, plan.rows), (self.values, torch.cat([schedule, plan.times], dim=1))):
            table.copy_(values.pin_memory() if table.is_cuda else values, non_blocking=True)
        self.number.fill_(begin)

    def take(self, kind: Kind) -> None:
        """The step that `number` points to, of this kind, with its blends made. For frames in device memory."""
        self._take(self.rows.index_select(0, self.number)[0], kind)

    def take_from_host(self, step: int, kind: Kind) -> None:
        """Like `take`, for frames in host memory."""
        self._take(self.plan.rows[step], kind)

    def _take(self, rows: Tensor, kind: Kind) -> None:
        values = self.values.index_select(0, self.number)[0]
        batch = self.batches.batch(rows, values[self.schedule_width :], kind.counts, kind.clip)
        row = self.update(batch, values[: self.schedule_width], kind)
        # torch.where rather than index_copy_: its deterministic form may read the index back to the host.
        torch.where(self.numbers == self.number, row, self.records, out=self.records)
        self.number.add_(1)
        self.clock.mark("rest")

    def update(self, batch: Batch, row: Tensor, kind: Kind) -> Tensor:
        """One step of the optimiser on a batch; row (G + 4,) is one of `load` -> a row of COLUMNS."""
        self.clock.mark("data")
        self.optimizer.zero_grad(set_to_none=True)
        schedule = Schedule.of(row)
        losses = self.losses(batch, schedule, kind)
        self.clock.mark("forward")
        losses.total.backward()
        self.clock.mark("backward")
        norms = clip_gradients(self.parts, self.grad_clip)
        for group, rate in zip(self.optimizer.param_groups, schedule.learning_rates.unbind(), strict=True):
            group["lr"] = rate
        self.optimizer.step()
        if self.average:
            self.average.update(schedule.share)
        record = torch.cat([losses.logged, norms])
        self.clock.mark("optimizer")
        return record


class Captured(NamedTuple):
    """A graph, and where it leaves the gradients: (parameter, gradient or None)."""

    graph: torch.cuda.CUDAGraph
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class Graphs:
    """Runs `call(kind)` on CUDA: the first steps of a kind eagerly, then as a graph that is captured once and replayed.

    `call` must be a function of tensors that keep their addresses, and must run the same operators for the same kind.
    Warm-up and capture run on one stream, as PyTorch requires; replays run on the caller's. The graphs share a memory
    pool, since none reads what another left in it.
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
        captured = self.captured.get(kind)
        if captured is None and self.seen[kind] < WARM_UP:
            self.seen[kind] += 1
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self.call(kind)
            current.wait_stream(self.stream)
            return False
        if captured is None:
            captured = self.captured[kind] = self._capture(kind)
            self.clock.mark("")  # the capture is not part of a step
        captured.graph.replay()
        for parameter, gradient in captured.gradients:
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
