"""A checkpoint comes back as it was; a bad disk leaves the one before; a bad file is one line."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import RunError, UserError
from hnerv.geometry import CropPlan
from hnerv.model import Scene
from hnerv.runs import checkpoint
from hnerv.runs.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from hnerv.runs.record import RunRecord, VideoRecord


def make_state() -> dict:
    return {
        "run": RunRecord(
            Config(),
            VideoRecord("film", "0", CropPlan(0, 0, 2, 2, 2, 2), "images"),
            Scene(3, 2, 2, 1, 1, 24.0, (0, 1), (2,), 0),
            targets=None,
            width=3,
            coded_parameters={"decoder": 10},
        ),
        "model": {"weight": torch.arange(4000.0).reshape(40, 100), "half": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "progress": {
            "epoch": 1, "step": 2, "step_in_epoch": 0, "records": torch.zeros(2, 3), "times": [1.5],
            "best": float("-inf"), "logs": {"metrics.jsonl": 10}, "window": torch.zeros(1), "peak": 1.0,
            "rollbacks": 0, "lr_scale": 1.0, "clock": {},
        },
        "evaluation": {"Eval/Frame/train_psnr": 30.0},
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoints" / "latest.pt"
    save_checkpoint(path, make_state())
    return path


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def one_line(path) -> str:
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text and ": " in text
    return text


def test_round_trip(saved):
    assert same(load_checkpoint(saved), {"format": FORMAT, **make_state()})


def test_it_holds_nothing_that_needs_pickle_and_leaves_no_temporary_file(saved):
    assert torch.load(saved, weights_only=True)["format"] == FORMAT
    assert [p.name for p in saved.parent.iterdir()] == ["latest.pt"]


def test_a_real_run(finished):
    for name in ("latest", "best"):
        assert load_checkpoint(finished / "checkpoints" / f"{name}.pt")["run"].scene.frames == 12


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), PermissionError("denied")])
def test_a_failing_disk_leaves_the_file_before(saved, monkeypatch, call, fault):
    before = saved.read_bytes()

    def broken(*_):
        raise fault

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(RunError, match="the previous checkpoint is intact") as error:
        save_checkpoint(saved, make_state() | {"evaluation": {}})
    assert str(saved) in str(error.value) and "\n" not in str(error.value)
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_a_full_disk_while_tensors_are_written(saved, monkeypatch):
    before = saved.read_bytes()

    def half(state, file):
        file.write(b"half a checkpoint")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(RunError, match="file write failed"):
        save_checkpoint(saved, make_state())
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_a_first_save_that_fails_says_that_there_is_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="there is no previous checkpoint"):
        save_checkpoint(tmp_path / "file" / "latest.pt", make_state())


def test_a_file_of_limited_size(tmp_path):
    """The operating system itself refuses the bytes."""
    import resource
    import signal

    path = tmp_path / "latest.pt"
    save_checkpoint(path, make_state())
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match="intact"):
            save_checkpoint(path, make_state())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


def test_missing_and_a_folder(tmp_path):
    assert "no such file: pass a run folder, a checkpoint" in one_line(tmp_path / "none.pt")
    one_line(tmp_path)


def test_only_a_latest_beside_a_best_may_be_deleted(saved):
    saved.write_bytes(b"no checkpoint")
    assert "delete" not in one_line(saved)
    saved.with_name("best.pt").touch()
    assert "pass best.pt, or delete this file" in one_line(saved)
    assert "delete" not in one_line(Path(saved.rename(saved.with_name("kitchen.mp4"))))


def test_a_coded_file_is_named_as_such(saved):
    saved.write_bytes(b"no checkpoint")
    assert "is a .hnerv file: pass the run folder or checkpoint" in one_line(saved.rename(saved.with_name("a.hnerv")))


def test_truncated_anywhere(saved):
    data = saved.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(data), 997), *range(len(data) - 30, len(data))]:
        saved.write_bytes(data[:length])
        assert "is corrupt or not an hnerv checkpoint" in one_line(saved), length


def test_a_damaged_byte_is_found_or_harmless(saved):
    """Any of the directory at the archive's end, of which no check sum tells, and some of the others."""
    data, draw = saved.read_bytes(), random.Random(0)
    good = load_checkpoint(saved)
    with zipfile.ZipFile(saved) as archive:
        directory = archive.start_dir
    for place in [*draw.sample(range(directory), 150), *range(directory, len(data))]:
        saved.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            assert same(load_checkpoint(saved), good), place
        except UserError as error:
            assert "\n" not in str(error)


def test_random_bytes(tmp_path):
    for seed in range(20):
        path = tmp_path / f"{seed}.pt"
        path.write_bytes(random.Random(seed).randbytes(seed * 50))
        one_line(path)


def test_pickles_of_others(tmp_path):
    path = tmp_path / "other.pt"
    path.write_bytes(pickle.dumps({"format": FORMAT}))
    one_line(path)
    torch.save(torch.nn.Linear(2, 2), path)
    one_line(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.txt", "nothing")
    one_line(path)


def test_dictionaries_of_others(tmp_path):
    path = tmp_path / "other.pt"
    for content in ([1, 2], torch.ones(3), {"state_dict": {}}):
        torch.save(content, path)
        assert "is not an hnerv checkpoint" in one_line(path)


def test_another_version(tmp_path):
    path = tmp_path / "new.pt"
    for other in (torch.zeros(3), torch.tensor(FORMAT), [FORMAT], str(FORMAT)):
        save_checkpoint(path, make_state() | {"format": other})
        assert f", but this version reads {FORMAT}: use the hnerv version that wrote it" in one_line(path)
    save_checkpoint(path, make_state() | {"format": FORMAT + 1})
    line = one_line(path)
    assert f"has format {FORMAT + 1}, but this version reads {FORMAT}: use the hnerv version that wrote it" in line


@pytest.mark.parametrize("key", [*make_state(), "progress.logs", "progress.epoch", "run.config", "run.scene"])
def test_a_missing_key_is_named(tmp_path, key):
    state = {"format": FORMAT, **make_state(), "run": make_state()["run"].to_dict()}
    part = state
    *outer, last = key.split(".")
    for name in outer:
        part = part[name]
    del part[last]
    path = tmp_path / "damaged.pt"
    torch.save(state, path)
    assert f"'{last}'" in one_line(path)


def test_parts_of_another_kind(tmp_path):
    path = tmp_path / "damaged.pt"
    save_checkpoint(path, make_state() | {"progress": 3})
    assert "'progress' is missing" in one_line(path)


def test_an_older_temporary_file_is_no_hindrance(saved):
    saved.with_name(f".latest.pt.{os.getpid()}.tmp").write_bytes(b"half")
    save_checkpoint(saved, make_state())
    assert len(list(saved.parent.iterdir())) == 1
