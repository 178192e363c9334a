"""Time codes, and hits as rows."""

from __future__ import annotations

import json

import pytest

from hnerv.model import Scene
from hnerv.search import Hit, as_dict, hits_table, time_code

SCENE = Scene(100_000, 32, 64, 2, 4, 25.0, (0, 1), (2,), 6)


@pytest.mark.parametrize(
    ("frame", "fps", "expected"),
    [
        (0, 24.0, "00:00:00.000"),
        (1, 24.0, "00:00:00.042"),
        (24, 24.0, "00:00:01.000"),
        (1800, 30000 / 1001, "00:01:00.060"),
        (24 * 3661 + 12, 24.0, "01:01:01.500"),
        (59_9999, 10_000.0, "00:01:00.000"),
        (100 * 3600 * 24, 24.0, "100:00:00.000"),
    ],
)
def test_time_codes(frame, fps, expected):
    assert time_code(frame, fps) == expected


def test_rows():
    hits = [Hit(90_025, 5, 0.31234, 4.5, 90_000, 90_100, (3, 7)), Hit(0, 0, -0.1, -1.25, 0, 0)]
    rows = hits_table(hits, SCENE).splitlines()
    assert rows[1].split() == ["1", "01:00:01.000", "90025", "5", "1,1", "0.3123", "4.50", "90000-90100", "3,7"]
    assert rows[2].split() == ["2", "00:00:00.000", "0", "0", "0,0", "-0.1000", "-1.25", "0-0"]


def test_a_dictionary_that_json_takes():
    found = json.loads(json.dumps(as_dict(Hit(25, 7, 0.5, 2.0, 20, 30, (4,)), SCENE)))
    assert found == {
        "time": "00:00:01.000",
        "seconds": 1.0,
        **{"frame": 25, "patch": 7, "score": 0.5, "z": 2.0, "first": 20, "last": 30, "also": [4]},
        **{"row": 1, "col": 3},
    }
