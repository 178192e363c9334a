"""Symbols of weights: every element of the matrix view has a scale class base + row + column.

Weights of one output or input channel share their magnitude; a scale per tensor would code all under a mixture of
scales, and a histogram cannot separate them either. The encoder fits the vectors to the symbols.

R rows, C columns; g neighbouring elements share a column (1 for weights, h w for the channels of latents).
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from hnerv.codec.entropy import (
    CLASSES,
    Density,
    Fields,
    SymbolDecoder,
    SymbolEncoder,
    bits_table,
    index_of,
    largest_residual,
    read_density,
)
from hnerv.codec.vectors import shortest_code

_REACH = 2
"""Classes by which a round of the fit moves an element of a vector."""


class Classes(NamedTuple):
    """Scale classes of a matrix view; `rows` (R,) and `cols` (C,) are None where they are zeros."""

    density: Density
    base: int
    rows: np.ndarray | None
    cols: np.ndarray | None

    def of(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Those of all elements, (R, C, g)."""
        classes = np.full(shape, self.base)
        if self.rows is not None:
            classes += self.rows[:, None, None]
        if self.cols is not None:
            classes += self.cols[None, :, None]
        return classes.clip(0, CLASSES - 1)

    def head(self) -> bytes:
        """Inverse of `read_classes`; the vectors have heads of their own."""
        return self.density.head() + struct.pack("<b", self.base)

    def put(self, symbols: np.ndarray, encoder: SymbolEncoder) -> None:
        """symbols (R, C, g). Inverse of `get`."""
        encoder.put(symbols.ravel(), self.density, self.of(symbols.shape).ravel(), np.zeros(symbols.size, np.int64))

    def get(self, shape: tuple[int, int, int], decoder: SymbolDecoder) -> np.ndarray:
        """-> symbols (R, C, g) int64."""
        return decoder.get(self.density, self.of(shape).ravel(), np.zeros(math.prod(shape), np.int64)).reshape(shape)


def read_classes(fields: Fields) -> Classes:
    """Inverse of `Classes.head`, without vectors. Raises ValueError."""
    return Classes(read_density(fields), fields.unpack("<b")[0], None, None)


def fit_classes(
    symbols: np.ndarray, row_guide: np.ndarray | None = None, col_guide: np.ndarray | None = None
) -> tuple[Classes, float]:
    """symbols (R, C, g), centred, and the guides of `VectorCode` -> the shortest classes; all bits, vectors included.

    Raises UserError for symbols that are too large.
    """
    index = index_of(int(np.abs(symbols).max(initial=0)))
    if not index:
        return Classes(Density(False, 0), 0, None, None), 0.0
    guides = row_guide, col_guide
    # A vector of a single element says what the base says, and one of all elements has nothing to share.
    axes = [axis for axis in (0, 1) if 1 < symbols.shape[axis] < symbols.size]
    choices = [(), *((axis,) for axis in axes), *([(0, 1)] if len(axes) == 2 else [])]
    laplace, logistic = (_Fit(symbols, Density(shape, index), guides) for shape in (False, True))
    found = [(choice, *laplace.classes(choice)) for choice in choices]
    choice, classes, bits = min(found, key=lambda each: each[2])
    # Which vectors pay hardly depends on the shape of the density: the logistic one is tried with the best alone.
    return min((classes, bits), logistic.classes(choice), key=lambda pair: pair[1])


class _Fit:
    """Classes of one density. Axis 0 has the vector of rows, axis 1 that of columns."""

    def __init__(self, symbols: np.ndarray, density: Density, guides: tuple[np.ndarray | None, ...]) -> None:
        self.density, self.guides, self.shape = density, guides, symbols.shape
        self.magnitude = np.abs(symbols).astype(np.float64)
        self.table = bits_table(density)
        self.positions = (symbols + largest_residual(density.index)).astype(np.intp)

    def classes(self, axes: tuple[int, ...]) -> tuple[Classes, float]:
        """The shortest with vectors along these axes, and its bits with those of the vectors."""
        base, vectors = self._first(axes)
        # Alternating minimisation: with the other axis fixed, each element of a vector has its own minimum. First of
        # the symbols' bits alone (maximum likelihood), then with the bits of the vector itself, which draw elements
        # with little evidence to their prediction.
        for priced in (False, True, True):
            for axis in axes:
                middle = int(np.median(vectors[axis]))  # vectors are cheapest around 0
                base, vectors[axis] = base + middle, vectors[axis] - middle
                vectors[axis] = self._updated(base, vectors, axis, priced)
        base = self._best_base(base, vectors)
        found = Classes(self.density, base, vectors.get(0), vectors.get(1))
        bits = self._bits(found.of(self.shape)).sum(dtype=np.float64)
        return found, float(bits) + sum(shortest_code(vectors[axis], self.guides[axis])[1] for axis in axes)

    def _first(self, axes: tuple[int, ...]) -> tuple[int, dict[int, np.ndarray]]:
        # The maximum likelihood of a Laplace density without rounding: the scale is the mean magnitude. Row scales
        # are the means of magnitudes over column scales, and so on; a few rounds settle. That of the logistic density
        # is about half an octave below.
        logs = {axis: np.zeros(self.shape[axis]) for axis in axes}
        for _ in range(3 if len(axes) > 1 else 1):
            for axis in axes:
                others = [2.0 ** -_along(log, other) for other, log in logs.items() if other != axis]
                scaled = self.magnitude * others[0] if others else self.magnitude
                means = scaled.mean(tuple({0, 1, 2} - {axis}))
                logs[axis] = np.log2(means + 0.01 * means.mean() + 1e-6)
        if not axes:
            return self._class(np.log2(self.magnitude.mean())), {}
        middles = {axis: np.median(log) for axis, log in logs.items()}
        vectors = {axis: np.rint(4 * (log - middles[axis])).astype(np.int64) for axis, log in logs.items()}
        base = max(-100, self._class(sum(middles.values())))
        for axis in axes:  # classes below 0 count as 0: no element needs to be less than makes its largest class 0
            largest = base + sum(int(vector.max()) for other, vector in vectors.items() if other != axis)
            vectors[axis] = vectors[axis].clip(min(-largest, 0))
        return base, vectors

    def _class(self, log2_scale: float) -> int:
        return round(4 * float(log2_scale)) + 16 - 2 * self.density.logistic

    def _updated(self, base: int, vectors: dict[int, np.ndarray], axis: int, priced: bool) -> np.ndarray:
        rest = base + sum((_along(v, other) for other, v in vectors.items() if other != axis), np.zeros(1, np.int64))
        options = vectors[axis] + np.arange(-_REACH, _REACH + 1)[:, None]
        sums = tuple({0, 1, 2} - {axis})
        costs = np.stack(
            [self._bits((rest + _along(option, axis)).clip(0, CLASSES - 1)).sum(sums) for option in options]
        )
        if priced:
            code, _ = shortest_code(vectors[axis], self.guides[axis])
            costs += code.option_bits(options, vectors[axis], self.guides[axis])
        return np.take_along_axis(options, costs.argmin(0)[None], 0)[0]

    def _bits(self, classes: np.ndarray) -> np.ndarray:
        """Of all symbols, under classes that broadcast to them."""
        return self.table.ravel().take(classes * self.table.shape[1] + self.positions)

    def _best_base(self, base: int, vectors: dict[int, np.ndarray]) -> int:
        options = range(max(base - _REACH, -128), min(base + _REACH, 127) + 1)
        found = [Classes(self.density, option, vectors.get(0), vectors.get(1)) for option in options]
        costs = [self._bits(option.of(self.shape)).sum(dtype=np.float64) for option in found]
        return options[int(np.argmin(costs))]


def _along(vector: np.ndarray, axis: int) -> np.ndarray:
    return vector[:, None, None] if axis == 0 else vector[None, :, None]
