"""Transfer of run folders: whatever a worker does to its folder, the driver ends with the same files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hnerv.errors import RunError, UserError
from hnerv.fleet.transfers import LATEST, ChangeTracker, FilePart, FolderUpdate, apply_update, merge_updates, pack_run

LOGS = ("metrics.jsonl", "tensorboard/events.out.1", "tensorboard/events.out.2")
FILES = ("config.json", LATEST, "checkpoints/best.pt", "tensorboard/sprite.png")


def disturb(folder: Path, draw: random.Random) -> None:
    """One random change that training, a rollback or a resume makes."""
    name = draw.choice(LOGS + FILES)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.exists() else b""
    kind = draw.randrange(4)
    if name in FILES:
        path.write_bytes(draw.randbytes(draw.randrange(1, 50)))
    elif kind == 0 and path.exists():
        path.unlink()
    elif kind == 1:
        path.write_bytes(old[: draw.randrange(len(old) + 1)])
    elif kind == 2:
        path.write_bytes(old[: len(old) // 2] + draw.randbytes(30))  # truncated, then longer than before
    else:
        path.write_bytes(old + draw.randbytes(draw.randrange(30)))


@pytest.mark.parametrize("seed", range(40))
def test_the_driver_ends_with_the_same_files(tmp_path, snapshot, seed):
    draw = random.Random(seed)
    here, there = tmp_path / "worker", tmp_path / "driver"
    there.mkdir()
    for _ in range(draw.randrange(12)):
        disturb(there, draw)
    received = pack_run(there)
    here.mkdir()
    apply_update(received, here)
    tracker = ChangeTracker(here, received)
    for _ in range(6):
        updates = []
        for _ in range(draw.randrange(1, 4)):
            for _ in range(draw.randrange(6)):
                disturb(here, draw)
            updates.append(tracker.changes())
        merged = updates[0]
        for update in updates[1:]:
            merged = merge_updates(merged, update)
        apply_update(merged, there)
        ours, theirs = snapshot(here), snapshot(there)
        assert {name: theirs[name] for name in ours} == ours
        assert set(theirs) - set(ours) <= {"tensorboard/sprite.png", "checkpoints/best.pt"}  # not packed


def test_only_the_new_end_of_a_log_is_sent(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"one\n")
    tracker = ChangeTracker(tmp_path)
    assert tracker.changes() == FolderUpdate({"metrics.jsonl": FilePart(0, b"one\n")})
    assert tracker.changes() == FolderUpdate()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"two\n")
    (tmp_path / ".latest.pt.12.tmp").write_bytes(b"half")
    assert tracker.changes() == FolderUpdate({"metrics.jsonl": FilePart(4, b"two\n")})


def test_the_checkpoint_is_written_last(tmp_path, monkeypatch):
    from hnerv.fleet import transfers

    order, real = [], transfers.replacing
    monkeypatch.setattr(transfers, "replacing", lambda path: order.append(path.name) or real(path))
    names = (LATEST, "checkpoints/best.pt", "metrics.jsonl", "tensorboard/events.a", "config.json")
    apply_update(FolderUpdate({name: FilePart(0, b"x") for name in names}), tmp_path)
    assert order[0] == "config.json" and order[-2:] == ["best.pt", "latest.pt"] and len(order) == 5


def test_best_is_packed_only_if_latest_is_missing(tmp_path):
    for name in (LATEST, "checkpoints/best.pt", "eval/summary.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert set(pack_run(tmp_path).parts) == {LATEST}
    (tmp_path / LATEST).unlink()
    assert set(pack_run(tmp_path).parts) == {"checkpoints/best.pt"}
    assert pack_run(tmp_path / "none") == FolderUpdate()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_no_file_is_written_outside_the_run_folder(tmp_path, name):
    with pytest.raises(UserError, match="not a file of a run folder"):
        apply_update(FolderUpdate({name: FilePart(0, b"x")}), tmp_path / "run")
    with pytest.raises(UserError):
        apply_update(FolderUpdate({}, frozenset([name])), tmp_path / "run")


def test_a_log_shorter_than_the_sent_part_is_an_error(tmp_path):
    with pytest.raises(RunError, match="shorter than the 5 bytes"):
        apply_update(FolderUpdate({"metrics.jsonl": FilePart(5, b"x")}), tmp_path)
