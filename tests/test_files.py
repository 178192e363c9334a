"""Files are written completely or not at all; JSON there and back, and what cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from hnerv.errors import UserError
from hnerv.files import check_output, move_aside, read_json, replacing, sha256_of, write_json


@pytest.fixture
def old(tmp_path) -> Path:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    return path


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_complete(old, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    with replacing(old) as file:
        file.write(b"new")
        assert read_json(old) == [1]
        temporary, name = names(old.parent)
        assert temporary.startswith(".a.json.") and temporary.endswith(".tmp") and name == "a.json"
    assert old.read_bytes() == b"new" and names(old.parent) == ["a.json"]
    assert calls == ["fsync", "replace"]


@pytest.mark.parametrize("fault", [RuntimeError("torch"), OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["block", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(old, monkeypatch, fault, where):
    def broken(*_):
        raise fault

    if where != "block":
        monkeypatch.setattr(os, where, broken)
    with pytest.raises(type(fault)) as caught, replacing(old) as file:
        file.write(b"half")
        if where == "block":
            broken()
    assert caught.value is fault
    assert read_json(old) == [1] and names(old.parent) == ["a.json"]


def test_a_temporary_file_that_stays_does_not_hide_the_error(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError("denied")

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(RuntimeError, match="torch"), replacing(tmp_path / "new" / "folder" / "a.bin"):
        raise RuntimeError("torch")


@pytest.mark.parametrize("size", [0, 3, 3_000_000])
def test_sha256_of_a_file(tmp_path, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "a.bin").write_bytes(data)
    assert sha256_of(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@settings(max_examples=25)  # each is forced to the disk
@given(st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_json_there_and_back(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "there" / "a.json"
    write_json(path, data)
    assert read_json(path) == data and names(path.parent) == ["a.json"]
    assert path.read_text(encoding="utf-8") == json.dumps(data, indent=2) + "\n"


def test_what_json_cannot_hold_leaves_the_old_file(old):
    with pytest.raises(TypeError):
        write_json(old, {"new": object()})
    assert read_json(old) == [1] and names(old.parent) == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"{'a': 1}", b"[" * 10**5], ids=range(6))
def test_what_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path)
    message = str(error.value)
    assert message.startswith(f"{path} cannot be read (") and "\n" not in message
    assert message.endswith("): restore it, or move its folder aside")


def test_moving_aside_takes_the_first_free_number(old):
    old.with_name("a.json.old1").touch()
    assert move_aside(old) == old.with_name("a.json.old2")
    assert names(old.parent) == ["a.json.old1", "a.json.old2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "-o .* is a folder: choose another name"),
        ("a.json", "-o .* already exists: choose another name, or pass --overwrite"),
        ("a.json/b", "cannot write .*: .* is a file: choose another location"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_early(old, name, message):
    check_output(old.parent / "new" / "folder" / "b", "-o", overwrite=False)
    check_output(old, "-o", overwrite=True)
    with pytest.raises(UserError, match=message):
        check_output(old.parent / name, "-o", overwrite=False)


def test_scratch_folders_of_killed_processes_are_removed(tmp_path):
    def run(code: str) -> str:
        code = f"from hnerv.files import scratch_folder; folder = scratch_folder('run'); {code}"
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    killed = Path(run("print(folder, flush=True); import os; os.kill(os.getpid(), 9)").strip())
    assert killed.is_dir() and killed.parent.parent == tmp_path
    fresh, alive, other = (tmp_path / name for name in ("hnerv-scratch-fresh", "hnerv-scratch-alive", "other"))
    for folder in (fresh, alive, other):
        folder.mkdir()
    for folder in (killed.parent, alive):
        os.utime(folder, (0, 0))
    with FileLock(alive / ".lock"):
        os.utime(alive, (0, 0))
        assert run("print(folder.is_dir(), folder.name[:4])") == "True run-\n"
    assert names(tmp_path) == sorted([fresh.name, alive.name, other.name])
