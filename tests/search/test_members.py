"""Discovery of the models in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnerv.runs import ChunkedFolder, ChunkOptions, ChunkPlan, divide, write_plan
from hnerv.search import members_of


def create_files(root: Path, *paths: str) -> None:
    """Empty files; a path that ends in / is the folder of a run with a checkpoint."""
    for path in paths:
        names = [f"{path}config.json", f"{path}checkpoints/latest.pt"] if path.endswith("/") else [path]
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["b.hnerv", "a.hnerv"], ["a.hnerv", "b.hnerv"]),
        (["a/", "deep/er/b/", "deep/c.hnerv"], ["a", "deep/c.hnerv", "deep/er/b"]),
        (["a/", "a.hnerv"], ["a.hnerv"]),
        (["a/", "a/4bit.hnerv", "a/8bit.hnerv", "b/"], ["a/4bit.hnerv", "a/8bit.hnerv", "b"]),
        (["film/film.hnerv", "film/segments/00000/", "film/segments/00001/"], ["film/film.hnerv"]),
        (["film/segments/00000/", "film/segments/00001/"], ["film/segments/00000", "film/segments/00001"]),
        (["a/", "b.hnerv"], ["a", "b.hnerv"]),
        (["a/", "a.old1/", "a.old12/", ".hidden/", ".c.hnerv", "a.older/"], ["a", "a.older"]),
        (["a/config.json", "b/notes.txt", "c.hnerv.index.safetensors", "index.faiss"], []),
        (["a/", "a/eval/b.hnerv"], ["a"]),
    ],
)
def test_members(tmp_path, paths, expected):
    create_files(tmp_path, *paths)
    assert [path.relative_to(tmp_path).as_posix() for path in members_of(tmp_path)] == expected


def test_links_to_folders_are_not_followed(tmp_path):
    create_files(tmp_path, "fleet/a/")
    (tmp_path / "fleet" / "around").symlink_to(tmp_path, target_is_directory=True)
    assert members_of(tmp_path / "fleet") == [tmp_path / "fleet" / "a"]


def test_a_run_in_segments_is_one(tmp_path):
    folder = ChunkedFolder(tmp_path / "talk")
    write_plan(folder.plan, ChunkPlan(ChunkOptions(frames=4), "", 8, divide(range(8), 4)))
    for name in ("00000", "00001"):
        assert members_of(tmp_path) == []
        (folder.path / "segments" / name / "checkpoints").mkdir(parents=True)
        (folder.path / "segments" / name / "checkpoints" / "latest.pt").touch()
    assert members_of(tmp_path) == [folder.path]
    folder.plan.write_text("{}")
    assert members_of(tmp_path) == [folder.path]
