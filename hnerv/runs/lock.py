"""A lock on the folder of a run: one process at a time, and none that a dead process still holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hnerv.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps a second process out
    fcntl = None

NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder`, which exists, for the block. Raises UserError, in which it wrote nothing, where another has it.

    The kernel gives the lock back when its process ends, however that ends: the file that a killed one leaves is held
    by nobody. Where the system or the file system has no locks, it locks nothing.
    """
    if fcntl is None:
        yield
        return
    path = folder / NAME
    handle = _taken(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is_at(handle, path):
                path.unlink()  # while it is held: whoever waits for this file finds that it is no longer the one
        os.close(handle)


def _taken(path: Path) -> int:
    """The locked file. Tried anew when the one that was opened has been removed before it was locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                f"another process is training in {path.parent}: wait for it to finish, or choose another --exp-id"
            ) from None
        except OSError:
            return handle
        if _is_at(handle, path):
            return handle
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
