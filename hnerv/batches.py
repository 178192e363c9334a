"""What the steps of an epoch are given: training frames in a drawn order, blends between them, frames near them.

F frames of an epoch, S its steps, B frames of a step, N near frames, P patches, D embedding dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from hnerv.config import Config
from hnerv.dataset import Batch, FrameStore
from hnerv.losses import Embedded, clip_loss, compares_frames
from hnerv.model import DualHeadHNeRV

NEAR = (2, 6)
"""How many training frames away a near frame is, at least and at most: a frame beside it may be taken for it."""


class Batches:
    """Of the training frames of `store`, for `model`. Everything is drawn from the generator that `epoch` is given."""

    def __init__(self, store: FrameStore, model: DualHeadHNeRV, config: Config) -> None:
        self.store, self.train, self.loss = store, config.train, config.loss
        self.positions = torch.tensor(model.scene.train)
        self.between = torch.tensor(model.scene.between if model.embedding.at_any_time else (), dtype=torch.long)
        self.has_head = model.clip_head is not None

    @property
    def sizes(self) -> Tensor:
        """Training frames of each step, (S,)."""
        return torch.tensor([len(part) for part in self.positions.split(self.train.batch_size)])

    def epoch(self, draw: torch.Generator, begin: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `begin` on; what comes before is drawn too, but not made."""
        order = self.positions[torch.randperm(len(self.positions), generator=draw)]
        steps = zip(order.split(self.train.batch_size), self._blends(draw), self._near(order, draw), strict=True)
        for positions, between, near in itertools.islice(steps, begin, None):
            batch = self.store.batch(positions, between)
            yield batch if near is None else batch._replace(near=self.store.near(near))

    def _blends(self, draw: torch.Generator) -> list[Tensor]:
        """For each step of an epoch the positions (1 or 0,) between training frames that it is also given."""
        every, steps = self.train.blend_freq, len(self.sizes)
        if not every or not len(self.between):
            return [self.between[:0]] * steps
        drawn = self.between[torch.randint(len(self.between), (steps,), generator=draw)]
        return [drawn[i : i + 1 if i % every == 0 else i] for i in range(steps)]

    def _near(self, order: Tensor, draw: torch.Generator) -> list[Tensor | None]:
        """For each step the positions of training frames near those of `order` (F,), if its loss compares frames."""
        if not self.has_head or not compares_frames(self.loss.clip_loss):
            return [None] * len(self.sizes)
        places = torch.searchsorted(self.positions, order)
        near = self.positions[near_places(places, len(self.positions), draw)]
        return list(near.split(self.train.batch_size))


def near_places(places: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Places (F,) among `count` training frames -> a place near each, drawn, to either side; at the ends inwards."""
    away = torch.randint(NEAR[0], NEAR[1] + 1, places.shape, generator=draw)
    away = torch.where(torch.randint(2, places.shape, generator=draw) == 1, away, -away)
    inside = (places + away >= 0) & (places + away < count)
    return torch.where(inside, places + away, places - away).clamp(0, count - 1)


def clip_loss_of(name: str, predicted: Tensor, batch: Batch) -> Tensor:
    """The CLIP loss `name` -> scalar. predicted (B + N, P, D): of `batch.times`, then of `batch.embedded`."""
    drawn = len(batch.times)
    near = None if batch.near is None else Embedded(predicted[drawn:], batch.near.clip)
    return clip_loss(name, Embedded(predicted[:drawn], batch.clip), near)
