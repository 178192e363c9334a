"""The chunks of a run on disk: what was written comes back, and anything else is refused."""

from __future__ import annotations

import json

import pytest

from hnerv.errors import UserError
from hnerv.runs import Chunk, ChunkedFolder, ChunkOptions, ChunkPlan, chunks_of, divide, read_plan, write_plan
from hnerv.runs.models import checkpoint_of

PLAN = ChunkPlan(ChunkOptions(frames=4, scenes=True, init="previous"), "5:", 17, divide(range(5, 17), 4, [2]))
FIRST = {"number": 0, "frames": "0:4", "first": 0, "count": 4}


@pytest.fixture
def folder(tmp_path) -> ChunkedFolder:
    write_plan(tmp_path / "segments.json", PLAN)
    return ChunkedFolder(tmp_path)


def test_a_plan_comes_back_as_it_was(folder):
    assert read_plan(folder.plan) == PLAN
    found = chunks_of(folder.path)
    assert found[1] == Chunk(folder.path / "segments" / "00001", 2, 3) and len(found) == len(PLAN.chunks) == 4
    assert found[1].clip_targets("a.safetensors@5:17") == "a.safetensors@7:10"
    assert [found[1].clip_targets(name) for name in ("", "none")] == ["", "none"]


@pytest.mark.parametrize("name", ["run", "latest.pt", "a.hnerv"])
def test_a_video_that_is_not_divided_is_one_chunk(tmp_path, name):
    (chunk,) = chunks_of(tmp_path / name)
    assert chunk == Chunk(tmp_path / name, 0, 0) and not chunk.is_part
    assert chunk.clip_targets("a.safetensors") == "a.safetensors"


def test_a_checkpoint_is_that_of_one_chunk(folder):
    one = folder.path / "segments" / "00000"
    with pytest.raises(UserError, match=f"but a single segment is needed: pass one, such as {one}"):
        checkpoint_of(folder.path)
    one.mkdir(parents=True)
    assert checkpoint_of(one) == one / "checkpoints" / "latest.pt"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"segments": []},
        {"segments": 3},
        {"frames": None},
        {"total": "17"},
        {"segment_frames": "4"},
        {"segment_frames": 2},
        {"segment_init": "first"},
        {"segments": [{"number": 0, "frames": "0:4", "first": 0}]},
        {"segments": [FIRST | {"first": 1}]},
        {"segments": [FIRST | {"number": 1}]},
        {"segments": [FIRST | {"count": 0}]},
        {"segments": [FIRST | {"count": 4.0}]},
    ],
    ids=str,
)
def test_a_damaged_plan_is_refused(change, folder):
    folder.plan.write_text(json.dumps(json.loads(folder.plan.read_text()) | change))
    with pytest.raises(UserError, match="is not a segment plan"):
        chunks_of(folder.path)
    folder.plan.write_text(folder.plan.read_text()[:40])
    with pytest.raises(UserError, match="cannot be read"):
        chunks_of(folder.path)
