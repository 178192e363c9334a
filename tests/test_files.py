"""Files are written whole or not at all; JSON there and back, and what cannot be read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hnerv.errors import UserError
from hnerv.files import read_json, replacing, sha256_of, write_json


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == sorted([f".a.bin.{os.getpid()}.tmp", "a.bin"])
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


def test_it_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    with replacing(tmp_path / "new" / "folder" / "a.bin") as file:
        file.write(b"new")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "new" / "folder" / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("fault", [RuntimeError("torch"), OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["block", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, fault, where):
    def broken(*_):
        raise fault

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    if where != "block":
        monkeypatch.setattr(os, where, broken)
    with pytest.raises(type(fault)) as caught, replacing(path) as file:
        file.write(b"half")
        if where == "block":
            broken()
    assert caught.value is fault
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_temporary_file_that_stays_does_not_hide_the_error(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError("denied")

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(RuntimeError, match="torch"), replacing(tmp_path / "a.bin"):
        raise RuntimeError("torch")


@pytest.mark.parametrize("size", [0, 3, 3_000_000])
def test_sha256_of_a_file(tmp_path, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "a.bin").write_bytes(data)
    assert sha256_of(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [{}, {"a": [1, 2.5, None, "\N{GREEK SMALL LETTER ALPHA}"]}, [1], "text", 3])
def test_json_there_and_back(tmp_path, data):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    write_json(path, data)
    assert read_json(path) == data
    assert names(tmp_path) == ["a.json"]
    assert path.read_text(encoding="utf-8").endswith("\n")


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_what_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(path)
    message = str(error.value)
    assert message.startswith(f"{path} cannot be read (") and "\n" not in message
    assert message.endswith("): restore it, or move its folder aside")


def test_json_on_a_disk_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"new": 1})
    assert read_json(path) == {"old": 1} and names(tmp_path) == ["a.json"]
