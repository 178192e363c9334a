"""Symbols come back, cost what their entropy says, and mean the same to a decoder that shares no line of code."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnerv.codec import entropy
from hnerv.errors import UserError


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


second = _load("second_decoder")
quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], database=None)


def round_trip(symbols: np.ndarray) -> entropy.CodedSymbols:
    coded = entropy.encode_symbols(symbols)
    decoded = entropy.decode_symbols(coded, symbols.size)
    assert decoded.dtype == np.int64 and np.array_equal(decoded, symbols.ravel())
    return coded


@quick
@given(
    st.integers(-(2**31), 2**31 - 2**15).flatmap(
        lambda low: st.lists(st.integers(low, low + 2**15 - 1), min_size=1, max_size=60)
    )
)
def test_any_symbols_come_back(values):
    coded = round_trip(np.array(values))
    model = coded.model
    assert model.lowest == min(values) and 2 <= model.num_symbols <= 2**15
    words = np.frombuffer(coded.words, "<u4").tolist()
    assert second.decode_symbols(words, *model, count=len(values)) == values


@pytest.mark.parametrize("value", [0, 1, -7, 2**31 - 2, -(2**31)])
@pytest.mark.parametrize("count", [1, 2, 5000])
def test_constant_symbols_cost_next_to_nothing(value, count):
    assert len(round_trip(np.full(count, value)).words) <= 8


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint8, np.uint16])
def test_every_integer_type_from_its_lowest_value_on(kind):
    """No difference of two symbols may overflow the type that they came in."""
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    round_trip(np.array([low, min(high, low + 2**15 - 1), low], dtype=kind))


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_the_largest_alphabet_and_one_more(kind):
    """A wider span is refused before memory is taken."""
    round_trip(np.array([0, 2**15 - 1, 5, 5, 5], dtype=kind))
    round_trip(np.arange(2**15, dtype=kind) - 2**14)
    tracemalloc.start()
    for ends in ([0, 2**15], [0, 2**27], [-(2**31), 2**31 - 1]):
        with pytest.raises(UserError, match=f"span {ends[1] - ends[0] + 1} symbols, more than 32768: lower --weight-b"):
            entropy.encode_symbols(np.array(ends, dtype=kind))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@quick
@given(
    st.integers(2, 2**15),
    st.integers(0, 15),
    st.lists(st.integers(0, 255), min_size=1, max_size=30),
    st.integers(1, 255),
)
def test_frequencies_are_whole_and_sum_to_2_to_the_24(num_symbols, shift, codes, last):
    bins = -(-num_symbols // 2**shift)
    table = bytes((codes * bins)[: bins - 1] + [last])
    found = entropy.frequencies(entropy.EntropyModel(0, num_symbols, shift, table))
    assert found.shape == (num_symbols,) and found.sum() == 2**24 and found.min() >= 1
    assert np.array_equal(np.diff(second.bounds_of(num_symbols, shift, table)), found)


def test_weights_of_the_table():
    """Floats of four bits of mantissa, by hand."""
    codes = bytes([0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 255])
    by_hand = [0, 1, 15, 16, 17, 31, 32, 34, 62, 64, 31 * 2**14]
    assert entropy.bin_weights(codes).tolist() == by_hand
    every = entropy.bin_weights(bytes(range(256)))
    assert (np.diff(every) > 0).all() and (np.diff(every)[15:] / every[15:-1]).max() <= 1 / 15


@pytest.mark.parametrize("draw", ["normal", "laplace"])
@pytest.mark.parametrize(("count", "spread"), [(10_000, 3), (100_000, 0.4), (100_000, 30), (1_000_000, 6)])
def test_at_most_one_per_cent_above_the_empirical_entropy(draw, count, spread):
    """Plus the stored table; and the words have the length that the table predicts."""
    rng = np.random.default_rng(count)
    symbols = np.rint(getattr(rng, draw)(0, spread, count)).astype(np.int32)
    coded = round_trip(symbols)
    _, frequency = np.unique(symbols, return_counts=True)
    by_hand = -(frequency * np.log2(frequency / count)).sum()
    assert entropy.empirical_entropy(symbols) == pytest.approx(by_hand)
    assert 8 * len(coded.words) <= 1.01 * by_hand + 64
    predicted = entropy.coded_bits(np.bincount(symbols - symbols.min()), coded.model)
    assert predicted <= 8 * len(coded.words) <= predicted + 64 + 1e-5 * count
    assert len(coded.model.table) <= 1024


def test_few_symbols_of_a_large_alphabet_get_a_short_table():
    symbols = np.random.default_rng(0).integers(-8000, 8000, 48)
    coded = round_trip(symbols)
    assert coded.model.shift > 5 and len(coded.model.table) + len(coded.words) < 48 * 2


def test_words_that_do_not_fit_the_count_are_found():
    symbols = np.random.default_rng(1).integers(-9, 9, 3000)
    coded = entropy.encode_symbols(symbols)
    for count in (0, 1, 2000, 2999):
        with pytest.raises(UserError, match="left over"):
            entropy.decode_symbols(coded, count)


def test_no_loop_in_python_codes_the_symbols():
    """As many calls for 100,000 symbols as for 1,000."""

    def calls(count: int) -> int:
        symbols = np.rint(np.random.default_rng(2).laplace(0, 6, count)).astype(np.int32).clip(-20, 20)
        events = []
        sys.setprofile(lambda frame, event, _: events.append(event))
        try:
            entropy.decode_symbols(entropy.encode_symbols(symbols), symbols.size)
        finally:
            sys.setprofile(None)
        return sum(event in ("call", "c_call") for event in events)

    assert calls(100_000) <= calls(1000) + 100
