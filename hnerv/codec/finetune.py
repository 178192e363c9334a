"""Quantisation-aware fine-tuning: weights that are accurate after rounding, to steps that are given.

Objective: pixel loss + lambda x CLIP loss of the rounded weights. Training with --rate-weight, which learns the steps
and the rate too, needs no fine-tuning.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from hnerv.config import Config
from hnerv.data.batches import Batches, clip_loss_of
from hnerv.data.store import Batch, FrameStore
from hnerv.errors import UserError
from hnerv.losses import pixel_loss
from hnerv.model import DualHeadHNeRV
from hnerv.quantise import Scale, dequantise_through


class Tuning(NamedTuple):
    """Epochs and peak learning rate."""

    epochs: int
    lr: float = 2e-4


def finetune(
    model: DualHeadHNeRV,
    scales: dict[str, Scale | None],
    pruned: dict[str, Tensor],
    store: FrameStore,
    config: Config,
    tuning: Tuning,
    progress: bool = False,
) -> None:
    """Train the weights of `model` in place with Adam and a cosine schedule that ends at 0.

    Weights under the masks `pruned` stay 0. Randomness comes from the run's seed. Raises UserError when all tensors
    are half floats.
    """
    parameters = {name: p for name, p in model.named_parameters() if scales.get(name) is not None}
    if not parameters:
        raise UserError(
            "--finetune-epochs has nothing to tune, because all tensors are half floats: set --weight-bits or "
            "--latent-bits below 16"
        )
    scales = {name: scales[name].to(store.device) for name in parameters}
    optimizer = torch.optim.Adam(parameters.values())
    batches, draw = Batches(store, model, config), torch.Generator().manual_seed(config.train.seed)
    drawn = itertools.chain.from_iterable(batches.epoch(draw) for _ in range(tuning.epochs))
    count = tuning.epochs * len(batches.sizes)
    with tqdm(total=count, desc="fine-tune", unit="step", disable=None if progress else True) as bar:
        for number, batch in enumerate(drawn):
            for group in optimizer.param_groups:
                group["lr"] = tuning.lr * (1 + math.cos(math.pi * number / count)) / 2
            loss = _loss(model, parameters, scales, batch, config, config.train.in_bf16(store.device.type))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.train.grad_clip:
                nn.utils.clip_grad_norm_(parameters.values(), config.train.grad_clip)
            optimizer.step()
            with torch.no_grad():
                for name in pruned.keys() & parameters.keys():
                    parameters[name].masked_fill_(pruned[name], 0)
            bar.update()


def _loss(
    model: DualHeadHNeRV,
    parameters: dict[str, Tensor],
    scales: dict[str, Scale],
    batch: Batch,
    config: Config,
    bf16: bool,
) -> Tensor:
    """pixel + lambda x CLIP of the rounded weights."""
    rounded = {name: dequantise_through(p, scales[name]) for name, p in parameters.items()}
    with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=bf16):
        prediction = functional_call(model, rounded, (batch.times,), {"embedded": batch.embedded})
    loss = pixel_loss(config.loss.pixel_loss, prediction.rgb, batch.frames)
    if prediction.clip is None:
        return loss
    return loss + config.loss.clip_loss_weight * clip_loss_of(config.loss.clip_loss, prediction.clip, batch)
