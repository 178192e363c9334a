"""Symbols come back, cost what their density says, and mean the same to a decoder that shares no line of code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from hnerv.codec import entropy
from hnerv.codec.entropy import Density, SymbolDecoder, SymbolEncoder
from hnerv.errors import UserError


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


second = _load("second_decoder")
quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], database=None)
DENSITIES = st.builds(Density, st.booleans(), st.integers(1, 24))
CLASSES, FRACTIONS = st.integers(0, 72), st.integers(-4, 3)


def draws(density: Density, count: int, seed: int, spread: int = 73) -> tuple[np.ndarray, ...]:
    """Residuals anywhere in the alphabet, classes, fractions."""
    rng, largest = np.random.default_rng(seed), entropy.largest_residual(density.index)
    classes = rng.integers(0, spread, count)
    return rng.integers(-largest, largest + 1, count), classes, rng.integers(-4, 4, count)


@quick
@given(st.lists(st.tuples(DENSITIES, st.integers(0, 40)), max_size=5), st.integers(0, 99))
def test_any_symbols_come_back(parts, seed):
    """Also to the second decoder."""
    drawn = [(density, *draws(density, count, seed)) for density, count in parts]
    encoder = SymbolEncoder()
    for density, residuals, classes, fractions in drawn:
        encoder.put(residuals, density, classes, fractions)
    words = encoder.words()
    decoder, other = SymbolDecoder(words), second.Coder(np.frombuffer(words, "<u4").tolist())
    for density, residuals, classes, fractions in drawn:
        found = decoder.get(density, classes, fractions)
        assert found.dtype == np.int64 and np.array_equal(found, residuals)
        keys = list(zip(classes.tolist(), fractions.tolist(), strict=True))
        largest = entropy.largest_residual(density.index)
        assert second.residuals(other, largest, density.logistic, keys) == residuals.tolist()
    decoder.finish()
    other.finish()


@quick
@given(st.builds(Density, st.booleans(), st.integers(1, 56)), CLASSES, FRACTIONS)
def test_frequencies_are_those_of_the_density(density, scale_class, fraction):
    """Sums of 2^24, and probabilities as scipy's, cut to the alphabet, within rounding and the 1 that all get."""
    found = entropy.frequencies(density, scale_class, fraction)
    largest = entropy.largest_residual(density.index)
    assert found.shape == (2 * largest + 1,) and found.sum() == 2**24 and found.min() >= 1
    scale = 2.0 ** ((scale_class - 16) / 4)
    edges = np.arange(-largest, largest + 2) - 0.5 - fraction / 8
    exact = np.diff((stats.logistic if density.logistic else stats.laplace).cdf(edges, scale=scale))
    expected = 1 + exact / exact.sum() * (2**24 - len(found))
    assert np.abs(found - expected).max() < 2 + 1e-4 * expected.max()


@quick
@given(DENSITIES, CLASSES, FRACTIONS)
def test_a_second_implementation_has_the_same_frequencies(density, scale_class, fraction):
    largest = entropy.largest_residual(density.index)
    left = second.density_bounds(largest, density.logistic, scale_class, fraction)
    assert np.array_equal(np.diff(left), entropy.frequencies(density, scale_class, fraction))


def test_alphabets():
    every = [entropy.largest_residual(index) for index in range(entropy.LARGEST_INDEX + 1)]
    assert every[:13] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16] and every[-1] == 32768
    assert every == [second.largest(index) for index in range(57)]
    assert all(entropy.index_of(largest) == index for index, largest in enumerate(every))
    assert entropy.largest_residual(entropy.index_of(129)) == 160
    with pytest.raises(UserError, match="32769 steps from their prediction, more than 32768: lower --weight-bits"):
        entropy.index_of(32769)


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("scale", [0.2, 0.7, 3, 50])
def test_the_best_class_costs_next_to_nothing(logistic, scale):
    """At most 0.0055 bits a symbol, d^2 / 2 nats at the rim of a class; the words have the length that is predicted."""
    draw = (stats.logistic if logistic else stats.laplace).rvs(scale=scale, size=200_000, random_state=0)
    symbols = np.rint(draw).astype(np.int64)
    density, nothing = Density(logistic, entropy.index_of(np.abs(symbols).max())), np.zeros(len(symbols), int)
    costs = [entropy.coded_bits(symbols, density, nothing + each, nothing) for each in range(73)]
    best = int(np.argmin(costs))
    table = entropy.bits_table(density)[best]
    assert table[symbols + entropy.largest_residual(density.index)].sum() == pytest.approx(costs[best], rel=1e-4)
    least = entropy.empirical_entropy(symbols)
    _, frequency = np.unique(symbols, return_counts=True)
    assert least == pytest.approx(-(frequency * np.log2(frequency / len(symbols))).sum())
    cdf = (stats.logistic if logistic else stats.laplace)(scale=scale).cdf
    exact = -np.log2(cdf(0.5 - np.abs(symbols)) - cdf(-0.5 - np.abs(symbols))).sum()  # the lower tail is more precise
    assert costs[best] <= exact + 0.006 * len(symbols)
    encoder = SymbolEncoder()
    encoder.put(symbols, density, nothing + best, nothing)
    assert costs[best] <= 8 * len(encoder.words()) <= costs[best] + 64 + 1e-5 * len(symbols)


def test_words_that_do_not_fit_the_count_are_found():
    density = Density(False, 8)
    symbols, classes, fractions = draws(density, 3000, 1, spread=30)
    encoder = SymbolEncoder()
    encoder.put(symbols, density, classes, fractions)
    for count in (0, 1, 2000, 2999):
        decoder = SymbolDecoder(encoder.words())
        decoder.get(density, classes[:count], fractions[:count])
        with pytest.raises(ValueError, match="left over"):
            decoder.finish()
    with pytest.raises(ValueError, match="length"):
        SymbolDecoder(encoder.words()[:-1])


def test_no_loop_in_python_codes_the_symbols():
    """As many calls for 100,000 symbols as for 10,000."""
    density = Density(False, 8)

    def calls(count: int) -> int:
        symbols, classes, fractions = draws(density, count, 2)
        events = []
        sys.setprofile(lambda frame, event, _: events.append(event))
        try:
            encoder = SymbolEncoder()
            encoder.put(symbols, density, classes, fractions)
            SymbolDecoder(encoder.words()).get(density, classes, fractions)
        finally:
            sys.setprofile(None)
        return sum(event in ("call", "c_call") for event in events)

    calls(10_000)  # fills the caches
    assert calls(100_000) <= calls(10_000) + 100


@quick
@given(
    st.integers(2, 2**15),
    st.integers(0, 15),
    st.lists(st.integers(0, 255), min_size=1, max_size=30),
    st.integers(1, 255),
)
def test_frequencies_of_a_histogram_are_whole_and_sum_to_2_to_the_24(num_symbols, shift, codes, last):
    bins = -(-num_symbols // 2**shift)
    table = bytes((codes * bins)[: bins - 1] + [last])
    found = entropy.Histogram(num_symbols, shift, table).frequencies()
    assert found.shape == (num_symbols,) and found.sum() == 2**24 and found.min() >= 1
    assert np.array_equal(np.diff(second.histogram_bounds(num_symbols, shift, table)), found)


def test_weights_of_the_table():
    """Floats of four bits of mantissa, by hand."""
    codes = bytes([0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 255])
    by_hand = [0, 1, 15, 16, 17, 31, 32, 34, 62, 64, 31 * 2**14]
    assert entropy.bin_weights(codes).tolist() == by_hand
    every = entropy.bin_weights(bytes(range(256)))
    assert (np.diff(every) > 0).all() and (np.diff(every)[15:] / every[15:-1]).max() <= 1 / 15


@pytest.mark.parametrize("span", [1, 2, 300])
def test_histograms_of_pruned_symbols(span):
    """0 or far from it: at most one per cent above the empirical entropy, plus the table."""
    rng = np.random.default_rng(span)
    symbols = np.where(rng.random(50_000) < 0.9, 0, rng.integers(0, span, 50_000))
    histogram, bits = entropy.shortest_histogram(symbols)
    encoder = SymbolEncoder()
    encoder.put_histogram(symbols, histogram)
    words = encoder.words()
    decoder = SymbolDecoder(words)
    assert np.array_equal(decoder.get_histogram(histogram, len(symbols)), symbols)
    decoder.finish()
    assert bits - 64 <= 8 * len(words) + 8 * len(histogram.head()) <= bits + 65
    assert bits <= 1.01 * entropy.empirical_entropy(symbols) + 8 * 310
    assert entropy.shortest_histogram(np.array([0, 2**15])) is None


def test_few_symbols_of_a_large_alphabet_get_a_short_table():
    symbols = np.random.default_rng(0).integers(0, 16000, 48)
    histogram, bits = entropy.shortest_histogram(symbols)
    assert histogram.shift > 5 and bits < 48 * 16
