"""Rate in training: quantisation steps that are learned, and an estimate of the bits that the parameters take.

N parameters of a model. The matrix of a weight is `weight.flatten(1)`, R rows and C columns; that of a vector is one
row. A latent tensor has T slices in time, c channels and h w cells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.model import LATENTS, DualHeadHNeRV
from hnerv.quantise import LARGEST_LEVEL, Scale, from_logs

LEVELS_PER_DEVIATION = 4
"""Steps in a standard deviation at the start: the noise is then small against the initial weights."""
LEAST_DEVIATION = 0.01
"""Of a tensor at the start; some start at 0."""
LOGISTIC_DEVIATION = math.pi / math.sqrt(3)
"""Standard deviation of a logistic density of scale 1."""
ACTIVITY_FLOOR = 0.3
"""Added to activities, in symbols, before their logarithm."""


class Quantised(NamedTuple):
    """{tensor: values as the network gets them}; symbols (N,) of all tensors in a row, not integers with noise."""

    values: dict[str, Tensor]
    symbols: Tensor


class RateModel(nn.Module):
    """Steps and densities of all parameters of `model`, which it does not own."""

    def __init__(self, model: DualHeadHNeRV, seed: int) -> None:
        super().__init__()
        self.weights = dict(model.named_parameters())
        self.sizes = [weight.numel() for weight in self.weights.values()]
        self.steps, self.densities = nn.ModuleList(), nn.ModuleList()
        for name, weight in self.weights.items():
            deviation = max(weight.detach().std(correction=0).item(), LEAST_DEVIATION)
            step, scale = math.log2(deviation / LEVELS_PER_DEVIATION), math.log2(deviation / LOGISTIC_DEVIATION)
            if LATENTS.fullmatch(name):
                # One step for all channels: the layer that reads them can scale each as it likes.
                self.steps.append(OuterSum(1, 1, step))
                self.densities.append(LatentDensity(weight.shape[1], scale))
            else:
                self.steps.append(OuterSum(*outer_shape(weight), step))
                self.densities.append(OuterSum(*outer_shape(weight), scale))
        # The noise of a parameter is a Weyl sequence: its t-th number is the fraction of start + t x stride. For almost
        # every stride it is uniform over time, and two such sequences are independent. Unlike a generator of random
        # numbers it has no state: a resumed run continues it, and a CUDA graph computes it from the number of the step.
        draw = torch.Generator().manual_seed(seed)
        for sequence in ("start", "stride"):
            numbers = torch.randint(1 << 32, (sum(self.sizes),), generator=draw)
            self.register_buffer(sequence, numbers, persistent=False)
        self.register_buffer("fixed", torch.zeros(sum(self.sizes)), persistent=False)
        self.to(next(model.parameters()).device)

    def forward(self, number: Tensor, rounded: bool) -> Quantised:
        """The parameters with the noise of step `number` (), or `rounded` to the steps of `fix`."""
        weights = torch.cat([weight.flatten() for weight in self.weights.values()])
        if rounded:
            # Straight-through (Bengio et al. 2013): the value of rounding, the gradient of y.
            y = (weights / self.fixed).clamp(-LARGEST_LEVEL, LARGEST_LEVEL)
            symbols = y + (y.round() - y).detach()
            return Quantised(self._by_name(symbols * self.fixed), symbols)
        # Rounding has the gradient 0. Uniform noise of one step has the variance of its error, and the density of y
        # plus this noise, at y, is the probability of the interval y - 1/2 ... y + 1/2 (Ballé et al. 2017). Both terms
        # of the loss have a gradient with respect to the steps: the noise grows with them, and the rate falls.
        steps = self.log_steps().exp2()
        values = weights + self.noise(number) * steps
        return Quantised(self._by_name(values), values / steps)

    def noise(self, number: Tensor) -> Tensor:
        """(N,), uniform in [-1/2, 1/2), of step `number` ()."""
        # The upper 24 bits: fp32 holds them exactly, and would round the largest of all 32 up to 1.
        return ((self.start + number.long() * self.stride) % (1 << 32) >> 8).float() * 2.0**-24 - 0.5

    @property
    def num_exponents(self) -> int:
        """Rows and columns of steps and scales, which a file stores next to the symbols."""
        sums = [
            part for part in (*self.steps, *self.densities) if isinstance(part, OuterSum) and part.columns is not None
        ]
        return sum(part.rows.numel() + part.columns.numel() for part in sums)

    def log_steps(self) -> Tensor:
        """(N,), binary logarithms."""
        return torch.cat([self._flat(step(), w) for step, w in zip(self.steps, self.weights.values(), strict=True)])

    @torch.no_grad()
    def fix(self) -> None:
        """Take over the steps as a file stores them: they are those of `forward` and `bits` where `rounded`."""
        scales = zip(self.scales().values(), self.weights.values(), strict=True)
        self.fixed.copy_(torch.cat([scale.steps(w.shape).expand(w.shape).flatten() for scale, w in scales]))

    def scales(self) -> dict[str, Scale]:
        """{tensor: steps rounded as in a file}, on the CPU."""
        return {name: step.scale() for name, step in zip(self.weights, self.steps, strict=True)}

    def bits(self, symbols: Tensor, rounded: bool) -> Tensor:
        """symbols (N,) of `forward` -> estimated bits of each tensor, in the order of the parameters."""
        means, log_scales = [], []
        for part, density, weight in zip(symbols.split(self.sizes), self.densities, self.weights.values(), strict=True):
            mean, log_scale = density(part.view_as(weight)) if isinstance(density, LatentDensity) else (None, density())
            means.append(torch.zeros_like(part) if mean is None else mean.flatten())
            log_scales.append(self._flat(log_scale, weight))
        log_steps = self.fixed.log2() if rounded else self.log_steps()
        bits = logistic_bits(symbols - torch.cat(means), (torch.cat(log_scales) - log_steps).exp2())
        return torch.stack([part.sum() for part in bits.split(self.sizes)])

    @staticmethod
    def _flat(values: Tensor, weight: Tensor) -> Tensor:
        """`values` for the matrix of a weight, or for a latent tensor, in the order of its elements."""
        return values.expand(weight.shape if values.dim() == 4 else matrix(weight).shape).flatten()

    def _by_name(self, values: Tensor) -> dict[str, Tensor]:
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        return {n: part.view(shapes[n]) for n, part in zip(shapes, values.split(self.sizes), strict=True)}


class OuterSum(nn.Module):
    """Binary logarithms row_i + column_j of the matrix of a weight; one number for a vector or a latent tensor.

    NVRC (Kwan et al. 2024) has steps and scales of this form.
    """

    def __init__(self, rows: int, columns: int, initial: float) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.full((rows, 1), initial))
        self.columns = nn.Parameter(torch.zeros(1, columns)) if rows > 1 else None

    def forward(self) -> Tensor:
        """(R, C) or (1, 1)."""
        return self.rows if self.columns is None else self.rows + self.columns

    def scale(self) -> Scale:
        """The steps 2^(row_i + column_j), rounded as in a file."""
        return from_logs(self.rows, self.columns)


class LatentDensity(nn.Module):
    """Mean and scale of the symbols of a latent tensor, from those before them: a causal context.

    Within a slice the cells of even row + column come first, and see the slices before; odd ones also see the four even
    neighbours. So a decoder computes half a slice at once.
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.full((1, channels, 1, 1), initial))
        self.previous = nn.Parameter(torch.zeros(1, 1, 3, 3))
        self.near = nn.Parameter(torch.zeros(1))
        self.activity = nn.Parameter(torch.zeros(3))
        cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 4
        self.register_buffer("cross", cross[None, None], persistent=False)
        self.register_buffer("box", torch.full((1, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """symbols (T, c, h, w) -> means, in symbols, and binary logarithms of scales, both (T, c, h, w)."""
        before = F.pad(symbols, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
        change = (before - F.pad(before, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]).abs()
        height, width = symbols.shape[2:]
        cells = torch.arange(height, device=symbols.device)[:, None] + torch.arange(width, device=symbols.device)
        odd = (cells % 2).float()
        mean = _filtered(before, self.previous)
        error = symbols - mean
        mean = mean + odd * self.near * _filtered(error, self.cross)
        activities = _filtered(change, self.box), odd * _filtered(error.abs(), self.cross)
        logs = [(activity + ACTIVITY_FLOOR).log2() for activity in activities]
        scale = self.scales + self.activity[0] * logs[0] + odd * (self.activity[1] * logs[1] + self.activity[2])
        return mean, scale


def _filtered(slices: Tensor, kernel: Tensor) -> Tensor:
    """slices (T, c, h, w), kernel (1, 1, 3, 3) -> each slice filtered, with zeros around it."""
    return F.conv2d(slices.flatten(0, 1)[:, None], kernel, padding=1)[:, 0].view_as(slices)


def logistic_bits(symbols: Tensor, scales: Tensor) -> Tensor:
    """Bits of symbols under a logistic density around 0: -log2 of its integral over symbol - 1/2 ... symbol + 1/2."""
    # With F(x) = sigmoid(x), p = F(a) - F(c), a = (y + 1/2) / b, c = (y - 1/2) / b. From F(a) - F(c) = F(a) F(-c) (1 -
    # e^(c - a)) follows -ln p = softplus(-a) + softplus(c) - ln(1 - e^(-1 / b)): no difference of nearly equal numbers.
    inverse = 1 / scales
    upper, lower = (symbols + 0.5) * inverse, (symbols - 0.5) * inverse
    return (F.softplus(-upper) + F.softplus(lower) - torch.log(-torch.expm1(-inverse))) / math.log(2)


def matrix(weight: Tensor) -> Tensor:
    """(O, I, ...) -> (O, I ...); (n,) -> (1, n)."""
    return weight.flatten(1) if weight.dim() > 1 else weight[None]


def outer_shape(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of an `OuterSum` for a weight: those of its matrix; (1, 1) for a vector."""
    return tuple(matrix(weight).shape) if weight.dim() > 1 else (1, 1)
