"""Hits as objects, as rows of a table and as dictionaries."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from hnerv.model import Scene
from hnerv.search import Hit, Index, SearchHit, collection_hits_table, hits_table

SCENE = Scene(100_000, 32, 64, 2, 4, 25.0, (0, 1), (2,), 6)
INDEX = Index(Path("a.hnerv"), torch.empty(0), SimpleNamespace(scene=SCENE))


def test_rows():
    hits = [Hit(90_025, 5, 0.31234, 4.5, 90_000, 90_100, (3, 7)), Hit(0, 0, -0.1, -1.25, 0, 0)]
    rows = hits_table([SearchHit(hit, INDEX) for hit in hits]).splitlines()
    assert rows[1].split() == ["1", "01:00:01.000", "90025", "5", "1,1", "0.3123", "4.50", "90000-90100", "3,7"]
    assert rows[2].split() == ["2", "00:00:00.000", "0", "0", "0,0", "-0.1000", "-1.25", "0-0"]
    rows = collection_hits_table([SearchHit(hit, INDEX, "b/a.hnerv") for hit in hits]).splitlines()
    assert rows[1].split()[:4] == ["1", "b/a.hnerv", "01:00:01.000", "90025"] and rows[1].endswith("also 3,7")


def test_a_dictionary_that_json_takes():
    hit = SearchHit(Hit(25, 7, 0.5, 2.0, 20, 30, (4,)), INDEX)
    expected = {
        "time": "00:00:01.000",
        "seconds": 1.0,
        **{"frame": 25, "patch": 7, "score": 0.5, "z": 2.0, "first": 20, "last": 30, "also": [4]},
        **{"row": 1, "col": 3},
    }
    assert json.loads(json.dumps(hit.to_dict())) == expected
    assert SearchHit(hit.hit, INDEX, "a.hnerv").to_dict() == {"video": "a.hnerv", **expected}
    assert (hit.time, hit.row, hit.col, hit.first, hit.last) == (1.0, 1, 3, 20, 30)
    assert repr(hit) == "SearchHit(frame=25, time=1.000, patch=7, score=0.5000, z=2.00)"
