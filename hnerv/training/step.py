"""A training step as a function of tensors alone, so that a CUDA graph can hold it.

What differs from step to step (frames, times, learning rates, lambda) lies in tables on the device, of which a step
reads the row that a counter on the device points to. In a step no number comes from Python that changes, and nothing
is read back. It runs on the CPU in the same form.

B frames of a step, S steps of an epoch, G parameter groups, W columns of a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.config import Config
from hnerv.data.batches import Batches, Counts, EpochPlan, clip_loss_of
from hnerv.data.store import Batch
from hnerv.losses import pixel_loss
from hnerv.metrics import patch_mse, psnr
from hnerv.model import DualHeadHNeRV
from hnerv.training.optim import MODEL_PARTS, build_optimizer, clip_gradients, parameters_of
from hnerv.training.timing import Clock

COLUMNS = ("psnr", "pixel_loss", "clip_loss", "total_loss", "total_norm", *(f"{name}_norm" for name in MODEL_PARTS))
"""What a step records; the first four come with its losses."""


class Kind(NamedTuple):
    """Steps of one kind have tensors of the same shapes and run the same operators. `clip`: with the CLIP loss."""

    counts: Counts
    clip: bool


class Losses(NamedTuple):
    """total, a scalar with a gradient; logged (4,): PSNR of the training frames, pixel, CLIP, total loss."""

    total: Tensor
    logged: Tensor


def losses_of(model: DualHeadHNeRV, config: Config, device: torch.device) -> Callable[[Batch, Tensor, bool], Losses]:
    """The forward pass of a step: (batch, lambda (), with the CLIP loss) -> Losses, total = pixel + lambda x CLIP."""
    loss, grid = config.loss, model.scene.grid
    bf16 = config.train.in_bf16(device.type)

    zero = torch.zeros((), device=device)

    def losses(batch: Batch, weight: Tensor, clip: bool) -> Losses:
        """What `losses_of` returns."""
        # Each weight is cast once in a step: autocast's cache would only outlive the graph that filled it.
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            prediction = model(batch.times, batch.frames, clip=clip, embedded=batch.embedded if clip else None)
        pixel = pixel_loss(loss.pixel_loss, prediction.rgb, batch.frames)
        embedding = clip_loss_of(loss.clip_loss, prediction.clip, batch) if clip else zero
        total = pixel + weight * embedding if clip else pixel
        with torch.no_grad():
            real = slice(batch.real)
            quality = psnr(patch_mse(prediction.rgb[real], batch.frames[real], grid)).mean()
            logged = torch.stack([quality, pixel, embedding, total])
        return Losses(total, logged)

    return losses


class TrainingStep:
    """The steps of an epoch of `batches`. Its tensors stay where they are in memory: a graph holds their addresses."""

    def __init__(self, model: DualHeadHNeRV, batches: Batches, config: Config, clock: Clock) -> None:
        device = batches.store.device
        self.batches, self.clock, self.grad_clip = batches, clock, config.train.grad_clip
        self.parts = parameters_of(model)
        self.optimizer = build_optimizer(model, config.train)
        self.losses = losses_of(model, config, device)
        steps, width = len(batches.sizes), batches.width
        self.rows = torch.zeros(steps, width, dtype=torch.long, device=device)
        self.schedule_width = len(self.optimizer.param_groups) + 1
        self.values = torch.zeros(steps, self.schedule_width + width, device=device)
        """Schedule, then times."""
        self.records = torch.zeros(steps, len(COLUMNS), device=device)
        self.number = torch.zeros(1, dtype=torch.long, device=device)
        self.numbers = torch.arange(steps, device=device)[:, None]
        self.plan: EpochPlan | None = None

    def load(self, plan: EpochPlan, schedule: Tensor, begin: int) -> None:
        """An epoch, from step `begin` on. schedule (S, G + 1): the learning rate of each group, then lambda."""
        self.plan = plan
        for table, values in ((self.rows, plan.rows), (self.values, torch.cat([schedule, plan.times], dim=1))):
            table.copy_(values.pin_memory() if table.is_cuda else values, non_blocking=True)
        self.number.fill_(begin)

    def take(self, kind: Kind) -> None:
        """The step that `number` points to, which is of this kind and has its blends made. For resident frames."""
        self._take(self.rows.index_select(0, self.number)[0], kind)

    def take_from_host(self, step: int, kind: Kind) -> None:
        """As `take`, of frames in host memory."""
        self._take(self.plan.rows[step], kind)

    def _take(self, rows: Tensor, kind: Kind) -> None:
        values = self.values.index_select(0, self.number)[0]
        batch = self.batches.batch(rows, values[self.schedule_width :], kind.counts, kind.clip)
        row = self.update(batch, values[: self.schedule_width], kind.clip)
        # Not index_copy_, of which the deterministic form may read its index back.
        torch.where(self.numbers == self.number, row, self.records, out=self.records)
        self.number.add_(1)
        self.clock.mark("rest")

    def update(self, batch: Batch, schedule: Tensor, clip: bool) -> Tensor:
        """One step of the optimiser on a batch; schedule (G + 1,) is a row as in `load` -> a row of COLUMNS."""
        self.clock.mark("data")
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses(batch, schedule[-1], clip)
        self.clock.mark("forward")
        losses.total.backward()
        self.clock.mark("backward")
        norms = clip_gradients(self.parts, self.grad_clip)
        for group, rate in zip(self.optimizer.param_groups, schedule, strict=False):
            group["lr"] = rate
        self.optimizer.step()
        row = torch.cat([losses.logged, norms])
        self.clock.mark("optimizer")
        return row
