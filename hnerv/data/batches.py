"""Batches of an epoch: training frames in random order, blends between them, frames near them.

F frames of an epoch, S its steps, B frames of a step, P patches, D embedding dimensions, W columns of a plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.config import Config
from hnerv.data.store import Batch, FrameStore, Near
from hnerv.losses import Embedded, clip_loss, compares_frames
from hnerv.model import DualHeadHNeRV

NEAR = (2, 6)
"""Least and greatest distance of a near frame, in training frames: retrieval counts a direct neighbour as a hit."""


class Counts(NamedTuple):
    """Numbers of training frames, blends and near frames of a step, which give the shapes of its tensors."""

    real: int
    blends: int
    near: int

    @property
    def shown(self) -> int:
        """Pictures that are drawn: frames and blends."""
        return self.real + self.blends


class EpochPlan(NamedTuple):
    """An epoch: row i of `rows` (S, W) and `times` (S, W) belongs to step i, with Counts `counts[i]`.

    A row lists the training frames, the blends, then the near frames; the rest of it is 0. `rows` are rows of the
    FrameStore, `times` are positions in the video.
    """

    rows: Tensor
    times: Tensor
    counts: list[Counts]


class Batches:
    """Batches of the training frames of `store` for `model`. All randomness comes from the generator of `plan`."""

    def __init__(self, store: FrameStore, model: DualHeadHNeRV, config: Config) -> None:
        self.store, self.train = store, config.train
        self.positions = torch.tensor(model.scene.train)
        self.blends = len(store.between) if self.train.blend_freq and model.embedding.at_any_time else 0
        self.compares = model.clip_head is not None and compares_frames(config.loss.clip_loss)

    @property
    def width(self) -> int:
        """Columns of a plan: B frames, at most one blend, B near frames."""
        return 2 * self.train.batch_size + 1

    @property
    def sizes(self) -> Tensor:
        """Training frames of each step, (S,)."""
        return torch.tensor([len(part) for part in self.positions.split(self.train.batch_size)])

    def plan(self, draw: torch.Generator) -> EpochPlan:
        """Draw an epoch, on the CPU."""
        # All of it in advance, as tables of fixed width: a step that a CUDA graph holds reads its row, and a run that
        # resumes in the middle of an epoch draws the full epoch again and skips rows.
        order = self.positions[torch.randperm(len(self.positions), generator=draw)]
        steps = [*zip(order.split(self.train.batch_size), self._drawn(draw), self._near(order, draw), strict=True)]
        rows, times = torch.zeros(len(steps), self.width, dtype=torch.long), torch.zeros(len(steps), self.width)
        for i, (real, blends, near) in enumerate(steps):
            count = len(real) + len(blends) + len(near)
            rows[i, :count] = torch.cat([real, self.store.num_frames + blends, near])
            times[i, :count] = torch.cat([real, self.store.between[blends], near])
        return EpochPlan(rows, times, [Counts(*map(len, step)) for step in steps])

    def epoch(self, draw: torch.Generator, begin: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `begin` on; earlier ones are drawn, but not computed."""
        plan = self.plan(draw)
        for i in range(begin, len(plan.counts)):
            self.make(plan, i)
            yield self.batch(plan.rows[i], plan.times[i].to(self.store.device, non_blocking=True), plan.counts[i])

    def make(self, plan: EpochPlan, step: int) -> None:
        """Compute the blends of a step that are still missing."""
        real, blends, _ = plan.counts[step]
        if blends:
            self.store.make(plan.rows[step, real : real + blends])

    def make_all(self) -> None:
        """Compute all blends that a step may draw."""
        self.store.make(self.store.num_frames + torch.arange(self.blends))

    def batch(self, rows: Tensor, times: Tensor, counts: Counts, clip: bool = True) -> Batch:
        """The Batch of a row of a plan, `rows` (W,) on the CPU or the device, `times` (W,) on the device."""
        shown = counts.shown
        batch = self.store.gather(times[:shown], rows[:shown], counts.real, clip)
        if not counts.near or not clip:
            return batch
        end = shown + counts.near
        return batch._replace(near=Near(times[shown:end], self.store.clip(rows[shown:end])))

    def _drawn(self, draw: torch.Generator) -> list[Tensor]:
        """For each step of an epoch the numbers (0 or 1,) of its blends."""
        every, steps = self.train.blend_freq, len(self.sizes)
        if not self.blends:
            return [torch.empty(0, dtype=torch.long)] * steps
        # Of as many numbers as there are training frames, so that no blend is drawn more often than one of them; cuts
        # leave fewer blends, and numbers without one give a step without a blend.
        drawn = torch.randint(len(self.positions), (steps,), generator=draw)
        return [drawn[i : i + (i % every == 0 and int(drawn[i]) < self.blends)] for i in range(steps)]

    def _near(self, order: Tensor, draw: torch.Generator) -> list[Tensor]:
        """For each step the positions of training frames near those of `order` (F,), if the loss compares frames."""
        if not self.compares:
            return [order[:0]] * len(self.sizes)
        indices = torch.searchsorted(self.positions, order)
        near = self.positions[near_indices(indices, len(self.positions), draw)]
        return list(near.split(self.train.batch_size))


def near_indices(indices: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Indices (F,) of `count` training frames -> a random index near each, on either side; reflected at the ends."""
    away = torch.randint(NEAR[0], NEAR[1] + 1, indices.shape, generator=draw)
    away = torch.where(torch.randint(2, indices.shape, generator=draw) == 1, away, -away)
    inside = (indices + away >= 0) & (indices + away < count)
    return torch.where(inside, indices + away, indices - away).clamp(0, count - 1)


def clip_loss_of(name: str, predicted: Tensor, batch: Batch) -> Tensor:
    """The CLIP loss `name` -> scalar. predicted (B + N, P, D) belong to `batch.times`, then to `batch.embedded`."""
    drawn = len(batch.times)
    near = None if batch.near is None else Embedded(predicted[drawn:], batch.near.clip)
    return clip_loss(name, Embedded(predicted[:drawn], batch.clip), near)
