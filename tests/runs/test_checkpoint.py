"""A checkpoint comes back as it was; a bad disk leaves the one before; a bad file is one line."""

from __future__ import annotations

import copy
import dataclasses
import errno
import pickle
import random
import zipfile

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import RunError, UserError
from hnerv.geometry import CropPlan
from hnerv.model import Scene
from hnerv.runs.checkpoint import CURRENT, FORMAT, PROGRESS_KEYS, RATE, load_checkpoint, save_checkpoint
from hnerv.runs.record import RunRecord, VideoRecord

STATE = {
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
    "progress": dict.fromkeys(PROGRESS_KEYS, 0)
    | {"epoch": 1, "step": 2, "records": torch.zeros(2, 3), "best": float("-inf"), "logs": {"metrics.jsonl": 10}},
    "evaluation": {"Eval/Frame/train_psnr": 30.0},
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoints" / "latest.pt"
    save_checkpoint(path, STATE)
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
    assert same(load_checkpoint(saved), {"format": FORMAT, **STATE})
    assert [p.name for p in saved.parent.iterdir()] == ["latest.pt"]
    save_checkpoint(saved, STATE)
    assert [p.name for p in saved.parent.iterdir()] == ["latest.pt"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "torch.save"])
@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_failing_disk_leaves_the_file_before(saved, monkeypatch, call, fault):
    before = saved.read_bytes()

    def broken(*_):
        raise fault

    monkeypatch.setattr(call, broken)
    with pytest.raises(RunError, match="the previous checkpoint is intact") as error:
        save_checkpoint(saved, STATE | {"evaluation": {}})
    assert str(saved) in str(error.value) and str(fault) in str(error.value) and "\n" not in str(error.value)
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_a_first_save_that_fails_has_no_previous_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="there is no previous checkpoint"):
        save_checkpoint(tmp_path / "file" / "latest.pt", STATE)


def test_a_file_of_limited_size(saved):
    """The operating system itself refuses the bytes."""
    import resource
    import signal

    before = saved.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RunError, match="intact"):
            save_checkpoint(saved, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert saved.read_bytes() == before


def test_only_a_latest_next_to_a_best_may_be_deleted(saved):
    saved.write_bytes(b"no checkpoint")
    assert "delete" not in one_line(saved)
    saved.with_name("best.pt").touch()
    assert "pass best.pt, or delete this file" in one_line(saved)
    assert "delete" not in one_line(saved.rename(saved.with_name("kitchen.mp4")))
    saved.write_bytes(b"no checkpoint")
    assert "is a .hnerv file: pass the run folder or checkpoint" in one_line(saved.rename(saved.with_name("a.hnerv")))


def test_truncated_anywhere(saved):
    data = saved.read_bytes()
    for length in [*range(0, 200, 19), *range(200, len(data), 1997), *range(len(data) - 30, len(data))]:
        saved.write_bytes(data[:length])
        assert "is corrupt or not an hnerv checkpoint" in one_line(saved), length


def test_a_flipped_byte_is_found_or_harmless(saved):
    """Every byte of the directory at the end of the archive, which no checksum covers, and some of the others."""
    data, draw = saved.read_bytes(), random.Random(0)
    good = load_checkpoint(saved)
    with zipfile.ZipFile(saved) as archive:
        directory = archive.start_dir
    for position in [*draw.sample(range(directory), 100), *range(directory, len(data))]:
        saved.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        try:
            assert same(load_checkpoint(saved), good), position
        except UserError as error:
            assert "\n" not in str(error)


def foreign_zip(path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.txt", "nothing")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file: pass a run folder, a checkpoint"),
        (lambda path: path.mkdir(), "is corrupt or not an hnerv checkpoint"),
        (lambda path: path.write_bytes(random.Random(0).randbytes(500)), "is corrupt or not an hnerv checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps({"format": FORMAT})), "is corrupt or not an hnerv checkpoint"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), "is corrupt or not an hnerv checkpoint"),
        (foreign_zip, "is corrupt or not an hnerv checkpoint"),
        (lambda path: torch.save([1, 2], path), "is not an hnerv checkpoint"),
        (lambda path: torch.save(torch.ones(3), path), "is not an hnerv checkpoint"),
        (lambda path: torch.save({"state_dict": {}}, path), "is not an hnerv checkpoint"),
    ],
)
def test_foreign_files(tmp_path, write, message):
    write(tmp_path / "other.pt")
    assert message in one_line(tmp_path / "other.pt")


@pytest.mark.parametrize("other", [torch.zeros(3), torch.tensor(FORMAT), [FORMAT], str(FORMAT), FORMAT + 1], ids=str)
def test_another_format(tmp_path, other):
    path = tmp_path / "new.pt"
    save_checkpoint(path, STATE | {"format": other})
    assert f", but this version reads {FORMAT}: use the hnerv version that wrote it" in one_line(path)


@pytest.mark.parametrize("key", STATE)
def test_a_missing_part_is_named(tmp_path, key):
    state = {"format": FORMAT, **STATE, "run": STATE["run"].to_dict()}
    del state[key]
    torch.save(state, tmp_path / "damaged.pt")
    assert f"missing or extra keys ['{key}']" in one_line(tmp_path / "damaged.pt")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, set()), ({"ema_decay": 0.9}, {CURRENT}), ({"rate_weight": 0.5}, {CURRENT, RATE})],
    ids=str,
)
def test_weights_belong_to_settings(tmp_path, changes, expected):
    """Current ones to an average or a rate, steps and densities to a rate."""
    path, run = tmp_path / "latest.pt", dataclasses.replace(STATE["run"], config=Config().replaced(changes))
    settings = f"--ema-decay {changes.get('ema_decay', 0.0)} and --rate-weight {changes.get('rate_weight', 0.0)}"
    for parts in (set(), {CURRENT}, {RATE}, {CURRENT, RATE}):
        save_checkpoint(path, STATE | {"run": run} | dict.fromkeys(parts, STATE["model"]))
        if parts == expected:
            assert load_checkpoint(path).keys() == {"format", *STATE, *parts}
            continue
        key = CURRENT if CURRENT in parts ^ expected else RATE
        has = "has" if key in parts else "lacks"
        assert f"it {has} the weights {key!r}, with {settings}: pass the run" in one_line(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model", 3),
        (CURRENT, 3),
        (RATE, {"steps": 1.0}),
        ("model.weight", [1.0]),
        ("optimizer", None),
        ("progress", 3),
        ("progress", {}),
        ("progress.epoch", -1),
        ("progress.step", 2.0),
        ("progress.rate_weight", "1"),
        ("progress.logs", {"metrics.jsonl": "10"}),
        ("evaluation", {"Eval/Frame/train_psnr": "30"}),
    ],
)
def test_a_damaged_part_is_named(tmp_path, place, value):
    state = copy.deepcopy(STATE)
    part, _, key = place.partition(".")
    if key:
        state[part][key] = value
    else:
        state[part] = value
    save_checkpoint(tmp_path / "damaged.pt", state)
    assert f"is damaged: its {part!r} is invalid: pass the run folder" in one_line(tmp_path / "damaged.pt")
