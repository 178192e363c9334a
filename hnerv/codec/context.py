"""Symbols of latents: prediction and scale from a causal context in time and space.

A slice (c, h, w) is decoded in two passes over a checkerboard, first the even cells (row + column even), then the odd
ones. Cells of a pass do not depend on each other, so that numpy decodes a pass at once, where a raster scan would
decode cell by cell. Half of the cells, the odd ones, still see all four direct neighbours.

y symbols (T, c, h, w), y1 and y2 those one and two slices before; e residuals in eighths of a symbol. All are 0
outside.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from hnerv.codec.entropy import (
    CLASSES,
    Density,
    Fields,
    SymbolDecoder,
    SymbolEncoder,
    coded_bits,
    index_of,
    largest_residual,
    read_density,
)

LARGEST_SYMBOL = 1 << 24
"""Largest magnitude of a symbol: integers up to here are exact in fp32."""

LARGEST_CONTEXT = 48
"""Largest index of a density with a context, R = 8192: a pass may need all 584 tables of classes and fractions."""

# Of every slice but the first, even and odd cells have their own coefficients; cells of the first slice have no past.
#   prediction in eighths = (4 w0 y1 + w1 sum4(y1) + w2 sumx(y1) + 4 w3 y2 + w4 sum4(y) + 16) div 32
#   class = base + (g0 L(|e1| + 2) + g1 L(sum9 |e1| + 14) + g2 L(sum9 |e2| + 14) + g3 L(sum4 |e| + 6) + 16) div 32
# sum4, sumx and sum9 add up the direct neighbours, the diagonal ones, and both with the cell; L(a) is 4 log2 a, rounded
# down, as classes are quarter octaves. The constants, 1/5 symbol a cell, keep L finite at 0.
REGIMES = {
    (False, False): ((), ()),
    (False, True): ((4,), (3,)),
    (True, False): ((0, 1, 2, 3), (0, 1, 2)),
    (True, True): ((0, 1, 2, 3, 4), (0, 1, 2, 3)),
}
"""(after the first slice, odd cells) -> indices of its weights w and its gains g."""

NUM_COEFFICIENTS = sum(1 + len(weights) + len(gains) for weights, gains in REGIMES.values())
"""Signed bytes: base, weights and gains of each regime, in order."""

_THRESHOLDS = np.array([math.isqrt(math.isqrt((1 << k) - 1)) + 1 if k else 1 for k in range(125)])
"""L(a) >= k if and only if a >= ceil(2^(k / 4)); isqrt twice is the fourth root, rounded down."""


def _log(a: np.ndarray) -> np.ndarray:
    """L(a)."""
    return np.searchsorted(_THRESHOLDS, a, side="right") - 1


_LOGS = _log(np.arange(1 << 14))


class Regime(NamedTuple):
    """Coefficients of `REGIMES`: (5,) weights in 1/256 and (4,) gains in 1/32, 0 where a regime has none."""

    base: int
    weights: np.ndarray
    gains: np.ndarray


class Context(NamedTuple):
    """Coefficients for the symbols of a section; `channels` (c,) are added to the classes, None: zeros."""

    density: Density
    regimes: dict[tuple[bool, bool], Regime]
    channels: np.ndarray | None

    def head(self) -> bytes:
        """Inverse of `read_context`; the channels have a head of their own."""
        parts = [
            [regime.base, *regime.weights[list(REGIMES[key][0])], *regime.gains[list(REGIMES[key][1])]]
            for key, regime in self.regimes.items()
        ]
        return self.density.head() + np.concatenate(parts).astype(np.int8).tobytes()

    def put(self, symbols: np.ndarray, encoder: SymbolEncoder) -> None:
        """symbols (T, c, h, w). Inverse of `get`."""
        eighths, classes = self._contexts(symbols)
        for t in range(len(symbols)):
            for odd in (False, True):
                cells = np.broadcast_to(_cells(symbols.shape, odd), symbols[t].shape)
                nearest, fractions = _split(eighths[t][cells])
                encoder.put(symbols[t][cells] - nearest, self.density, classes[t][cells], fractions)

    def get(self, shape: tuple[int, ...], decoder: SymbolDecoder) -> np.ndarray:
        """-> symbols (T, c, h, w) int64. Raises ValueError for symbols beyond LARGEST_SYMBOL."""
        symbols, residuals = np.zeros(shape, np.int64), np.zeros((2, *shape[1:]), np.int64)
        nothing = np.zeros(shape[1:], np.int64)
        for t in range(len(symbols)):
            past = [symbols[t - back] if t >= back else nothing for back in (1, 2)]
            current = np.zeros(shape[1:], np.int64)
            for odd in (False, True):
                regime, cells = self.regimes[t > 0, odd], np.broadcast_to(_cells(shape, odd), shape[1:])
                eighths = _prediction(regime.weights, *past, symbols[t])
                classes = self._classes(regime, *residuals, current)
                nearest, fractions = _split(eighths[cells])
                symbols[t][cells] = nearest + decoder.get(self.density, classes[cells], fractions)
                current[cells] = np.abs(8 * symbols[t] - eighths)[cells]
            if np.abs(symbols[t]).max(initial=0) > LARGEST_SYMBOL:
                raise ValueError("symbol out of range")
            residuals = np.stack([current, residuals[0]])
        return symbols

    def _contexts(self, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions in eighths and classes of all cells, as the decoder finds them one pass after the other."""
        eighths = _predictions(self.regimes, symbols)
        residuals = np.abs(8 * symbols - eighths)
        past, classes = (_earlier(residuals, 1), _earlier(residuals, 2)), np.zeros_like(symbols)
        for (later, odd), regime in self.regimes.items():
            mask = _mask(symbols.shape, later, odd)
            classes[mask] = self._classes(regime, *past, residuals)[mask]
        return eighths, classes

    def _classes(self, regime: Regime, e1: np.ndarray, e2: np.ndarray, e: np.ndarray) -> np.ndarray:
        logs = _activities(e1, e2, e)
        classes = regime.base + (sum(int(g) * log for g, log in zip(regime.gains, logs, strict=True)) + 16 >> 5)
        if self.channels is not None:
            classes = classes + self.channels[:, None, None]
        return np.clip(classes, 0, CLASSES - 1)


def read_context(fields: Fields) -> Context:
    """Inverse of `Context.head`, without channels. Raises ValueError."""
    density, regimes = read_density(fields, LARGEST_CONTEXT), {}
    values = iter(fields.unpack(f"<{NUM_COEFFICIENTS}b"))
    for key, (weights, gains) in REGIMES.items():
        regimes[key] = Regime(next(values), np.zeros(5, np.int64), np.zeros(4, np.int64))
        regimes[key].weights[list(weights)] = [next(values) for _ in weights]
        regimes[key].gains[list(gains)] = [next(values) for _ in gains]
    return Context(density, regimes, None)


def fit_context(symbols: np.ndarray) -> tuple[Context, float] | None:
    """symbols (T, c, h, w), centred -> a context, and its bits without those of `channels`; None: large residuals."""
    # Weights: with Laplacian residuals maximum likelihood minimises sum |e|, here as least squares, with weights
    # 1 / |e| that are found by iteration. Scales: the code length sum log b + |e| / b is convex in the coefficients of
    # log b, so that Newton's method finds its minimum. Sums are einsums, which do not depend on the number of threads.
    regimes = {}
    for key, (used, _) in REGIMES.items():
        weights, mask = np.zeros(5, np.int64), _mask(symbols.shape, *key)
        if used and mask.any():
            features = _features(_earlier(symbols, 1), _earlier(symbols, 2), symbols)
            found = _median_regression(np.stack([features[i][mask] for i in used]), symbols[mask])
            weights[list(used)] = np.rint(256 * found).clip(-128, 127)
        regimes[key] = Regime(0, weights, np.zeros(4, np.int64))
    residuals = np.abs(8 * symbols - _predictions(regimes, symbols))
    magnitude = np.sqrt((residuals / 8) ** 2 + 0.05)
    means = magnitude.mean((0, 2, 3))
    channels = np.rint(4 * np.log2(means / np.median(means))).astype(np.int64).clip(-CLASSES, CLASSES)
    scaled = magnitude * 2.0 ** (-channels[:, None, None] / 4)
    logs = _activities(_earlier(residuals, 1), _earlier(residuals, 2), residuals)
    for key, (_, used) in REGIMES.items():
        mask, gains = _mask(symbols.shape, *key), np.zeros(4, np.int64)
        if not mask.any():
            continue
        factors = np.stack([np.ones(mask.sum()), *(logs[i][mask] for i in used)])
        found = _log_scale_regression(factors, scaled[mask]) * 4 / math.log(2)
        gains[list(used)] = np.rint(32 * found[1:]).clip(-128, 127)
        base = int(np.clip(round(found[0] + 16), -120, 120))
        regimes[key] = regimes[key]._replace(base=base, gains=gains)
    largest = int(np.abs(symbols - _split(_predictions(regimes, symbols))[0]).max(initial=0))
    if largest > largest_residual(LARGEST_CONTEXT):
        return None
    densities = [Density(logistic, index_of(largest)) for logistic in (False, True)]
    contexts = [Context(density, regimes, channels if channels.any() else None) for density in densities]
    fits = [_with_best_bases(context, symbols) for context in contexts]
    bits, context = min(fits, key=lambda pair: pair[0])
    return context, bits + 8 * len(context.head())


def _with_best_bases(context: Context, symbols: np.ndarray) -> tuple[float, Context]:
    """Bits and the context with the bases that need the fewest; the rest of the class does not depend on them."""
    eighths, classes = context._contexts(symbols)
    nearest, fractions = _split(eighths)
    regimes, total = {}, 0.0
    for key, regime in context.regimes.items():
        mask = _mask(symbols.shape, *key)
        residuals, choices = (symbols - nearest)[mask], []
        for shift in range(-3, 3):
            shifted = (classes[mask] + shift).clip(0, CLASSES - 1)
            choices.append((coded_bits(residuals, context.density, shifted, fractions[mask]), shift))
        bits, shift = min(choices)
        total += bits
        regimes[key] = regime._replace(base=max(regime.base + shift, -128))
    return total, context._replace(regimes=regimes)


def _median_regression(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients (F,) of features (F, n) that nearly minimise sum |values - coefficients @ features|."""
    weights = np.ones(len(values))
    for _ in range(8):
        weighted = features * weights
        matrix = np.einsum("fn,gn->fg", weighted, features)
        matrix += (1e-3 * weights.mean() + 1e-9 * np.trace(matrix)) * np.eye(len(matrix))
        found = np.linalg.solve(matrix, np.einsum("fn,n->f", weighted, values))
        weights = 1 / np.sqrt((values - np.einsum("fn,f->n", features, found)) ** 2 + 0.1)
    return found


def _log_scale_regression(factors: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Coefficients (F,) of log b = coefficients @ factors that minimise sum log b + magnitude / b; factors[0] is 1."""
    found = np.zeros(len(factors))
    found[0] = np.log(magnitude.mean())
    for _ in range(8):
        ratio = magnitude * np.exp(-np.einsum("fn,f->n", factors, found).clip(-30, 30))
        curvature = np.einsum("fn,gn->fg", factors * ratio, factors)
        curvature += 1e-7 * np.trace(curvature) * np.eye(len(found))
        step = np.linalg.solve(curvature, np.einsum("fn,n->f", factors, 1 - ratio))
        found -= step * min(1.0, 4 / np.abs(np.einsum("fn,f->n", factors, step)).max(initial=1e-9))
    return found


def _predictions(regimes: dict[tuple[bool, bool], Regime], symbols: np.ndarray) -> np.ndarray:
    """In eighths, of all cells of (T, c, h, w)."""
    y1, y2, found = _earlier(symbols, 1), _earlier(symbols, 2), np.zeros_like(symbols)
    for key, regime in regimes.items():
        mask = _mask(symbols.shape, *key)
        found[mask] = _prediction(regime.weights, y1, y2, symbols)[mask]
    return found


def _prediction(weights: np.ndarray, y1: np.ndarray, y2: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = sum(int(weight) * feature for weight, feature in zip(weights, _features(y1, y2, y), strict=True))
    return total + 16 >> 5


def _features(y1: np.ndarray, y2: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    direct, diagonal = _sums(y1)
    return [4 * y1, direct, diagonal, 4 * y2, _sums(y)[0]]


def _activities(e1: np.ndarray, e2: np.ndarray, e: np.ndarray) -> list[np.ndarray]:
    """L of the four sums of magnitudes."""
    sums = [e1 + 2, e1 + sum(_sums(e1)) + 14, e2 + sum(_sums(e2)) + 14, _sums(e)[0] + 6]
    return [_LOGS[a] if a.max(initial=0) < len(_LOGS) else _log(a) for a in sums]


def _sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the direct and over the diagonal neighbours along the last two axes, 0 outside."""
    x = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)])
    rows = x[..., :-2, :] + x[..., 2:, :]
    return rows[..., 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:], rows[..., :-2] + rows[..., 2:]


def _earlier(x: np.ndarray, back: int) -> np.ndarray:
    """x of `back` slices before."""
    return np.concatenate([np.zeros_like(x[:back]), x[:-back]])


def _cells(shape: tuple[int, ...], odd: bool) -> np.ndarray:
    return np.add.outer(np.arange(shape[-2]), np.arange(shape[-1])) % 2 == odd


def _mask(shape: tuple[int, ...], later: bool, odd: bool) -> np.ndarray:
    """(T, c, h, w): the cells of a regime."""
    after = (np.arange(shape[0]) > 0) == later
    return np.broadcast_to(after[:, None, None, None] & _cells(shape, odd), shape)


def _split(eighths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest integers, and the rest in eighths, -4 ... 3."""
    nearest = eighths + 4 >> 3
    return nearest, eighths - 8 * nearest
