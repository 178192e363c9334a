"""A lock on the folder of a run: one process at a time, and none that a dead process still holds."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hnerv.errors import UserError

NAME = ".lock"
UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""Errors of a file system without locks, such as some network mounts."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder`, which exists, for the block. Raises UserError, without a change, if another process has it.

    The lock belongs to the kernel, which releases it when its process ends in any way: a file that a killed process
    leaves behind holds nothing. On a file system without locks this locks nothing: a run there is the user's to guard,
    and the fallback of the library, a marker file, would outlive a killed process.
    """
    path = folder / NAME
    lock = FileLock(path, timeout=0.1, fallback_to_soft=False)  # time to try again where the file was just removed
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another process is training in {folder}: wait for it to finish, or choose another --exp-id"
        ) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    try:
        yield
    finally:
        # While it is held: a process that opens the file before it is removed finds it without a name, and tries again.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
