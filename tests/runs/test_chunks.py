"""The plan on disk: what went in comes out, and what is no plan is refused."""

from __future__ import annotations

import json

import pytest

from hnerv.errors import UserError
from hnerv.runs import Part, Plan, SegmentedFolder, Wishes, divide, is_segmented, parts_of, read_plan, write_plan

PLAN = Plan(Wishes(frames=4, scenes=True, init="previous"), "5:", 17, divide(range(5, 17), 4, [2]))


def test_what_went_in_comes_out(tmp_path):
    folder = SegmentedFolder(tmp_path)
    assert not is_segmented(tmp_path) and parts_of(tmp_path) == [Part(tmp_path, 0, 0)]
    write_plan(folder.plan, PLAN)
    assert read_plan(folder.plan) == PLAN and is_segmented(tmp_path)
    assert parts_of(tmp_path)[1] == Part(tmp_path / "segments" / "00001", 2, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"segments": []},
        {"segments": 3},
        {"frames": None},
        {"total": "17"},
        {"segment_frames": "4"},
        {"segment_init": "first"},
        {"segments": [{"number": 0, "frames": "0:4", "first": 0}]},
        {"segments": [{"number": 0, "frames": "0:4", "first": 1, "count": 4}]},
        {"segments": [{"number": 1, "frames": "0:4", "first": 0, "count": 4}]},
        {"segments": [{"number": 0, "frames": "0:4", "first": 0, "count": 0}]},
    ],
)
def test_what_is_no_plan(change, tmp_path):
    folder = SegmentedFolder(tmp_path)
    write_plan(folder.plan, PLAN)
    folder.plan.write_text(json.dumps(json.loads(folder.plan.read_text()) | change))
    with pytest.raises(UserError, match="is not a segment plan"):
        parts_of(tmp_path)


def test_half_a_plan(tmp_path):
    folder = SegmentedFolder(tmp_path)
    write_plan(folder.plan, PLAN)
    folder.plan.write_bytes(folder.plan.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(folder.plan)
