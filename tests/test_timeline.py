"""Time stamps, the rate they imply, and their serialisation."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.timeline import Timeline, concat_timelines, estimate_rate, time_code

NTSC, CINEMA = Fraction(30000, 1001), Fraction(24000, 1001)
MILLI = Fraction(1, 1000)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "00:00:00.000"),
        (1 / 24, "00:00:00.042"),
        (1800 / NTSC, "00:01:00.060"),
        (3661.5, "01:01:01.500"),
        (59.9999, "00:01:00.000"),
        (360_000, "100:00:00.000"),
    ],
)
def test_time_codes(seconds, expected) -> None:
    assert time_code(float(seconds)) == expected


@pytest.mark.parametrize("tick", [MILLI, Fraction(1, 90000), Fraction(1, 12800), Fraction(1, 600)])
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(25), CINEMA, NTSC, Fraction(120), Fraction(15, 2)])
def test_constant_rate_in_rounded_stamps(rate, tick) -> None:
    """Without any hint, from enough frames to distinguish 24 from 23.976."""
    stamps = tuple(round(k / rate / tick) for k in range(3000))
    assert estimate_rate(Timeline(tick, stamps)) == (rate, True)
    assert estimate_rate(Timeline(tick, tuple(stamp + 77 for stamp in stamps))) == (rate, True)


def test_hint_decides_between_24_and_23_976_in_few_frames() -> None:
    times = Timeline(MILLI, tuple(round(1000 * k / CINEMA) for k in range(12)))
    assert estimate_rate(times, hints=[CINEMA]) == (CINEMA, True)
    assert estimate_rate(times, hints=[Fraction(60)])[0] != 60


@pytest.mark.parametrize(
    ("stamps", "last", "rate"),
    [
        ([0, 1, 2, 5, 6, 7, 8, 10, 11, 12], 1, Fraction(10 * 25, 13)),  # empty chunks of AVI
        ([*range(50), *range(50, 240, 10)], 1, Fraction(69 * 25, 231)),
        ([0], 1, Fraction(25)),
        ([0], 0, Fraction(25)),
    ],
)
def test_other_rates_are_the_mean(stamps, last, rate) -> None:
    assert estimate_rate(Timeline(Fraction(1, 25), tuple(stamps)), last)[0] == rate


TIMELINES = st.builds(
    lambda over, under, stamps: Timeline(Fraction(over, under), tuple(stamps)),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=40),
)


@given(TIMELINES)
def test_to_dict_and_from_dict_are_inverse(times) -> None:
    assert Timeline.from_dict(json.loads(json.dumps(times.to_dict())), len(times.stamps)) == times


@given(st.lists(TIMELINES, min_size=1, max_size=3))
def test_concatenation_keeps_all_times(parts) -> None:
    both = concat_timelines(parts)
    assert [both.tick * stamp for stamp in both.stamps] == [part.tick * s for part in parts for s in part.stamps]


def test_constant_rate_takes_three_numbers() -> None:
    expected = {"tick": [1001, 30000], "first": 100, "steps": [[2, 4449]]}
    assert Timeline.at_rate(NTSC, range(100, 9000, 2)).to_dict() == expected


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"tick": [1, 0], "first": 0, "steps": []},
        {"tick": [1, 24], "first": 0.5, "steps": []},
        {"tick": [1, 24], "first": 0, "steps": [[1, 2]]},
        {"tick": [1, 24], "first": 0, "steps": [[1, -1], [1, 1]]},
        {"tick": 24, "first": 0, "steps": []},
        {"tick": [1, 24], "first": 0, "steps": [], "more": 1},
        [],
        None,
    ],
)
def test_invalid_timelines_are_refused(broken) -> None:
    with pytest.raises(ValueError, match="first|frames"):
        Timeline.from_dict(broken, 1)


def test_selection_and_median_step() -> None:
    times = Timeline(MILLI, (0, 40, 80, 1000, 1040))
    assert times.median_step == 40 and times.seconds(3) == 1.0
    assert times.select([4, 2]).stamps == (1040, 80) and times.select([4, 2]).median_step == 960
    assert Timeline(MILLI, (7,)).median_step == 1
