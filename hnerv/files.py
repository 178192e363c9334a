"""Files that are written completely or not at all, their checksums, and where they may be put."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from hnerv.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` at the end of a block that succeeds.

    Until then it is `.NAME.*.tmp` in the same folder, which is created if needed; a long NAME is cut. Its name is
    unique also where machines share a disk. No reader sees half a file: if the block, the disk or the rename fails,
    the old file stays, the temporary one is removed, and the error is passed on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = os.fsdecode(os.fsencode(path.name)[:200])
    temporary = path.with_name(f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a crash could leave the new name on an empty file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """$HNERV_CACHE, else $XDG_CACHE_HOME/hnerv, else ~/.cache/hnerv. It need not exist."""
    if own := os.environ.get("HNERV_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hnerv"


def check_place(path: Path) -> None:
    """Called before minutes of work for `path`. Raises UserError where it could not be written."""
    above = path.absolute() if path.is_dir() else path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise UserError(f"cannot write {path}: {above} is a file: choose another location")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{above} is not writable: choose another location, or change its permissions")


def check_output(path: Path, flag: str, overwrite: bool) -> None:
    """Called before minutes of work for the file `path` of a flag. Raises UserError where it must not be written."""
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: choose another name")
    if path.exists() and not overwrite:
        raise UserError(f"{flag} {path} already exists: choose another name, or pass --overwrite")
    check_place(path)


def sha256_of(path: Path) -> str:
    """64 hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_aside(path: Path) -> Path:
    """Renames x to x.old1, or to the first number that is free, and returns that. Raises OSError."""
    number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.old{n}").exists())
    aside = path.with_name(f"{path.name}.old{number}")
    os.replace(path, aside)
    return aside


def write_json(path: Path, data: object) -> None:
    """Indented JSON, written completely or not at all. Inverse of `read_json`."""
    text = json.dumps(data, indent=2) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def read_json(path: Path):
    """Raises UserError for a file that cannot be read as JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or move its folder aside") from error


def scratch_folder(prefix: str) -> Path:
    """A new temporary folder, removed when this process ends."""
    return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=_scratch_root()))


@functools.cache
def _scratch_root() -> Path:
    """The folder of all temporary folders of this process. It is locked: those of killed processes are removed first.

    Process numbers are no proof where several machines or containers share the folder.
    """
    for old in Path(tempfile.gettempdir()).glob("hnerv-scratch-*"):
        with contextlib.suppress(OSError, Timeout):
            if old.stat().st_mtime < time.time() - 60:  # not one that is about to be locked
                with FileLock(old / ".lock", timeout=0, fallback_to_soft=False):
                    shutil.rmtree(old, ignore_errors=True)
    root = tempfile.mkdtemp(prefix="hnerv-scratch-")
    lock = FileLock(os.path.join(root, ".lock"), fallback_to_soft=False)
    with contextlib.suppress(OSError):  # a file system without locks
        lock.acquire()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    atexit.register(lock.release)  # before that: the last one registered is the first to be called
    return Path(root)


def machine() -> str:
    """The host and its PID namespace (containers have their own): the scope of a process number."""
    try:
        return f"{socket.gethostname()}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not on Linux
        return socket.gethostname()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists. True where that is unknown: on Windows, signal 0 is Ctrl-C."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        return True
    return True


def memory_bytes() -> int:
    """Memory of this machine; 2^62 where it is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 62
