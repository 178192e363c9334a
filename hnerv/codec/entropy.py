"""Integers <-> bytes: asymmetric numeral systems (ANS) under a table of frequencies that is stored with them.

All arithmetic of the decoder is on integers, so symbols decode alike on every machine. The coder is that of the library
constriction (Bamler 2022); docs/format.md specifies it for a second decoder.

n symbols, A values of an alphabet lowest ... lowest + A - 1. Frequencies are stored in bins of 2^shift values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hnerv.errors import UserError

PRECISION = 24
"""Frequencies of an alphabet sum to 2^24."""

MAX_SYMBOLS = 1 << 15
"""Largest alphabet."""


class EntropyModel(NamedTuple):
    """An alphabet of `num_symbols` values and its table: one code byte per bin, see `bin_weights`."""

    lowest: int
    num_symbols: int
    shift: int
    table: bytes


class CodedSymbols(NamedTuple):
    """Symbols as they are stored; `words` are those of the coder, 32 bits each, little-endian."""

    model: EntropyModel
    words: bytes


def encode_symbols(symbols: np.ndarray) -> CodedSymbols:
    """symbols (n,), n > 0, integers less than 32,768 apart, under the model that makes them shortest.

    Inverse of `decode_symbols`. Raises UserError for integers further apart.
    """
    lowest = int(symbols.min())
    span = int(symbols.max()) - lowest + 1
    if span > MAX_SYMBOLS:
        raise UserError(
            f"quantised values span {span} symbols, more than {MAX_SYMBOLS}: lower --weight-bits and --latent-bits, or "
            "set them to 16 for half floats"
        )
    indices = (symbols.astype(np.int64) - lowest).astype(np.int32)
    counts = np.bincount(indices, minlength=2)  # the coder needs an alphabet of at least two
    model = _shortest_model(counts, lowest)
    coder = _coder()
    coder.encode_reverse(indices, _categorical(model))  # ANS is a stack: the last symbol encoded is decoded first
    return CodedSymbols(model, coder.get_compressed().astype("<u4").tobytes())


def decode_symbols(coded: CodedSymbols, count: int) -> np.ndarray:
    """-> symbols (count,) int64. Inverse of `encode_symbols`. Raises UserError when the words do not end there."""
    coder = _coder(np.frombuffer(coded.words, dtype="<u4").astype(np.uint32))
    indices = coder.decode(_categorical(coded.model), count)
    if not coder.is_empty():
        raise UserError(f"coder words are left over after {count} symbols: the file is damaged")
    return indices.astype(np.int64) + coded.model.lowest


# From a histogram to the probabilities of the coder, in three steps; a decoder repeats the last two:
#   1. counts -> table: the counts of 2^shift neighbouring values are added up, and each sum is stored as a byte, an
#      8-bit float of 4 bits of mantissa and 4 of exponent. The largest bin is scaled to the largest float.
#   2. table -> weights: every value of a bin has its weight w, an integer.
#   3. weights -> frequencies: f = 1 + w (2^24 - A) / sum(w), rounded so that their sum is exactly 2^24. The 1 keeps
#      every value of the alphabet encodable; the probability that the coder uses is f / 2^24.
# A byte a bin is precise enough: neighbouring floats differ by at most 1/16, so a stored probability q is within about
# 3 % of the counted p, and the excess sum p log2(p / q) of the code length is of second order: 0.0001 bits a symbol for
# Laplacian ones.


def frequencies(model: EntropyModel) -> np.ndarray:
    """(A,) int64 of sum 2^24, each at least 1."""
    weights = np.repeat(bin_weights(model.table), 1 << model.shift)[: model.num_symbols]
    # The cumulative sums are rounded, not their terms: differences of rounded sums add up exactly.
    cumulative = np.concatenate([[0], np.cumsum(weights)])
    free = (1 << PRECISION) - model.num_symbols
    return np.diff(np.arange(model.num_symbols + 1) + cumulative * free // int(cumulative[-1]))


def bin_weights(table: bytes) -> np.ndarray:
    """Code bytes -> weights of the values of each bin, int64: v below 16, (16 + v mod 16) 2^(v div 16 - 1) above."""
    return _WEIGHTS[np.frombuffer(table, dtype=np.uint8)]


def coded_bits(counts: np.ndarray, model: EntropyModel) -> float:
    """Bits of symbols with this histogram (A,), without the few that the coder adds at the end."""
    # The cross-entropy: a symbol of probability q takes -log2(q) bits.
    return float(-(counts * np.log2(frequencies(model) / (1 << PRECISION))).sum())


def empirical_entropy(symbols: np.ndarray) -> float:
    """Bits of n symbols under their own histogram: a lower bound for every table."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _shortest_model(counts: np.ndarray, lowest: int) -> EntropyModel:
    # A byte a value does not pay for few symbols of a large alphabet. Each doubling of the bins halves the table and
    # blurs the histogram: try all widths, up to one bin, and keep the smallest sum of symbols and table.
    shifts = range((len(counts) - 1).bit_length() + 1)
    models = [EntropyModel(lowest, len(counts), shift, _table(counts, shift)) for shift in shifts]
    return min(models, key=lambda model: coded_bits(counts, model) + 8 * len(model.table))


def _table(counts: np.ndarray, shift: int) -> bytes:
    """Code bytes with weights in proportion to the counts of the bins, within 3 %, and 0 for empty bins only."""
    bins = np.add.reduceat(counts, np.arange(0, len(counts), 1 << shift))
    scaled = bins * (_WEIGHTS[-1] / bins.max())
    above = np.searchsorted(_WEIGHTS, scaled).clip(1, 255)
    codes = above - (scaled - _WEIGHTS[above - 1] < _WEIGHTS[above] - scaled)
    return np.where(bins > 0, codes.clip(1), 0).astype(np.uint8).tobytes()


_CODES = np.arange(256)
_WEIGHTS = np.where(_CODES < 16, _CODES, (16 + _CODES % 16) << np.maximum(_CODES // 16 - 1, 0)).astype(np.int64)


def _coder(words: np.ndarray | None = None):
    import constriction

    return constriction.stream.stack.AnsCoder(*([] if words is None else [words]))


def _categorical(model: EntropyModel):
    import constriction

    # The library gives every value a frequency of 1 and shares out the rest in proportion to its input: with
    # f - 1, which already sum to the rest, it arrives at exactly these f.
    return constriction.stream.model.Categorical((frequencies(model) - 1).astype(np.float64), perfect=False)
