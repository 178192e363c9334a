"""A run folder on its way from a worker to the driver and back: what has changed of it, as bytes.

Logs only grow, so of them the new end travels; other files travel whole. The checkpoint is written last: what lies on
the driver's disk is at every moment a run that can be gone on with.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hnerv.errors import RunError, UserError
from hnerv.files import replacing

LATEST = "checkpoints/latest.pt"
ORDER = {"config.json": -1, "checkpoints/best.pt": 1, LATEST: 2}
"""Of everything else, 0: the record first, so that a folder that was begun is known, and the checkpoint last."""
_READ = 1 << 20


class Piece(NamedTuple):
    """The content of a file from the byte `start` on: 0 for a whole file."""

    start: int
    data: bytes


class Parcel(NamedTuple):
    """{path within the run folder: piece}, and the files that are there no more."""

    pieces: dict[str, Piece] = {}  # noqa: RUF012 (never changed)
    gone: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(piece.data) for piece in self.pieces.values())


def pack(folder: Path) -> Parcel:
    """What a run needs to go on: its record, its logs and its checkpoint; nothing of a folder that is not there."""
    best_needed = not (folder / LATEST).is_file()
    wanted = [folder / name for name in ("config.json", "environment.json", "metrics.jsonl", LATEST)]
    wanted += [folder / "checkpoints" / "best.pt"] * best_needed + sorted((folder / "tensorboard").glob("events.*"))
    found = {str(path.relative_to(folder).as_posix()): path for path in wanted if path.is_file()}
    return Parcel({name: Piece(0, path.read_bytes()) for name, path in found.items()})


def merged(first: Parcel, second: Parcel) -> Parcel:
    """One parcel that does what the two do, one after the other."""
    pieces = {name: piece for name, piece in first.pieces.items() if name not in second.gone}
    for name, piece in second.pieces.items():
        before = pieces.get(name)
        if before and piece.start and before.start + len(before.data) == piece.start:
            piece = Piece(before.start, before.data + piece.data)
        pieces[name] = piece
    return Parcel(pieces, (first.gone - set(second.pieces)) | second.gone)


def unpack(parcel: Parcel, folder: Path) -> None:
    """Writes a parcel into a run folder, its checkpoint last.

    Raises RunError for a log that lacks what came before, UserError for a name that leads out of the folder.
    """
    for name in parcel.gone:
        _inside(folder, name).unlink(missing_ok=True)
    for name in sorted(parcel.pieces, key=lambda name: (ORDER.get(name, 0), name)):
        piece, path = parcel.pieces[name], _inside(folder, name)
        if piece.start:
            _append(path, piece)
        else:
            with replacing(path) as file:
                file.write(piece.data)


def _append(path: Path, piece: Piece) -> None:
    if not path.is_file() or path.stat().st_size < piece.start:
        raise RunError(f"{path} is shorter than the {piece.start} bytes written to it: run the same command to resume")
    with path.open("r+b") as file:
        file.truncate(piece.start)
        file.seek(piece.start)
        file.write(piece.data)
        file.flush()
        os.fsync(file.fileno())


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or parts[0].startswith("/"):
        raise UserError(f"{name!r} is not a file of a run folder, so no hnerv worker sent it: check the cluster")
    return folder.joinpath(*parts)


class Sender:
    """What of a run folder the other side has, and what it still lacks; `received` was just unpacked into it."""

    def __init__(self, folder: Path, received: Parcel = Parcel()) -> None:  # noqa: B008 (a tuple)
        self.folder = folder
        self._logs = {
            name: (len(piece.data), hashlib.sha256(piece.data).digest())
            for name, piece in received.pieces.items()
            if _is_log(name)
        }
        self._files = {name: _mark(folder / name) for name in received.pieces if not _is_log(name)}
        self._known = set(received.pieces)

    def changes(self) -> Parcel:
        """Since the last call, or since `received`. Hidden files are left out, such as those half written."""
        pieces = {}
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        found = {name: path for name, path in found.items() if not path.name.startswith(".")}
        for name, path in found.items():
            piece = self._log(name, path) if _is_log(name) else self._file(name, path)
            if piece:
                pieces[name] = piece
        gone = frozenset(self._known - set(found))
        self._known = set(found)
        for name in gone:
            self._logs.pop(name, None), self._files.pop(name, None)
        return Parcel(pieces, gone)

    def _log(self, name: str, path: Path) -> Piece | None:
        """The end of a log that has grown; all of one that was cut back, which is told by its check sum."""
        size, digest = self._logs.get(name, (0, hashlib.sha256().digest()))
        data = path.read_bytes()
        grown = hashlib.sha256(data[:size]).digest() == digest
        self._logs[name] = len(data), hashlib.sha256(data).digest()
        if grown and len(data) == size and name in self._known:
            return None
        return Piece(size, data[size:]) if grown else Piece(0, data)

    def _file(self, name: str, path: Path) -> Piece | None:
        mark = _mark(path)
        if self._files.get(name) == mark:
            return None
        self._files[name] = mark
        return Piece(0, path.read_bytes())


def _mark(path: Path) -> tuple[int, int, int]:
    """Of a content: a file that is written anew is another inode, however soon it follows the last."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _is_log(name: str) -> bool:
    return name == "metrics.jsonl" or PurePosixPath(name).name.startswith("events.")
