"""Changes of a run folder as bytes, sent from a worker to the driver and back.

Logs only grow, so only their new end is sent; all other files are sent in full. The checkpoint is written last, so the
folder on the driver's disk is a run that can be resumed at any moment.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hnerv.errors import RunError, UserError
from hnerv.files import replacing

LATEST = "checkpoints/latest.pt"
WRITE_ORDER = {"config.json": -1, "checkpoints/best.pt": 1, LATEST: 2}
"""All other files: 0. The record comes first, so that a started folder is recognised, and the checkpoint last."""


class FilePart(NamedTuple):
    """Content of a file from byte `start` on; 0 for a full file."""

    start: int
    data: bytes


class FolderUpdate(NamedTuple):
    """{path within the run folder: new content}, and the files that were removed."""

    parts: dict[str, FilePart] = {}  # noqa: RUF012 (never changed)
    removed: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(part.data) for part in self.parts.values())


def pack_run(folder: Path) -> FolderUpdate:
    """The files needed to resume a run: record, logs and checkpoint. Empty if the folder does not exist."""
    best_needed = not (folder / LATEST).is_file()
    wanted = [folder / name for name in ("config.json", "environment.json", "metrics.jsonl", LATEST)]
    wanted += [folder / "checkpoints" / "best.pt"] * best_needed + sorted((folder / "tensorboard").glob("events.*"))
    found = {path.relative_to(folder).as_posix(): path for path in wanted if path.is_file()}
    return FolderUpdate({name: FilePart(0, path.read_bytes()) for name, path in found.items()})


def merge_updates(first: FolderUpdate, second: FolderUpdate) -> FolderUpdate:
    """One update with the effect of applying `first`, then `second`."""
    parts = {name: part for name, part in first.parts.items() if name not in second.removed}
    for name, part in second.parts.items():
        before = parts.get(name)
        if before and part.start and before.start + len(before.data) == part.start:
            part = FilePart(before.start, before.data + part.data)
        parts[name] = part
    return FolderUpdate(parts, (first.removed - set(second.parts)) | second.removed)


def apply_update(update: FolderUpdate, folder: Path) -> None:
    """Write an update into a run folder, its checkpoint last.

    Raises RunError if a log is shorter than the start of its new part, UserError for a name outside the folder.
    """
    for name in update.removed:
        _inside(folder, name).unlink(missing_ok=True)
    for name in sorted(update.parts, key=lambda name: (WRITE_ORDER.get(name, 0), name)):
        part, path = update.parts[name], _inside(folder, name)
        if part.start:
            _append(path, part)
        else:
            with replacing(path) as file:
                file.write(part.data)


def _append(path: Path, part: FilePart) -> None:
    if not path.is_file() or path.stat().st_size < part.start:
        raise RunError(f"{path} is shorter than the {part.start} bytes written to it: run the same command to resume")
    with path.open("r+b") as file:
        file.truncate(part.start)
        file.seek(part.start)
        file.write(part.data)
        file.flush()
        os.fsync(file.fileno())


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or parts[0].startswith("/"):
        raise UserError(f"{name!r} is not a file of a run folder, so no hnerv worker sent it: check the cluster")
    return folder.joinpath(*parts)


class ChangeTracker:
    """Finds the changes of a run folder that the driver does not have yet.

    `received` is the update that was just applied to the folder.
    """

    def __init__(self, folder: Path, received: FolderUpdate = FolderUpdate()) -> None:  # noqa: B008 (a tuple)
        self.folder = folder
        self._logs = {
            name: (len(part.data), hashlib.sha256(part.data).digest())
            for name, part in received.parts.items()
            if _is_log(name)
        }
        self._files = {name: _file_version(folder / name) for name in received.parts if not _is_log(name)}
        self._known = set(received.parts)

    def changes(self) -> FolderUpdate:
        """Changes since the last call, or since `received`. Hidden files, such as half-written ones, are left out."""
        parts = {}
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        found = {name: path for name, path in found.items() if not path.name.startswith(".")}
        for name, path in found.items():
            part = self._log_change(name, path) if _is_log(name) else self._file_change(name, path)
            if part:
                parts[name] = part
        removed = frozenset(self._known - set(found))
        self._known = set(found)
        for name in removed:
            self._logs.pop(name, None), self._files.pop(name, None)
        return FolderUpdate(parts, removed)

    def _log_change(self, name: str, path: Path) -> FilePart | None:
        """The new end of a log that has grown; the full log if its known beginning changed, as after a rollback."""
        size, digest = self._logs.get(name, (0, hashlib.sha256().digest()))
        data = path.read_bytes()
        grown = hashlib.sha256(data[:size]).digest() == digest
        self._logs[name] = len(data), hashlib.sha256(data).digest()
        if grown and len(data) == size and name in self._known:
            return None
        return FilePart(size, data[size:]) if grown else FilePart(0, data)

    def _file_change(self, name: str, path: Path) -> FilePart | None:
        version = _file_version(path)
        if self._files.get(name) == version:
            return None
        self._files[name] = version
        return FilePart(0, path.read_bytes())


def _file_version(path: Path) -> tuple[int, int, int]:
    """Identifies a content: files are replaced, so a new content has another inode even within one clock tick."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _is_log(name: str) -> bool:
    return name == "metrics.jsonl" or PurePosixPath(name).name.startswith("events.")
