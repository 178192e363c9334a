"""Tensors <-> integers: value = offset + step x symbol, with a step per tensor, per output channel or per element.

Steps and offsets are bfloat16 numbers, two bytes each in the file; symbols are found with the rounded ones. The matrix
view of a tensor, (R, C), is `tensor.flatten(1)`; that of a vector is (1, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.errors import UserError

EIGHTHS = tuple(x / 2**23 for x in (8388608, 9147842, 9975792, 10878679, 11863283, 12937002, 14107901, 15384775))
"""2^(i / 8) for i = 0 ... 7, rounded to fp32."""

RESOLUTION = 4
"""Exponents per octave that `from_logs` uses, of the 8 that a file can have."""

LARGEST_EXPONENT, LARGEST_LEVEL = 240, 16382
"""Magnitudes of the exponents and symbols of `from_logs`."""

HALF_BITS = 16
"""A bit depth of 16 means half floats, not a uniform quantiser."""


class Scale(NamedTuple):
    """step and offset (1,) per tensor or (R,) per slice of the first axis; symbols lie in lowest ... highest.

    `offset` is None where it is 0. With the exponents `rows` (R,) or `cols` (C',), int32, the step of an element of
    the matrix view is step x 2^((rows + cols) / 8). C' divides C, and an exponent serves C / C' neighbouring columns:
    C' is the number of channels for latents, so that each has one step. No exponents are zeros.
    """

    step: Tensor
    offset: Tensor | None
    lowest: int
    highest: int
    rows: Tensor | None = None
    cols: Tensor | None = None

    @property
    def has_exponents(self) -> bool:
        """Whether the step is an outer product."""
        return self.rows is not None or self.cols is not None

    def steps(self, shape: tuple[int, ...]) -> Tensor:
        """fp32 steps that broadcast to a tensor of this shape; bit-identical on every machine."""
        if not self.has_exponents:
            return self.step.reshape(-1, *[1] * (len(shape) - 1))
        num_rows = shape[0] if len(shape) > 1 else 1
        num_cols = math.prod(shape) // num_rows
        exponents = self.step.new_zeros(num_rows, num_cols, dtype=torch.int32)
        if self.rows is not None:
            exponents = exponents + self.rows[:, None]
        if self.cols is not None:
            exponents = exponents + self.cols.repeat_interleave(num_cols // len(self.cols))
        # The product of the bfloat16 step and a constant is rounded to fp32; a power of two, built from its bits, is
        # exact. No library function with rounding of its own takes part.
        fractions = self.step.new_tensor(EIGHTHS)[(exponents % 8).long()]
        powers = ((exponents.div(8, rounding_mode="floor") + 127) << 23).view(torch.float32)
        return (self.step * fractions * powers).reshape(shape)

    def to(self, device: torch.device | str) -> Scale:
        """The same on a device."""
        return Scale(*(x.to(device) if isinstance(x, Tensor) else x for x in self))


def from_logs(log2_rows: Tensor | None, log2_cols: Tensor | None) -> Scale:
    """The scale with steps within 1 / RESOLUTION octaves of 2^(log2_rows + log2_cols) of the matrix view; None is 0."""
    # RESOLUTION minimises file and distortion together. Let D s^2 - n ln s be the cost of n elements in
    # nats, minimal at s = 1 for D = n / 2: with s = e^d it rises by n d^2. Rounded to 1 / r octaves, d is uniform and
    # n d^2 is n (ln 2 / r)^2 / 12 on average: 0.36, 1.4 and 5.8 nats at n = 144 for r = 4, 2, 1, against ln 2 = 0.69
    # nats that each halving of r saves on the exponent of a row.
    base, exponents = 0.0, []
    for logs in (log2_rows, log2_cols):
        if logs is None:
            exponents.append(None)
            continue
        logs = logs.detach().double().flatten().cpu()
        middle = logs.median().item()
        base += middle
        rounded = ((logs - middle) * RESOLUTION).round().mul(8 // RESOLUTION)
        rounded = rounded.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).int()
        exponents.append(rounded if rounded.any() else None)
    step = _positive(torch.tensor([2.0**base]))
    return Scale(step, None, -LARGEST_LEVEL, LARGEST_LEVEL, *exponents)


def symmetric(weight: Tensor, bits: int, per_channel: bool) -> Scale:
    """2^b - 1 levels around 0, the outermost at the largest magnitude: zeros, and pruned weights, stay exactly 0."""
    highest = (1 << (bits - 1)) - 1
    largest = _extreme(weight.abs(), per_channel, torch.amax)
    return Scale(_positive(largest / highest), None, -highest, highest)


def minmax(weight: Tensor, bits: int, per_channel: bool) -> Scale:
    """2^b levels from the least to the greatest value: HNeRV's scheme, without its search for the best axis."""
    # The offset is rounded to bfloat16 before the range is measured from it, so that the top level is the maximum
    # again.
    highest = (1 << bits) - 1
    least = as_bfloat16(_extreme(weight, per_channel, torch.amin))
    greatest = _extreme(weight, per_channel, torch.amax)
    return Scale(_positive((greatest - least) / highest), least, 0, highest)


SCHEMES: dict[str, Callable[[Tensor, int, bool], Scale]] = {"symmetric": symmetric, "minmax": minmax}
"""Name -> function of weight, bits, per_channel -> Scale."""


def check_bits(bits: int, flag: str) -> None:
    """Raises UserError for anything but 2 to 8 and 16."""
    if bits not in (*range(2, 9), HALF_BITS):
        raise UserError(f"{flag} {bits} must be 2 to 8, or 16 for half floats")


def quantise(weight: Tensor, scale: Scale) -> Tensor:
    """weight (C, ...) -> symbols of the same shape, int32. Inverse of `dequantise` up to half a step."""
    return levels(weight, scale).round().clamp(scale.lowest, scale.highest).int()


def dequantise(symbols: Tensor, scale: Scale) -> Tensor:
    """Symbols -> fp32 values; a product and, with an offset, a sum, each rounded to fp32."""
    values = symbols.float() * scale.steps(symbols.shape).to(symbols.device)
    return values if scale.offset is None else values + _along(scale.offset, symbols)


def dequantise_through(weight: Tensor, scale: Scale) -> Tensor:
    """dequantise(quantise(weight)), with the gradient of a clamp: a straight-through estimator (Bengio et al. 2013)."""
    # Rounding has the gradient 0 almost everywhere. y + (round(y) - y).detach() has the value round(y) and the gradient
    # of y; the clamp keeps its own, so that weights beyond the last level are not pushed further out.
    y = levels(weight, scale).clamp(scale.lowest, scale.highest)
    return dequantise(y + (y.round() - y).detach(), scale)


def levels(weight: Tensor, scale: Scale) -> Tensor:
    """(weight - offset) / step, not yet rounded."""
    shifted = weight if scale.offset is None else weight - _along(scale.offset, weight)
    return shifted / scale.steps(weight.shape).to(weight.device)


def as_bfloat16(x: Tensor) -> Tensor:
    """x rounded to a bfloat16, in fp32."""
    return x.detach().bfloat16().float()


def _along(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).reshape(-1, *[1] * (like.dim() - 1))


def _extreme(weight: Tensor, per_channel: bool, of: Callable[..., Tensor]) -> Tensor:
    rows = weight.detach().float().flatten(1) if per_channel and weight.dim() > 1 else weight.detach().float()[None]
    return of(rows.flatten(1), dim=1)


def _positive(step: Tensor) -> Tensor:
    rounded = as_bfloat16(step)  # 0 for a tensor of one value, which has no range: any step serves
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))
