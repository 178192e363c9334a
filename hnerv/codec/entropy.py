"""Integers <-> bytes: asymmetric numeral systems under a table of frequencies that is in the file.

Everything that the decoder computes is integer arithmetic, so symbols decode alike on every machine. The coder is that
of the library constriction (Bamler 2022); docs/format.md says what it does, for a second decoder.

n symbols, A letters of an alphabet lowest ... lowest + A - 1, whose frequencies are told in bins of 2^shift letters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hnerv.errors import UserError

PRECISION = 24
"""Frequencies of an alphabet sum to 2^24."""

MAX_LETTERS = 1 << 15


class Model(NamedTuple):
    """An alphabet and its table: a code byte per bin, see `bin_weights`."""

    lowest: int
    letters: int
    shift: int
    table: bytes


class Coded(NamedTuple):
    """Symbols as they are stored; `words` are those of the coder, 32 bits each, little-endian."""

    model: Model
    words: bytes


def encode(symbols: np.ndarray) -> Coded:
    """symbols (n,), n > 0, integers less than 32,768 apart, under the model that makes them shortest.

    Inverse of `decode`. Raises UserError for integers further apart.
    """
    lowest = int(symbols.min())
    span = int(symbols.max()) - lowest + 1
    if span > MAX_LETTERS:
        raise UserError(
            f"quantised values span {span} symbols, more than {MAX_LETTERS}: lower --weight-bits and --latent-bits, or "
            "set them to 16 for half floats"
        )
    letters = (symbols.astype(np.int64) - lowest).astype(np.int32)
    counts = np.bincount(letters, minlength=2)  # a coder needs two letters
    model = _shortest(counts, lowest)
    coder = _coder()
    coder.encode_reverse(letters, _categorical(model))
    return Coded(model, coder.get_compressed().astype("<u4").tobytes())


def decode(coded: Coded, count: int) -> np.ndarray:
    """Coded -> symbols (count,) int64. Inverse of `encode`. Raises UserError when the words do not end there."""
    coder = _coder(np.frombuffer(coded.words, dtype="<u4").astype(np.uint32))
    letters = coder.decode(_categorical(coded.model), count)
    if not coder.is_empty():
        raise UserError(f"coder words are left over after {count} symbols: the file is damaged")
    return letters.astype(np.int64) + coded.model.lowest


def frequencies(model: Model) -> np.ndarray:
    """(A,) int64 of sum 2^24, each at least 1: 1 for every letter, the rest in proportion to the weights."""
    weights = np.repeat(bin_weights(model.table), 1 << model.shift)[: model.letters]
    cumulative = np.concatenate([[0], np.cumsum(weights)])
    free = (1 << PRECISION) - model.letters
    return np.diff(np.arange(model.letters + 1) + cumulative * free // int(cumulative[-1]))


def bin_weights(table: bytes) -> np.ndarray:
    """Code bytes -> weights of a letter of each bin, int64: v below 16, (16 + v mod 16) 2^(v div 16 - 1) above."""
    return _WEIGHTS[np.frombuffer(table, dtype=np.uint8)]


def coded_bits(counts: np.ndarray, model: Model) -> float:
    """Bits that letters occurring `counts` (A,) times take, without the few that the coder adds at the end."""
    return float(-(counts * np.log2(frequencies(model) / (1 << PRECISION))).sum())


def empirical_entropy(symbols: np.ndarray) -> float:
    """Bits of n symbols under their own histogram: the least that any table could reach."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _shortest(counts: np.ndarray, lowest: int) -> Model:
    """Few symbols of many letters do not pay for a byte a letter: their table has wider bins."""
    shifts = range((len(counts) - 1).bit_length() + 1)
    models = [Model(lowest, len(counts), shift, _table(counts, shift)) for shift in shifts]
    return min(models, key=lambda model: coded_bits(counts, model) + 8 * len(model.table))


def _table(counts: np.ndarray, shift: int) -> bytes:
    """Code bytes whose weights are in proportion to the bins' counts, within 3 %, and 0 for empty bins only."""
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


def _categorical(model: Model):
    """The library gives every letter 1 and shares out the rest in proportion: `frequencies` come out as they are."""
    import constriction

    return constriction.stream.model.Categorical((frequencies(model) - 1).astype(np.float64), perfect=False)
