"""Hits as rows of a table and as dictionaries."""

from __future__ import annotations

import json

from hnerv.model import Scene
from hnerv.search import Hit, hit_dict, hits_table

SCENE = Scene(100_000, 32, 64, 2, 4, 25.0, (0, 1), (2,), 6)


def test_rows():
    hits = [Hit(90_025, 5, 0.31234, 4.5, 90_000, 90_100, (3, 7)), Hit(0, 0, -0.1, -1.25, 0, 0)]
    rows = hits_table(hits, SCENE).splitlines()
    assert rows[1].split() == ["1", "01:00:01.000", "90025", "5", "1,1", "0.3123", "4.50", "90000-90100", "3,7"]
    assert rows[2].split() == ["2", "00:00:00.000", "0", "0", "0,0", "-0.1000", "-1.25", "0-0"]


def test_a_dictionary_that_json_takes():
    found = json.loads(json.dumps(hit_dict(Hit(25, 7, 0.5, 2.0, 20, 30, (4,)), SCENE)))
    assert found == {
        "time": "00:00:01.000",
        "seconds": 1.0,
        **{"frame": 25, "patch": 7, "score": 0.5, "z": 2.0, "first": 20, "last": 30, "also": [4]},
        **{"row": 1, "col": 3},
    }
