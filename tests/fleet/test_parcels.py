"""A run folder on its way: whatever a worker does to it, the other side ends with the same files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hnerv.errors import RunError, UserError
from hnerv.fleet.parcels import LATEST, Parcel, Piece, Sender, merged, pack, unpack

LOGS = ("metrics.jsonl", "tensorboard/events.out.1", "tensorboard/events.out.2")
FILES = ("config.json", LATEST, "checkpoints/best.pt", "tensorboard/sprite.png")


def disturb(folder: Path, draw: random.Random) -> None:
    """One thing that training, a rollback or a resume does."""
    name = draw.choice(LOGS + FILES)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_bytes() if path.exists() else b""
    what = draw.randrange(4)
    if name in FILES:
        path.write_bytes(draw.randbytes(draw.randrange(1, 50)))
    elif what == 0 and path.exists():
        path.unlink()
    elif what == 1:
        path.write_bytes(old[: draw.randrange(len(old) + 1)])
    elif what == 2:
        path.write_bytes(old[: len(old) // 2] + draw.randbytes(30))  # cut back, and grown past where it was
    else:
        path.write_bytes(old + draw.randbytes(draw.randrange(30)))


@pytest.mark.parametrize("seed", range(40))
def test_the_other_side_ends_with_the_same_files(tmp_path, snapshot, seed):
    draw = random.Random(seed)
    here, there = tmp_path / "worker", tmp_path / "driver"
    there.mkdir()
    for _ in range(draw.randrange(12)):
        disturb(there, draw)
    received = pack(there)
    here.mkdir()
    unpack(received, here)
    sender = Sender(here, received)
    for _ in range(6):
        parcels = []
        for _ in range(draw.randrange(1, 4)):
            for _ in range(draw.randrange(6)):
                disturb(here, draw)
            parcels.append(sender.changes())
        whole = parcels[0]
        for parcel in parcels[1:]:
            whole = merged(whole, parcel)
        unpack(whole, there)
        ours, theirs = snapshot(here), snapshot(there)
        assert {name: theirs[name] for name in ours} == ours
        assert set(theirs) - set(ours) <= {"tensorboard/sprite.png", "checkpoints/best.pt"}  # which were not packed


def test_of_a_log_that_grows_the_end_alone_travels(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"one\n")
    sender = Sender(tmp_path)
    assert sender.changes() == Parcel({"metrics.jsonl": Piece(0, b"one\n")})
    assert sender.changes() == Parcel()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"two\n")
    (tmp_path / ".latest.pt.12.tmp").write_bytes(b"half")
    assert sender.changes() == Parcel({"metrics.jsonl": Piece(4, b"two\n")})


def test_the_checkpoint_is_written_last(tmp_path, monkeypatch):
    from hnerv.fleet import parcels

    order, real = [], parcels.replacing
    monkeypatch.setattr(parcels, "replacing", lambda path: order.append(path.name) or real(path))
    names = (LATEST, "checkpoints/best.pt", "metrics.jsonl", "tensorboard/events.a", "config.json")
    unpack(Parcel({name: Piece(0, b"x") for name in names}), tmp_path)
    assert order[0] == "config.json" and order[-2:] == ["best.pt", "latest.pt"] and len(order) == 5


def test_best_travels_to_a_worker_only_where_latest_is_missing(tmp_path):
    for name in (LATEST, "checkpoints/best.pt", "eval/summary.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert set(pack(tmp_path).pieces) == {LATEST}
    (tmp_path / LATEST).unlink()
    assert set(pack(tmp_path).pieces) == {"checkpoints/best.pt"}
    assert pack(tmp_path / "none") == Parcel()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_no_file_is_written_outside(tmp_path, name):
    with pytest.raises(UserError, match="not a file of a run folder"):
        unpack(Parcel({name: Piece(0, b"x")}), tmp_path / "run")
    with pytest.raises(UserError):
        unpack(Parcel({}, frozenset([name])), tmp_path / "run")


def test_a_log_that_lacks_what_came_before_is_not_gone_on_with(tmp_path):
    with pytest.raises(RunError, match="shorter than the 5 bytes"):
        unpack(Parcel({"metrics.jsonl": Piece(5, b"x")}), tmp_path)
