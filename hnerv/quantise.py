"""Tensors <-> integers: value = offset + step x symbol, with a step per tensor or per output channel.

Steps and offsets are bfloat16 numbers, two bytes each in the file; symbols are found with the rounded ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.errors import UserError

HALF_BITS = 16
"""A bit depth of 16 means half floats, not a uniform quantiser."""


class Scale(NamedTuple):
    """step and offset (1,) per tensor or (C,) per slice of the first axis; symbols lie in lowest ... highest.

    `offset` is None where it is 0.
    """

    step: Tensor
    offset: Tensor | None
    lowest: int
    highest: int

    def to(self, device: torch.device | str) -> Scale:
        """The same on a device."""
        return self._replace(step=self.step.to(device), offset=None if self.offset is None else self.offset.to(device))

    def detached(self) -> Scale:
        """The same on the CPU, without a gradient, its steps as they are in a file."""
        return self._replace(step=as_bfloat16(self.step)).to("cpu")


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
    values = symbols.float() * _along(scale.step, symbols)
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
    return shifted / _along(scale.step, weight)


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
