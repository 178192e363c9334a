"""BD-rate against cases that are known without it, and the sentences where there is no number."""

from __future__ import annotations

import sys
from itertools import permutations

import pytest

from hnerv.codec.comparison import bd_rate

SIZES, PSNRS = [1000, 2100, 4300, 9000, 20000], [28.0, 31.1, 34.0, 36.6, 38.9]


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25, 3.0])
def test_a_curve_of_so_much_fewer_bytes_has_that_rate(curve, factor):
    pytest.importorskip("bjontegaard")
    found = bd_rate(curve("a", SIZES, PSNRS), curve("b", [factor * size for size in SIZES], PSNRS))
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert (found.low, found.high, found.why) == (28.0, 38.9, "")


def test_straight_lines_that_overlap_in_part(curve):
    """10 dB are a factor of 10 in both; at every PSNR the second takes half: -50 % whatever the overlap."""
    pytest.importorskip("bjontegaard")
    first = curve("a", [1000 * 10**k for k in range(4)], [20.0, 30.0, 40.0, 50.0])
    second = curve("b", [500 * 10 ** (k + 0.5) for k in range(5)], [25.0, 35.0, 45.0, 55.0, 65.0])
    found = bd_rate(first, second)
    assert (found.low, found.high) == (25.0, 50.0)
    assert found.percent == pytest.approx(-50, abs=1e-6)
    assert bd_rate(second, first).percent == pytest.approx(100, abs=1e-6)


def test_the_order_of_the_points_does_not_matter(curve):
    pytest.importorskip("bjontegaard")
    anchor, test = curve("a", SIZES, PSNRS), curve("b", [700, 1800, 4000, 8800], [28.5, 31.0, 34.5, 37.0])
    values = {round(bd_rate(anchor[::-1], list(order)).percent, 9) for order in permutations(test)}
    assert len(values) == 1


@pytest.mark.parametrize(
    ("sizes", "psnrs", "why"),
    [
        ([1000, 2000, 3000], [28.0, 30.0, 32.0], "at least 4 points, one has 3"),
        ([], [], "at least 4 points, one has 0"),
        ([1, 2, 3, 4], [10.0, 11.0, 12.0, 13.0], "PSNR ranges do not overlap"),
        ([1, 2, 3, 4], [50.0, 51.0, 52.0, 53.0], "PSNR ranges do not overlap"),
        ([1, 2, 3, 4], [30.0, 32.0, 31.0, 34.0], "does not rise"),
        ([1, 2, 2, 4], [30.0, 31.0, 32.0, 34.0], "does not rise"),
    ],
)
def test_where_there_is_no_number_there_is_a_reason(curve, sizes, psnrs, why):
    for pair in (
        [curve("a", SIZES, PSNRS), curve("b", sizes, psnrs)],
        [curve("b", sizes, psnrs), curve("a", SIZES, PSNRS)],
    ):
        found = bd_rate(*pair)
        assert found.percent is None and why in found.why


def test_without_the_library_there_is_a_reason(curve, monkeypatch):
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    found = bd_rate(curve("a", SIZES, PSNRS), curve("b", SIZES, PSNRS))
    assert found.percent is None and "pip install" in found.why
