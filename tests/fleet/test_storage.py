"""Storage and lease on paths, in memory and in a local S3; statuses that were damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hnerv import storage as storage_module
from hnerv.errors import RunError, UserError
from hnerv.files import machine
from hnerv.fleet.status import Status, read_status, read_statuses, write_status
from hnerv.storage import TRIES, Lease, Storage, StorageError

ELSEWHERE = b'{"owner": "x", "host": "elsewhere", "pid": 1}'


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(storage_module, "WAIT", 0.01)
    monkeypatch.setattr(storage_module, "LEASE_SECONDS", 0.3)


@pytest.fixture(params=["path", "memory", "s3"])
def storage(request, tmp_path) -> Storage:
    if request.param == "s3":
        return Storage(f"{request.getfixturevalue('s3')('calm')}/fleet")
    return Storage({"path": f"{tmp_path}/fleet", "memory": f"memory://{tmp_path.name}/fleet"}[request.param])


def test_files_of_a_storage(storage):
    assert storage.read("a/x") is None and not storage.exists("a/x") and storage.names("a") == []
    storage.remove("a/x")
    for name in ("a/x", "a/deep/y", "ab/x", "a.json"):
        storage.write(name, name.encode())
    storage.write("a/x", b"again")
    again = Storage(f"{storage.address}/")
    assert again.address == storage.address and again.read("a/x") == b"again" and again.exists("a.json")
    assert again.names("a") == ["a/deep/y", "a/x"]
    assert again.read_many(["ab/x", "a/gone", "a.json"]) == {"ab/x": b"ab/x", "a.json": b"a.json"}
    assert again.read_many([]) == {}
    again.remove("a/x")
    assert storage.names("a") == ["a/deep/y"] and storage.read("a/x") is None


def test_an_error_is_not_taken_for_an_empty_folder_or_a_missing_file(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.write("a/x", b"1")

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "stale file handle")

    monkeypatch.setattr(os, "scandir", stale)
    monkeypatch.setattr(os, "stat", stale)
    with pytest.raises(StorageError, match="cannot list .*stale"):
        storage.names("a")
    with pytest.raises(StorageError, match="cannot read .*stale"):
        storage.exists("a/x")


def test_a_file_is_created_once(storage):
    contents = [f"content {number}".encode() for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        created = [*threads.map(lambda content: storage.create("x", content), contents)]
    assert sum(created) == 1 and storage.read("x") == contents[created.index(True)]


def test_a_reader_never_sees_half_a_file(storage):
    contents, ended = [bytes([number]) * 400_000 for number in range(2)], threading.Event()
    storage.write("x", contents[0])
    with ThreadPoolExecutor(1) as reader:
        seen = reader.submit(lambda: {Storage(storage.address).read("x") for _ in iter(ended.is_set, True)})
        for content in contents * 10:
            storage.write("x", content)
        ended.set()
    assert seen.result() and seen.result() <= {*contents}


def test_operations_are_repeated(monkeypatch):
    faults, waits, storage = [], [], Storage("memory://shaky")

    def failing(real):
        def call(*args, **words):
            if faults:
                raise faults.pop()
            return real(*args, **words)

        return call

    for name in ("cat_file", "pipe_file"):
        monkeypatch.setattr(MemoryFileSystem, name, failing(getattr(MemoryFileSystem, name)))
    monkeypatch.setattr(storage_module.time, "sleep", waits.append)
    fault = PermissionError("denied\nby the storage")
    faults += [fault] * (TRIES - 1)
    storage.write("x", b"1")
    assert waits == [0.01, 0.02, 0.04]
    for verb, call in {"read": lambda: storage.read("x"), "write": lambda: storage.write("x", b"2")}.items():
        faults += [fault] * TRIES
        with pytest.raises(StorageError) as error:
            call()
        sentence = f"cannot {verb} memory://shaky/x (denied by the storage): fix the cause, then run the same command"
        assert str(error.value) == sentence
    assert storage.read("x") == b"1"


def test_a_second_driver_is_refused_while_the_first_renews(storage, monkeypatch):
    monkeypatch.setattr(storage_module, "LEASE_SECONDS", 1.5)
    second, real = Storage(storage.address), Storage.read
    with Lease(storage) as first:
        monkeypatch.setattr(Storage, "read", lambda self, name: (self is second and first.renew(), real(self, name))[1])
        message = f"^{storage.address} is in use by process {os.getpid()} on .*: wait .*folder$"
        with pytest.raises(UserError, match=message), Lease(second):
            pass
    assert storage.read("lease.json") is None
    with Lease(second):
        pass


def test_a_silent_holder_is_replaced_and_learns_it(storage):
    first, start = Lease(storage).__enter__(), time.monotonic()
    with Lease(Storage(storage.address)) as second:
        assert time.monotonic() - start >= 0.3
        with pytest.raises(RunError, match=" is in use by process "):
            first.renew()
        first.__exit__()
        second.renew()
        assert storage.read("lease.json") is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", ELSEWHERE])
def test_a_lease_of_another_host_or_a_damaged_one_ends(tmp_path, content):
    (tmp_path / "lease.json").write_bytes(content)
    start = time.monotonic()
    with Lease(Storage(str(tmp_path))):
        assert time.monotonic() - start >= 0.3
        assert json.loads((tmp_path / "lease.json").read_bytes())["pid"] == os.getpid()


def test_a_dead_process_of_this_host_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module, "LEASE_SECONDS", 600.0)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "lease.json").write_text(json.dumps({"owner": "x", "host": machine(), "pid": dead.pid}))
    with Lease(Storage(str(tmp_path))):
        assert json.loads((tmp_path / "lease.json").read_bytes())["pid"] == os.getpid()


def test_one_of_several_drivers_takes_over(storage):
    """Where a slow write lets a second one through, one of them learns it at its next renewal."""
    storage.write("lease.json", ELSEWHERE)
    kept, everyone = [], threading.Barrier(3)

    def take(lease: Lease) -> None:
        with contextlib.suppress(UserError):
            kept.append(lease.__enter__())
        everyone.wait()
        time.sleep(0.06)  # a sixth of LEASE_SECONDS
        if lease in kept:
            try:
                lease.renew()
            except RunError:
                kept.remove(lease)

    with ThreadPoolExecutor(3) as threads:
        [*threads.map(take, [Lease(Storage(storage.address)) for _ in range(3)])]
    assert len(kept) == 1


def test_statuses_of_a_storage(storage):
    ours = Status("finished", values={"psnr": 30.5, "targets": "ümlaut"}, owner="me", retries=2, progress=1.0)
    write_status(storage, "a/b", ours)
    assert read_statuses(storage, ["gone", "a/b"]) == {"gone": Status(), "a/b": ours}
    for content in (b"", b"{", b"\xff", b"[]", b"null", b"3", b'{"state": "other"}', b'{"state": 1}'):
        storage.write("a/status.json", content)
        assert read_status(storage, "a") == Status()
    for more in (b'"trained": "3"', b'"more": 1', b'"retries": 1.5'):
        storage.write("a/status.json", b'{"state": "failed", %s}' % more)
        assert read_status(storage, "a") == Status()
