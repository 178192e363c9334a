"""Side parameters of a record: vectors of small integers along its rows or columns, coded in the stream of its symbols.

They are step exponents and scale classes; with a few dozen symbols per row, their bits count.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from hnerv.codec.entropy import Density, Fields, SymbolDecoder, SymbolEncoder, bits_table, index_of, largest_residual

SCALE_CLASSES = range(8, 40, 2)
"""Of the elements: scales from 1/4 to 45 in half octaves."""

_INDEX = index_of(256)
_LARGEST = largest_residual(_INDEX)
_LOGISTIC, _DIFFERENCES, _HALVED, _SLOPE = 16, 32, 64, 128


class VectorCode(NamedTuple):
    """How a vector is coded, the elements themselves or their differences; `halved`: all are even, halves are coded.

    `slope` / 64 of a guide, a vector of the same length that is known, is subtracted first. Where training makes a step
    coarser, it also makes the weights smaller: classes fall as steps rise. And the layers before and after a channel
    agree on how much it matters.
    """

    scale_class: int
    logistic: bool
    differences: bool
    halved: bool
    slope: int

    def head(self) -> bytes:
        """Inverse of `read_vector_code`."""
        flags = _LOGISTIC * self.logistic | _DIFFERENCES * self.differences | _HALVED * self.halved
        flags |= SCALE_CLASSES.index(self.scale_class) | (_SLOPE if self.slope else 0)
        return bytes([flags]) + (struct.pack("<b", self.slope) if self.slope else b"")

    def put(self, values: np.ndarray, guide: np.ndarray | None, encoder: SymbolEncoder) -> None:
        """values (n,) int64. Inverse of `get`."""
        encoder.put(self.residuals(values, guide), self._density, *self._contexts(len(values)))

    def get(self, count: int, guide: np.ndarray | None, decoder: SymbolDecoder) -> np.ndarray:
        """-> values (count,) int64."""
        residuals = decoder.get(self._density, *self._contexts(count))
        return ((np.cumsum(residuals) if self.differences else residuals) + self.predicted(guide)) << self.halved

    def residuals(self, values: np.ndarray, guide: np.ndarray | None) -> np.ndarray:
        """What is coded of the values."""
        residuals = (values >> self.halved) - self.predicted(guide)
        return np.diff(residuals, prepend=0) if self.differences else residuals

    def predicted(self, guide: np.ndarray | None) -> np.ndarray | int:
        """Share of the guide, rounded half up."""
        return 0 if guide is None else (self.slope * guide + 32) >> 6

    def option_bits(self, options: np.ndarray, vector: np.ndarray, guide: np.ndarray | None) -> np.ndarray:
        """Bits of every option (O, n) of each element of `vector` (n,), the others as they are; an estimate."""
        options, vector, expected = options >> self.halved, vector >> self.halved, self.predicted(guide)
        if self.differences:  # halfway between the neighbours, to which an element has one difference each
            smooth = vector - expected
            expected = expected + (np.r_[smooth[:1], smooth[:-1]] + np.r_[smooth[1:], smooth[-1:]]) // 2
        residuals = (options - expected).clip(-_LARGEST, _LARGEST)
        return bits_table(self._density)[self.scale_class, residuals + _LARGEST]

    @property
    def _density(self) -> Density:
        return Density(self.logistic, _INDEX)

    def _contexts(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full(count, self.scale_class), np.zeros(count, np.int64)


def read_vector_code(fields: Fields) -> VectorCode:
    """Inverse of `VectorCode.head`."""
    (flags,) = fields.unpack("<B")
    slope = fields.unpack("<b")[0] if flags & _SLOPE else 0
    shape = (bool(flags & flag) for flag in (_LOGISTIC, _DIFFERENCES, _HALVED))
    return VectorCode(SCALE_CLASSES[flags % len(SCALE_CLASSES)], *shape, slope)


def shortest_code(values: np.ndarray, guide: np.ndarray | None = None) -> tuple[VectorCode, float]:
    """The shortest code of values (n,) and its bits, its head included. Raises ValueError beyond +-256 per element."""
    slopes, halved, found = {0}, not (values % 2).any(), []
    if guide is not None and guide.any():
        slopes.add(round(64 * float(guide @ (values >> halved)) / float(guide @ guide)))
    for slope in slopes:
        for differences in (False, True):
            code = VectorCode(SCALE_CLASSES[0], False, differences, halved, min(max(slope, -128), 127))
            residuals = code.residuals(values, guide)
            if np.abs(residuals).max(initial=0) > _LARGEST:
                continue
            for logistic in (False, True):
                table = bits_table(Density(logistic, _INDEX))[list(SCALE_CLASSES)]
                bits = table[:, residuals + _LARGEST].sum(1, dtype=np.float64)
                code = code._replace(scale_class=SCALE_CLASSES[int(bits.argmin())], logistic=logistic)
                found.append((float(bits.min()) + 8 * len(code.head()), code))
    if not found:
        raise ValueError(f"exponents or classes differ by more than {_LARGEST}")
    bits, code = min(found)
    return code, bits
