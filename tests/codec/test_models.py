"""Models of symbols: what a fit finds costs little more than the model that the symbols were drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnerv.codec.context import NUM_COEFFICIENTS, fit_context, read_context
from hnerv.codec.entropy import CLASSES, Density, Fields, SymbolDecoder, SymbolEncoder, coded_bits
from hnerv.codec.vectors import read_vector_code, shortest_code
from hnerv.codec.weights import Classes, fit_classes, read_classes

quick = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow], database=None)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


def drawn(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rint(rng.laplace(0, 2.0 ** ((classes - 16) / 4))).astype(np.int64)


@quick
@given(SHAPES, st.integers(0, 999), st.floats(0, 12))
def test_symbols_under_classes_come_back(shape, seed, spread):
    rng = np.random.default_rng(seed)
    symbols = np.rint(rng.normal(0, 2**spread, shape)).astype(np.int64).clip(-16382, 16382)
    classes, _ = fit_classes(symbols)
    encoder = SymbolEncoder()
    classes.put(symbols, encoder)
    decoder = SymbolDecoder(encoder.words())
    read = read_classes(Fields(classes.head()))._replace(rows=classes.rows, cols=classes.cols)
    assert np.array_equal(read.get(shape, decoder), symbols)
    decoder.finish()


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_classes_of_rows_and_columns_are_found(axes):
    """At most 3 % more bits than the true classes take, vectors included; and vectors only where they pay."""
    rng, shape = np.random.default_rng(0), (200, 150, 1)
    rows, cols = (rng.integers(-8, 9, shape[axis]) * (axis in axes) for axis in (0, 1))
    true = Classes(Density(False, 40), 22, rows, cols).of(shape)
    symbols = drawn(true, rng)
    classes, bits = fit_classes(symbols)
    zeros = np.zeros(symbols.size, int)
    exact = coded_bits(symbols.ravel(), classes.density, true.ravel(), zeros)
    found = coded_bits(symbols.ravel(), classes.density, classes.of(shape).ravel(), zeros)
    assert found <= 1.005 * exact and bits <= 1.03 * exact
    assert [classes.rows is not None, classes.cols is not None] == [axis in axes for axis in (0, 1)]


def test_dead_rows_and_columns_cost_nothing():
    """90 % of the rows are 0: all symbols of the others cost as they do alone, and the rows at most 3 bits each."""
    rng = np.random.default_rng(0)
    symbols = np.zeros((1000, 50, 1), np.int64)
    symbols[::10] = drawn(np.full((100, 50, 1), 24), rng)
    _, bits = fit_classes(symbols)
    _, alone = fit_classes(symbols[::10])
    assert bits <= alone + 3 * 1000 + 0.001 * symbols.size


@quick
@given(st.lists(st.integers(-60, 60), min_size=1, max_size=50), st.booleans(), st.booleans())
def test_vectors_come_back(values, guided, even):
    values = np.array(values) * (2 if even else 1)
    guide = np.random.default_rng(0).integers(-60, 60, len(values)) if guided else None
    code, bits = shortest_code(values, guide)
    encoder = SymbolEncoder()
    code.put(values, guide, encoder)
    assert read_vector_code(Fields(code.head())) == code and code.halved == (not (values % 2).any())
    words = encoder.words()
    assert np.array_equal(code.get(len(values), guide, SymbolDecoder(words)), values)
    assert 8 * len(words) <= bits + 64


def test_vectors_follow_their_guide_and_their_neighbours():
    rng = np.random.default_rng(0)
    guide, walk = 4 * rng.integers(-12, 13, 300), np.cumsum(rng.integers(-1, 2, 300))
    assert shortest_code(-guide + rng.integers(-1, 2, 300), guide)[1] < 0.5 * shortest_code(-guide)[1]
    assert shortest_code(walk)[0].differences and shortest_code(walk)[1] < 300 * 2
    assert shortest_code(2 * walk)[1] == shortest_code(walk)[1]
    with pytest.raises(ValueError, match="differ by more than 256"):
        shortest_code(np.array([301, 0]))


def latents(rng: np.random.Generator, shape: tuple[int, ...], memory: float) -> np.ndarray:
    """Of an autoregression in time with a scale that varies over space and channels."""
    scale = 2.0 ** rng.normal(1, 1, shape[1:])
    y = [rng.laplace(0, 4 * scale)]
    for _ in range(shape[0] - 1):
        y.append(memory * y[-1] + rng.laplace(0, scale * (1 - memory**2) ** 0.5))
    return np.rint(np.stack(y)).astype(np.int64)


@quick
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    st.integers(0, 999),
    st.floats(0, 13),
)
def test_latents_come_back(shape, seed, spread):
    rng = np.random.default_rng(seed)
    symbols = np.rint(rng.normal(0, 2**spread, shape).cumsum(0)).astype(np.int64).clip(-16382, 16382)
    if (found := fit_context(symbols)) is None:
        return
    context, _ = found
    encoder = SymbolEncoder()
    context.put(symbols, encoder)
    decoder = SymbolDecoder(encoder.words())
    read = read_context(Fields(context.head()))._replace(channels=context.channels)
    assert np.array_equal(read.get(shape, decoder), symbols)
    decoder.finish()


def test_a_context_uses_the_past():
    """Within 6 % of the entropy of the innovations; without memory no worse than 2 % above a scale per channel."""
    rng, shape = np.random.default_rng(0), (16, 4, 12, 20)
    symbols = latents(rng, shape, 0.95)
    _, bits = fit_context(symbols)
    _, plain = fit_classes(symbols.reshape(16, 4, -1))
    assert bits < 0.8 * plain
    symbols = drawn(np.full(shape, 24), rng)
    _, bits = fit_context(symbols)
    _, plain = fit_classes(symbols.reshape(16, 4, -1))
    assert bits < 1.02 * plain


def test_a_fit_depends_on_the_symbols_alone():
    symbols = latents(np.random.default_rng(0), (16, 2, 8, 8), 0.9)
    first, second = (fit_context(symbols.copy())[0].head() for _ in range(2))
    assert first == second and len(first) == 1 + NUM_COEFFICIENTS


def test_coefficients_that_let_symbols_grow_are_refused():
    context = read_context(Fields(bytes([1]) + bytes([127] * NUM_COEFFICIENTS)))
    encoder = SymbolEncoder()
    shape = (16, 1, 8, 8)
    encoder.put(np.ones(1024, np.int64), context.density, np.full(1024, CLASSES - 1), np.zeros(1024, np.int64))
    with pytest.raises(ValueError, match="symbol out of range"):
        context.get(shape, SymbolDecoder(encoder.words()))
