"""Integers <-> bytes: asymmetric numeral systems (ANS) under discretised densities, or a stored histogram.

Probabilities are computed with integers alone, so symbols decode alike on every machine. The coder is that of the
library constriction (Bamler 2022); docs/format.md specifies it for a second decoder.

n symbols; a symbol is coded as its residual r = -R ... R to a prediction, A = 2 R + 1 values.
"""

from __future__ import annotations

import decimal
import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hnerv.errors import UserError

PRECISION = 24
"""Frequencies of an alphabet sum to 2^24."""

MAX_SYMBOLS = 1 << 15
"""Largest alphabet of a histogram."""

CLASSES, _UNIT_CLASS = 73, 16
"""Class s = 0 ... 72 has the scale b = 2^((s - 16) / 4) symbols, 1/16 to 16384."""

_LOGISTIC = 64
LARGEST_INDEX = 56
"""Largest index of `largest_residual`: R = 32768."""


class Density(NamedTuple):
    """Shape and alphabet of coded residuals: R is `largest_residual(index)`."""

    logistic: bool
    index: int

    def head(self) -> bytes:
        """Inverse of `read_density`."""
        return bytes([self.index + _LOGISTIC * self.logistic])


# The density of a residual is f(x) = exp(-|x| / b) / 2b (Laplace) or the logistic one of scale b around a prediction
# with a fraction of f / 8 symbol, f = -4 ... 3, and r gets its integral over r +- 1/2. Symbols are grouped by (b, f):
# all of a group share one table, so that numpy and constriction handle a group per call and no loop in Python runs over
# symbols. Scales are rounded to quarter octaves, which costs next to nothing: with a scale of e^d b the code length of
# Laplacian symbols exceeds that of b by e^-d - 1 + d = d^2 / 2 nats. d is uniform within 1/8 octave = 0.087, so the
# mean of d^2 / 2 is 0.087^2 / 6 nats = 0.002 bits a symbol. A fraction rounded to eighths costs as little.
#
# From a group to its frequencies, in integers:
#   1. G(k) = 2^31 exp(-k / 8b): with k = sum_i k_i 2^i, k_i in {0, 1}, it is the product of exp(-2^i / 8b) over the i
#      with k_i = 1. By b = 2^((s - 16) / 4) each factor is exp(-2^(m / 4)) with m = 4 i + 4 - s: 87 constants serve all
#      classes. Products are rounded down, so that G might rise by a unit: the running minimum forbids it.
#   2. The part of the density below -k / 8: H(k) = G / 2 (Laplace), G / (1 + G) (logistic), by symmetry 1 - H above.
#   3. frequencies: f = 1 + H (2^24 - A), cut to the alphabet and rounded so that their sum is exactly 2^24. The 1 keeps
#      every value of the alphabet encodable.
_ONE = 1 << 31
_LEAST_POWER, _MOST_POWER = 4 - (CLASSES - 1), 18


def _decays() -> np.ndarray:
    """2^31 exp(-2^(m / 4)) for m = -68 ... 18, to the nearest integer; it is 0 for larger m."""
    with decimal.localcontext() as context:
        context.prec = 60  # decimal rounds correctly, unlike the exp of a processor
        root = decimal.Decimal(2).sqrt().sqrt()
        powers = range(_LEAST_POWER, _MOST_POWER + 1)
        return np.array([int((-(root**m)).exp() * _ONE + decimal.Decimal("0.5")) for m in powers], np.int64)


_DECAYS = _decays()


def largest_residual(index: int) -> int:
    """0, 1, 2, 3, then four values an octave: 4, 5, 6, 7, 8, 10, 12, ..."""
    return index if index < 4 else (4 + index % 4) << (index // 4 - 1)


def index_of(largest: int) -> int:
    """The first index with a `largest_residual` of at least `largest`. Raises UserError above 32768."""
    for index in range(LARGEST_INDEX + 1):
        if largest_residual(index) >= largest:
            return index
    raise UserError(
        f"quantised values are {largest} steps from their prediction, more than {largest_residual(LARGEST_INDEX)}: "
        "lower --weight-bits and --latent-bits, or set them to 16 for half floats"
    )


@functools.lru_cache(maxsize=512)
def frequencies(density: Density, scale_class: int, fraction: int) -> np.ndarray:
    """(A,) int64 of sum 2^24, each at least 1; A > 1."""
    largest = largest_residual(density.index)
    edges = 8 * np.arange(-largest, largest + 2) - 4 - fraction  # from the prediction to the edges, in eighths
    below = _tail(density.logistic, scale_class, 8 * largest + 8)[np.abs(edges)]
    below = np.where(edges < 0, below, _ONE - below)
    # The cumulative sums are rounded, not their terms: differences of rounded sums add up exactly.
    below -= below[0]
    free = (1 << PRECISION) - (2 * largest + 1)
    return np.diff(np.arange(len(edges)) + below * free // below[-1])


def _tail(logistic: bool, scale_class: int, stop: int) -> np.ndarray:
    """H(0) ... H(stop), (stop + 1,) int64 in units of 2^-31."""
    distance = np.arange(stop + 1)
    decay = np.full(stop + 1, _ONE)
    for bit in range(stop.bit_length()):
        power = min(4 * bit + 4 - scale_class, _MOST_POWER)
        factor = _DECAYS[power - _LEAST_POWER]
        decay = np.where(distance >> bit & 1, decay * factor >> 31, decay)
    decay = np.minimum.accumulate(decay)
    return (decay << 31) // (_ONE + decay) if logistic else decay >> 1


@functools.lru_cache(maxsize=16)
def bits_table(density: Density) -> np.ndarray:
    """(CLASSES, A) fp32: bits of every residual under every class, without a fraction."""
    found = [np.log2(frequencies.__wrapped__(density, scale_class, 0)) for scale_class in range(CLASSES)]
    return (PRECISION - np.stack(found)).astype(np.float32)


def coded_bits(residuals: np.ndarray, density: Density, classes: np.ndarray, fractions: np.ndarray) -> float:
    """Bits of the symbols, without the few that the coder adds at the end. All arrays (n,)."""
    if not density.index:
        return 0.0
    shifted, total = residuals + largest_residual(density.index), 0.0
    for scale_class, fraction, members in _groups(classes, fractions):
        total += np.log2(frequencies(density, scale_class, fraction)[shifted[members]]).sum()
    return float(PRECISION * len(residuals) - total)


class Fields:
    """Reads the heads of records from the start of a section on."""

    def __init__(self, data: bytes) -> None:
        self._view, self._used = memoryview(data), 0

    def take(self, count: int) -> memoryview:
        """The next bytes. Raises ValueError where they are too few."""
        if self._used + count > len(self._view):
            raise ValueError("truncated record")
        self._used += count
        return self._view[self._used - count : self._used]

    def unpack(self, form: str) -> tuple[int, ...]:
        """The next fields of a `struct` format."""
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def rest(self) -> bytes:
        """All that follows."""
        return bytes(self.take(len(self._view) - self._used))


def read_density(fields: Fields, largest_index: int = LARGEST_INDEX) -> Density:
    """Inverse of `Density.head`. Raises ValueError."""
    (byte,) = fields.unpack("<B")
    if byte >= 2 * _LOGISTIC or byte % _LOGISTIC > largest_index:
        raise ValueError("invalid alphabet")
    return Density(byte >= _LOGISTIC, byte % _LOGISTIC)


class Histogram(NamedTuple):
    """Alphabet 0 ... A - 1 of integers and its table: one code byte per bin of 2^shift values, see `bin_weights`.

    For symbols that no density fits: pruned weights, which are 0 or far from it, and alphabets of a few values.
    """

    num_symbols: int
    shift: int
    table: bytes

    def head(self) -> bytes:
        """Inverse of `read_histogram`."""
        return struct.pack("<HB", self.num_symbols, self.shift) + self.table

    def frequencies(self) -> np.ndarray:
        """(A,) int64 of sum 2^24, each at least 1."""
        weights = np.repeat(bin_weights(self.table), 1 << self.shift)[: self.num_symbols]
        cumulative = np.concatenate([[0], np.cumsum(weights)])
        free = (1 << PRECISION) - self.num_symbols
        return np.diff(np.arange(self.num_symbols + 1) + cumulative * free // int(cumulative[-1]))

    def bits(self, counts: np.ndarray) -> float:
        """Bits of symbols with these counts (A,), and of the head."""
        # The cross-entropy: a symbol of frequency f takes -log2(f / 2^24) bits.
        return float((counts * (PRECISION - np.log2(self.frequencies()))).sum()) + 8 * len(self.head())


# From a histogram to frequencies, in three steps; a decoder repeats the last two:
#   1. counts -> table: the counts of 2^shift neighbouring values are added up, and each sum is stored as a byte, an
#      8-bit float of 4 bits of mantissa and 4 of exponent. The largest bin is scaled to the largest float.
#   2. table -> weights: every value of a bin has its weight w, an integer.
#   3. weights -> frequencies as above, with w in place of the density.
# A byte a bin is precise enough: neighbouring floats differ by at most 1/16, so a stored probability q is within about
# 3 % of the counted p, and the excess sum p log2(p / q) of the code length is of second order: 0.0001 bits a symbol.


def shortest_histogram(indices: np.ndarray) -> tuple[Histogram, float] | None:
    """Histogram of indices (n,), at least 0, and all bits; None above MAX_SYMBOLS values."""
    if indices.max() >= MAX_SYMBOLS:
        return None
    # A byte a value does not pay for few symbols of a large alphabet. Each doubling of the bins halves the table and
    # blurs the histogram: try all widths, up to one bin, and keep the smallest sum of symbols and table.
    counts = np.bincount(indices, minlength=2)  # the coder needs an alphabet of at least two
    shifts = range((len(counts) - 1).bit_length() + 1)
    found = [Histogram(len(counts), shift, _table(counts, shift)) for shift in shifts]
    return min(((histogram, histogram.bits(counts)) for histogram in found), key=lambda pair: pair[1])


def read_histogram(fields: Fields) -> Histogram:
    """Inverse of `Histogram.head`. Raises ValueError."""
    num_symbols, shift = fields.unpack("<HB")
    if not 2 <= num_symbols <= MAX_SYMBOLS or shift > 15:
        raise ValueError("invalid alphabet")
    table = bytes(fields.take(-(-num_symbols // (1 << shift))))
    if not any(table):
        raise ValueError("empty frequency table")
    return Histogram(num_symbols, shift, table)


def bin_weights(table: bytes) -> np.ndarray:
    """Code bytes -> weights of the values of each bin, int64: v below 16, (16 + v mod 16) 2^(v div 16 - 1) above."""
    return _WEIGHTS[np.frombuffer(table, dtype=np.uint8)]


def _table(counts: np.ndarray, shift: int) -> bytes:
    """Code bytes with weights in proportion to the counts of the bins, within 3 %, and 0 for empty bins only."""
    bins = np.add.reduceat(counts, np.arange(0, len(counts), 1 << shift))
    scaled = bins * (_WEIGHTS[-1] / bins.max())
    above = np.searchsorted(_WEIGHTS, scaled).clip(1, 255)
    codes = above - (scaled - _WEIGHTS[above - 1] < _WEIGHTS[above] - scaled)
    return np.where(bins > 0, codes.clip(1), 0).astype(np.uint8).tobytes()


_CODES = np.arange(256)
_WEIGHTS = np.where(_CODES < 16, _CODES, (16 + _CODES % 16) << np.maximum(_CODES // 16 - 1, 0)).astype(np.int64)


class SymbolEncoder:
    """Collects the symbols of a section. Inverse of `SymbolDecoder`."""

    def __init__(self) -> None:
        self._groups: list[tuple[np.ndarray, object]] = []

    def put(self, residuals: np.ndarray, density: Density, classes: np.ndarray, fractions: np.ndarray) -> None:
        """Arrays (n,) of integers; |residuals| <= R."""
        if density.index:
            shifted = (residuals + largest_residual(density.index)).astype(np.int32)
            groups = _groups(classes, fractions)
            self._groups += [(shifted[members], _density_model(density, *group)) for *group, members in groups]

    def put_histogram(self, indices: np.ndarray, histogram: Histogram) -> None:
        """indices (n,), each below A."""
        self._groups.append((indices.astype(np.int32), _categorical(histogram.frequencies())))

    def words(self) -> bytes:
        """The words of the coder, 32 bits each, little-endian."""
        coder = _coder()
        for symbols, model in reversed(self._groups):  # ANS is a stack: the last symbol encoded is decoded first
            coder.encode_reverse(symbols, model)
        return coder.get_compressed().astype("<u4").tobytes()


class SymbolDecoder:
    """Symbols of a section, in the order in which they were put."""

    def __init__(self, words: bytes) -> None:
        """Raises ValueError for bytes that are no words of a coder."""
        if len(words) % 4:
            raise ValueError("invalid length of the coder words")
        self._coder = _coder(np.frombuffer(words, dtype="<u4").astype(np.uint32))

    def get(self, density: Density, classes: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        """-> residuals (n,) int64."""
        residuals = np.zeros(len(classes), np.int64)
        if density.index:
            for scale_class, fraction, members in _groups(classes, fractions):
                model = _density_model(density, scale_class, fraction)
                residuals[members] = self._coder.decode(model, len(members))
            residuals -= largest_residual(density.index)
        return residuals

    def get_histogram(self, histogram: Histogram, count: int) -> np.ndarray:
        """-> indices (count,) int64."""
        return self._coder.decode(_categorical(histogram.frequencies()), count).astype(np.int64)

    def finish(self) -> None:
        """Raises ValueError when the words do not end here."""
        if not self._coder.is_empty():
            raise ValueError("coder words are left over")


def empirical_entropy(symbols: np.ndarray) -> float:
    """Bits of n symbols under their own histogram: a lower bound for every coder without a context."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _groups(classes: np.ndarray, fractions: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(class, fraction, indices of its symbols), by class, then fraction; indices ascend."""
    keys = (classes * 8 + fractions + 4).astype(np.int16)
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    for key, members in zip(found.tolist(), np.split(order, starts)[1:], strict=True):
        yield key // 8, key % 8 - 4, members


def _coder(words: np.ndarray | None = None):
    import constriction

    return constriction.stream.stack.AnsCoder(*([] if words is None else [words]))


@functools.lru_cache(maxsize=1024)
def _density_model(density: Density, scale_class: int, fraction: int):
    return _categorical(frequencies.__wrapped__(density, scale_class, fraction))


def _categorical(counts: np.ndarray):
    import constriction

    # The library gives every value a frequency of 1 and shares out the rest in proportion to its input: with
    # f - 1, which already sum to the rest, it arrives at exactly these f.
    return constriction.stream.model.Categorical((counts - 1).astype(np.float64), perfect=False)
