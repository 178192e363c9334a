"""Time stamps, the rate that they keep, and how both are written down."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.timeline import Timeline, estimate_rate, time_code

NTSC = Fraction(30000, 1001)


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


@pytest.mark.parametrize("tick", [Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 12800), Fraction(1, 600)])
@pytest.mark.parametrize(
    "rate", [Fraction(24), Fraction(25), Fraction(24000, 1001), NTSC, Fraction(120), Fraction(15, 2)]
)
def test_a_constant_rate_is_found_in_rounded_stamps(rate, tick) -> None:
    """Without any hint, from enough frames to tell 24 from 23.976."""
    stamps = tuple(round(k / rate / tick) for k in range(3000))
    assert estimate_rate(Timeline(tick, stamps)) == (rate, True)
    late = tuple(stamp + 77 for stamp in stamps)
    assert estimate_rate(Timeline(tick, late)) == (rate, True)


def test_a_few_frames_do_not_tell_24_from_23_976_but_a_hint_does() -> None:
    stamps = tuple(round(1000 * k * 1001 / 24000) for k in range(12))
    assert estimate_rate(Timeline(Fraction(1, 1000), stamps), hints=[Fraction(24000, 1001)]) == (
        Fraction(24000, 1001),
        True,
    )
    assert estimate_rate(Timeline(Fraction(1, 1000), stamps), hints=[Fraction(60)])[0] != 60


@pytest.mark.parametrize(
    ("stamps", "last", "rate"),
    [
        ([0, 1, 2, 5, 6, 7, 8, 10, 11, 12], 1, Fraction(10 * 25, 13)),  # chunks of AVI that are empty
        ([*range(50), *range(50, 240, 10)], 1, Fraction(69 * 25, 231)),
        ([0], 1, Fraction(25)),
        ([0], 0, Fraction(25)),
    ],
)
def test_the_rate_of_others_is_the_mean(stamps, last, rate) -> None:
    assert estimate_rate(Timeline(Fraction(1, 25), tuple(stamps)), last)[0] == rate


STAMPS = st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=60)


@given(STAMPS, st.integers(1, 10**6), st.integers(1, 10**6))
def test_written_down_and_read_again(stamps, over, under) -> None:
    times = Timeline(Fraction(over, under), tuple(stamps))
    assert Timeline.from_dict(json.loads(json.dumps(times.to_dict())), len(stamps)) == times


def test_a_constant_rate_takes_three_numbers() -> None:
    assert Timeline.at_rate(NTSC, range(100, 9000, 2)).to_dict() == {
        "tick": [1001, 30000], "first": 100, "steps": [[2, 4449]],
    }  # fmt: skip


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
def test_what_is_no_timeline_is_refused(broken) -> None:
    with pytest.raises(ValueError, match="first|frames"):
        Timeline.from_dict(broken, 1)


def test_last_duration_and_selection() -> None:
    times = Timeline(Fraction(1, 1000), (0, 40, 80, 1000, 1040))
    assert times.median_step == 40
    assert times.select([4, 2]).stamps == (1040, 80) and times.select([4, 2]).median_step == 960
    assert times.seconds(3) == 1.0 and Timeline(Fraction(1, 1000), (7,)).median_step == 1
