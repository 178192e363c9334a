"""The rate term of the training objective: its estimate, the model as a file would hold it, and its weight."""

from __future__ import annotations

import copy
import math

import torch

from hnerv.config import Config
from hnerv.model import DualHeadHNeRV
from hnerv.rate import RateModel
from hnerv.training.optim import MODEL_PARTS

GAIN, LARGEST_CHANGE = 75.0, 100.0
"""Of the controller, see `RateTerm.steered`: its gain, and the largest factor between the weight and --rate-weight."""
TOLERANCE = 0.05
"""Of a target rate, beyond which the user is notified."""
HEADER_BITS, SIDE_BITS = 12_000, 3
"""Of a file: its index and header, and each row or column of a step or a scale; measured on files of demo-codec."""


class RateTerm:
    """The estimate of the rate of `model`, trained by `optimizer` too; `self.model` is a copy with rounded weights."""

    def __init__(self, model: DualHeadHNeRV, optimizer: torch.optim.Optimizer, config: Config) -> None:
        self.estimate = RateModel(model, config.train.seed)
        # Logarithms of steps and of scales: no linear maps, so Muon leaves them to Adam, and 0 is no value to decay to.
        group = {"params": list(self.estimate.parameters()), "lr": config.train.lr, "lr_factor": 1.0}
        optimizer.add_param_group(group | {"orthogonal": False, "weight_decay": 0.0})
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.loss, self.epochs = config.loss, config.train.epochs
        self.pixels = model.scene.pixels
        self.side_bits = HEADER_BITS + SIDE_BITS * self.estimate.num_exponents

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the weights of the copy."""
        self.estimate.fix()
        self.model.load_state_dict(self.estimate(torch.zeros(()), rounded=True).values, strict=False)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """{part of the model: estimated bits per pixel of its rounded weights}."""
        self.estimate.fix()
        rounded = self.estimate(torch.zeros(()), rounded=True)
        bits = dict(zip(self.estimate.weights, self.estimate.bits(rounded.symbols, rounded=True).tolist(), strict=True))
        parts = {part: sum(b for name, b in bits.items() if name.startswith(f"{part}.")) for part in MODEL_PARTS}
        return {part: total / self.pixels for part, total in parts.items() if total}

    def total(self, parts: dict[str, float]) -> float:
        """Estimated bits per pixel of a file, header and side information included, from the rates of `measure`."""
        return sum(parts.values()) + self.side_bits / self.pixels

    def values(self, parts: dict[str, float], weight: float) -> dict[str, float]:
        """{Train/Rate/ tag: value} of the rates of `measure` and the weight of the rate."""
        rates = {f"Train/Rate/{part}_bpp": rate for part, rate in parts.items()}
        own = {"Train/Rate/weight": weight, "Train/Rate/loss": weight * sum(parts.values())}
        return {"Train/Rate/bpp": self.total(parts), **rates, **own}

    def missed(self, weight: float) -> str:
        """A sentence where the estimate ends more than TOLERANCE away from the target; else ''."""
        if not (target := self.loss.target_bpp) or abs((rate := self.total(self.measure())) / target - 1) <= TOLERANCE:
            return ""
        advice = "more epochs, or a --rate-weight or --modelsize nearer to it"
        return f"target   {target:g} bpp was missed: {rate:.4f} bpp, with a final weight of {weight:.2g}: pass {advice}"

    def steered(self, weight: float, rate: float, rounded: bool) -> float:
        """The next weight of the rate, after an epoch with this weight and this rate in bits per pixel."""
        # A rate near R ~ W^-a, a about 0.4, follows a change of the weight within a few epochs. With the step
        #     d log W / d epoch = (GAIN / epochs) log(R / target)
        # the error log(R / target) falls as exp(-a GAIN x), x the fraction of training: e^-6 in a fifth of it. While
        # weights are rounded the steps are fixed and the rate hardly follows: the weight is held, for it would wind up.
        if not self.loss.target_bpp or rounded:
            return weight
        start, largest = self.loss.rate_weight, math.log(LARGEST_CHANGE)
        change = math.log(weight / start) + GAIN / self.epochs * math.log(rate / self.loss.target_bpp)
        return start * math.exp(min(max(change, -largest), largest))
