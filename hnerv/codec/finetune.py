"""Quantisation-aware fine-tuning: weights that are accurate after rounding, and cheap to code.

Objective: pixel loss + lambda x CLIP loss of the rounded weights + rate weight x estimated bits per parameter.
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
from hnerv.model import LATENTS, DualHeadHNeRV
from hnerv.quantise import Scale, as_bfloat16, dequantise_through, levels

LEAST_PROBABILITY = 1e-9


class Tuning(NamedTuple):
    """Epochs, peak learning rate, pixel loss that a bit per parameter is worth, whether steps are learned too."""

    epochs: int
    lr: float = 2e-4
    rate_weight: float = 0.0
    learn_steps: bool = False


def finetune(
    model: DualHeadHNeRV,
    scales: dict[str, Scale | None],
    pruned: dict[str, Tensor],
    store: FrameStore,
    config: Config,
    tuning: Tuning,
    progress: bool = False,
) -> dict[str, Scale | None]:
    """Train the weights of `model` in place with Adam and a cosine schedule that ends at 0; return their scales.

    The scales change only with `learn_steps`. Weights under the masks `pruned` stay 0. Randomness comes from the run's
    seed. Raises UserError when all tensors are half floats.
    """
    parameters = {name: p for name, p in model.named_parameters() if scales.get(name) is not None}
    if not parameters:
        raise UserError(
            "--finetune-epochs has nothing to tune, because all tensors are half floats: set --weight-bits or "
            "--latent-bits below 16"
        )
    # The three kinds of parameters differ in scale: weights, logarithms of steps, and logarithms of the spreads of the
    # rate estimate. The spreads only follow the symbols and do not reach the file; a fast rate keeps the estimate
    # tight.
    steps = Steps({name: scales[name].to(store.device) for name in parameters}, tuning.learn_steps)
    rates = Rates(parameters, steps(), config.train.seed).to(store.device)
    peaks = (parameters.values(), tuning.lr), (steps.parameters(), tuning.lr), (rates.parameters(), 1e-2)
    groups = [{"params": list(params), "peak": peak} for params, peak in peaks]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    batches, draw = Batches(store, model, config), torch.Generator().manual_seed(config.train.seed)
    drawn = itertools.chain.from_iterable(batches.epoch(draw) for _ in range(tuning.epochs))
    count = tuning.epochs * len(batches.sizes)
    with tqdm(total=count, desc="fine-tune", unit="step", disable=None if progress else True) as bar:
        for number, batch in enumerate(drawn):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (1 + math.cos(math.pi * number / count)) / 2
            loss = _loss(model, parameters, steps(), batch, config, config.train.in_bf16(store.device.type))
            if tuning.rate_weight:
                loss = loss + tuning.rate_weight * rates(parameters, steps())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.train.grad_clip:
                nn.utils.clip_grad_norm_(parameters.values(), config.train.grad_clip)
            optimizer.step()
            with torch.no_grad():
                for name in pruned.keys() & parameters.keys():
                    parameters[name].masked_fill_(pruned[name], 0)
            bar.update()
    return scales | {name: scale.detached() for name, scale in steps().items()}


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


class Steps(nn.Module):
    """Scales with steps that are learned by their logarithm (LSQ, Esser et al. 2020), or stay as they are."""

    def __init__(self, scales: dict[str, Scale], learned: bool) -> None:
        super().__init__()
        self.scales = scales
        self.logs = nn.ParameterList(scale.step.log() for scale in scales.values()) if learned else None

    def forward(self) -> dict[str, Scale]:
        """{tensor: scale}, steps rounded to bfloat16 as in the file, with the gradient passed through that."""
        if self.logs is None:
            return self.scales
        # exp keeps steps positive, and makes a step of Adam a factor: tensors of every scale learn at the same speed.
        exact = {name: log.exp() for name, log in zip(self.scales, self.logs, strict=True)}
        return {
            name: self.scales[name]._replace(step=step + (as_bfloat16(step) - step).detach())
            for name, step in exact.items()
        }


class Rates(nn.Module):
    """Estimated bits per parameter: the symbols of a tensor under a logistic density with a learned spread.

    `scales` are those at the start. The file is coded with other probabilities, see `entropy`.
    """

    def __init__(self, parameters: dict[str, Tensor], scales: dict[str, Scale], seed: int) -> None:
        super().__init__()
        device = next(iter(parameters.values())).device
        self.draw = torch.Generator(device).manual_seed(seed)
        self.names = list(parameters)
        self.count = sum(p.numel() for p in parameters.values())
        with torch.no_grad():
            spreads = [_symbols(name, parameters[name], scales[name]).std(correction=0) for name in self.names]
        # A logistic density of scale b has the standard deviation pi / sqrt(3) b = 1.8 b.
        self.log_spreads = nn.ParameterList((spread / 1.8).clamp(min=0.05).log() for spread in spreads)

    def forward(self, parameters: dict[str, Tensor], scales: dict[str, Scale]) -> Tensor:
        """Scalar, bits per parameter."""
        # Ballé et al. 2017: rounding has the gradient 0 and is replaced by uniform noise of one step. The density of y
        # plus noise at y is the probability of the interval y - 1/2 ... y + 1/2, a difference of two values of the
        # logistic distribution function F(x) = sigmoid(x / b), and -log2 of it is the number of bits. With |y| instead
        # of y both values lie in the lower tail, where fp32 resolves their difference.
        bits = []
        for name, log_spread in zip(self.names, self.log_spreads, strict=True):
            y = _symbols(name, parameters[name], scales[name])
            noise = torch.rand(y.shape, generator=self.draw, device=y.device) - 0.5
            y, spread = (y + noise).abs(), log_spread.exp()
            probability = torch.sigmoid((0.5 - y) / spread) - torch.sigmoid((-0.5 - y) / spread)
            bits.append(-probability.clamp(min=LEAST_PROBABILITY).log2().sum())
        return torch.stack(bits).sum() / self.count


def _symbols(name: str, value: Tensor, scale: Scale) -> Tensor:
    """Symbols before rounding; for latents differences in time, which is how they are usually stored."""
    y = levels(value, scale)
    return y.diff(dim=0, prepend=y[:1].detach()) if LATENTS.fullmatch(name) else y
