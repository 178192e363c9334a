"""Files at addresses that fsspec opens, such as s3://bucket/a.mp4.

One that is only read is copied once, then read like any other file. A `Storage` is a folder at a path or an address
that several processes write.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from hnerv.errors import RunError, UserError
from hnerv.files import is_alive, machine, replacing, scratch_folder

KEPT = 4
"""Copies that a process keeps: a video, its targets, the weights of the encoder, and one more."""
TRIES, WAIT = 4, 0.5
"""Attempts at each operation of a storage, and the seconds after the first one, doubled after each further one."""
LEASE, LEASE_SECONDS = "lease.json", 60.0
"""A lease ends when it is not renewed for so long; its holder renews it six times as often."""
_BLOCK = 1 << 22
_copies: dict[str, Path] = {}


def is_remote(name: str) -> bool:
    """Whether this is an address that fsspec opens: `scheme://…`, or several chained by `::`."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+(::[^:]+)*://", name))


def local_path(name: str) -> Path:
    """`name` as a path; of an address, that of its copy. Raises UserError."""
    return local_copy(name) if is_remote(name) else Path(name)


def local_copy(address: str) -> Path:
    """The file at an address, under its own name. It is fetched once, and again after KEPT others. Raises UserError."""
    if address not in _copies:
        while len(_copies) >= KEPT:
            shutil.rmtree(_copies.pop(next(iter(_copies))).parent, ignore_errors=True)
        _copies[address] = download(address, scratch_folder("copy"))
    _copies[address] = _copies.pop(address)  # the order of use: the first one is dropped next
    return _copies[address]


def download(address: str, folder: Path) -> Path:
    """Copy the file at an address into `folder`, in several attempts. Raises UserError."""
    import fsspec

    path = folder / (re.sub(r"[^\w.-]", "-", re.split(r"[?#]", address)[0].rstrip("/").rsplit("/", 1)[-1]) or "video")
    for left in reversed(range(TRIES)):
        try:
            with fsspec.open(address, "rb") as source, replacing(path) as target:
                while block := source.read(_BLOCK):
                    target.write(block)
            return path
        except Exception as error:  # each protocol raises its own
            if not left or isinstance(error, FileNotFoundError | ImportError | ValueError):
                hint = "check address, network and credentials"
                raise UserError(f"{address} cannot be fetched ({cause_of(error)}): {hint}") from error
            time.sleep(WAIT)
    raise AssertionError


def cause_of(error: BaseException) -> str:
    """The message of an error of fsspec in one line, else its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class StorageError(RunError):
    """The storage failed repeatedly. Ray repeats a task that ends with it."""


class Storage:
    """A folder at a path or an address; files have names relative to it.

    Writes are complete or do not happen. Each operation is tried TRIES times, then raises StorageError.
    """

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address.rstrip("/") if is_remote(address) else os.path.abspath(address)
        self.path = None if is_remote(address) else Path(self.address)
        """The folder, if it is a path."""
        if self.path:
            self._fs, self._root = fsspec.filesystem("file"), self.address
            return
        if set(self.address) & set("*?[") or self.address.endswith(":"):
            raise UserError(f"{address} is not an address without *, ? and [: write one as in s3://bucket/folder")
        try:
            self._fs, self._root = fsspec.url_to_fs(self.address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{address} cannot be opened ({cause_of(error)}): install that, or check the address"
            ) from error

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if there is none."""
        return self._tried("read", name, self._fs.cat_file)

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """{name: content} of the files that exist; many requests to an object store run at once."""
        if self.path:
            found = {name: self.read(name) for name in names}
        else:
            paths = {f"{self._root}/{name}": name for name in names}
            cat = self._tried("read", "", lambda _: self._fs.cat([*paths], on_error="return")) if paths else {}
            # One that failed is read again, alone: it may not exist, or its read may have failed.
            found = {
                paths[path]: data if isinstance(data, bytes) else self.read(paths[path]) for path, data in cat.items()
            }
        return {name: data for name, data in found.items() if data is not None}

    def write(self, name: str, content: bytes) -> None:
        """Replace a file."""

        def put(path: str) -> None:
            if not self.path:
                self._fs.pipe_file(path, content)
                return
            with replacing(Path(path)) as file:  # for a path, fsspec does not write by renaming
                file.write(content)

        self._tried("write", name, put)

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless it exists -> whether it was written."""

        def put(path: str) -> None:
            if not self.path:
                self._fs.pipe_file(path, content, mode="create")
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as file:  # for a path, fsspec checks and writes in two steps
                file.write(content)

        try:
            self._tried("write", name, put)
        except StorageError:  # an object store also says that it exists in this way
            if self.read(name) is None:
                raise
        return self.read(name) == content

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._tried("read", name, self._fs.info) is not None

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        self._tried("remove", name, self._fs.rm_file)

    def names(self, folder: str) -> list[str]:
        """The names of all files below a folder. Those that a killed process left half-written are removed."""
        paths = self._tried("list", folder, _walk if self.path else self._fs.find) or ()
        names = sorted(path[len(self._root) + 1 :] for path in paths)
        half_written = {name for name in names if re.search(r"/\.[^/]+\.tmp$", name)} if self.path else set()
        for name in half_written:
            with contextlib.suppress(OSError):
                if (self.path / name).stat().st_mtime < time.time() - 3600:
                    self.remove(name)
        return [name for name in names if name not in half_written]

    def fetch(self, folder: str, wanted: re.Pattern, target: Path) -> Path:
        """Copy the `wanted` files of a folder, by their names in it, to TARGET/FOLDER -> that path."""
        for name in self.names(folder):
            if wanted.fullmatch(name.removeprefix(f"{folder}/")) and (data := self.read(name)) is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(data)
        return target / folder

    def _tried(self, verb: str, name: str, call: Callable[[str], object]):
        for number in itertools.count(1):
            try:
                return call(f"{self._root}/{name}")
            except (FileNotFoundError, NotADirectoryError) as error:
                if verb != "write":
                    return None
                cause = cause_of(error)
            except Exception as error:  # each protocol raises its own
                cause = cause_of(error)
                number = TRIES if isinstance(error, FileExistsError) else number
            if number >= TRIES:
                where = f"{self.address}/{name}"
                raise StorageError(f"cannot {verb} {where} ({cause}): fix the cause, then run the same command")
            time.sleep(WAIT * 2 ** (number - 1))


def _walk(folder: str) -> list[str]:
    """All files below a folder. Raises OSError, unlike the listing of fsspec, which takes an error for an end."""

    def fail(error: OSError) -> None:
        raise error

    return [os.path.join(path, name) for path, _, names in os.walk(folder, onerror=fail) for name in names]


class Lease:
    """Keeps other processes that take it out of a storage, for a block in which `renew` is called often.

    A process that finds a lease waits for it to be renewed, then raises UserError. It takes over one that is not
    renewed for LEASE_SECONDS of its own clock, and at once that of a process of this machine that has ended.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self._renewed_at = storage, time.monotonic()
        self._ours = {"owner": uuid.uuid4().hex, "host": machine(), "pid": os.getpid(), "renewals": 0}

    def __enter__(self) -> Lease:
        if not self._storage.create(LEASE, json.dumps(self._ours).encode()):
            if self._holder_renews():
                raise UserError(self._other())
            self._write()
            time.sleep(WAIT)  # of two processes that take over at once, the last one to write remains
            if other := self._other():
                raise UserError(other)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(StorageError, OSError):  # a lease ends by itself
            if not self._other():
                self._storage.remove(LEASE)
                if self._storage.path:
                    self._storage.path.rmdir()  # only if it is empty

    def renew(self) -> None:
        """Raises RunError if another process has taken over. A failure of the storage is left to the next call."""
        if time.monotonic() - self._renewed_at > LEASE_SECONDS / 6:
            with contextlib.suppress(StorageError):
                if other := self._other():
                    raise RunError(other)
                self._write()
            self._renewed_at = time.monotonic()

    def _holder_renews(self) -> bool:
        holder, end = self._holder(), time.monotonic() + LEASE_SECONDS
        if holder.get("host") == self._ours["host"] and not is_alive(int(holder.get("pid", 0))):
            return False
        while (now := self._holder()) == holder and time.monotonic() < end:
            time.sleep(WAIT)
        return now not in ({}, holder)

    def _other(self) -> str:
        """What to say of another holder, empty without one."""
        holder = self._holder()
        if holder.get("owner", self._ours["owner"]) == self._ours["owner"]:
            return ""
        by = f"process {holder.get('pid')} on {holder.get('host')}"
        return f"{self._storage.address} is in use by {by}: wait for it to finish, or choose another folder"

    def _holder(self) -> dict:
        found = {}
        with contextlib.suppress(ValueError):
            found = json.loads(self._storage.read(LEASE) or b"{}")
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        self._ours["renewals"] += 1
        self._storage.write(LEASE, json.dumps(self._ours).encode())
