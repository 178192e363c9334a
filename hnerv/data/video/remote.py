"""Videos behind an address (s3://, https://, file://): whatever fsspec opens."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hnerv.errors import UserError
from hnerv.files import replacing

PIECE = 1 << 22


def is_remote(data: str) -> bool:
    """Whether it is an address, no path: `scheme://…`, or several chained by `::`."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+(::[^:]+)*://", data))


def fetch(address: str, folder: Path) -> Path:
    """Copies the file at an address into `folder`, under its own name. Raises UserError."""
    try:
        import fsspec
    except ImportError:
        raise UserError(f"opening {address} needs fsspec, which is not installed: pip install fsspec") from None
    path = folder / (re.sub(r"[^\w.-]", "-", re.split(r"[?#]", address)[0].rstrip("/").rsplit("/", 1)[-1]) or "video")
    try:
        with fsspec.open(address, "rb") as source, replacing(path) as target:
            while piece := source.read(PIECE):
                target.write(piece)
    except Exception as error:  # each protocol has its own
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{address} cannot be fetched ({cause}): check address, network and credentials") from error
    return path


@contextlib.contextmanager
def fetched(address: str) -> Iterator[Path]:
    """The file at an address, here for the block. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="hnerv-") as folder:
        yield fetch(address, Path(folder))
