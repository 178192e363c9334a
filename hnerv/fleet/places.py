"""Where a video is for the driver, and how a worker gets at the same content: at its path, by its address, or by post.

A worker that sees no such content at the path says so, and the driver sends it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from hnerv.data.video import CLIPS, is_remote
from hnerv.data.video.images import list_images
from hnerv.data.video.sources import download
from hnerv.errors import UserError

MOST = 4 << 30
"""Bytes of a video that is sent through Ray: it lies in its object store, whole."""
_END = 1 << 20


class Place(NamedTuple):
    """`data` as it was named, `source` as a run records it, `mark` of the content ('' where the driver sees none)."""

    data: str
    source: str
    mark: str = ""


class Absent(Exception):
    """The worker does not see the video that the driver sees."""


def place_of(data: str) -> Place:
    """As the driver sees it. Raises UserError for a file that cannot be read."""
    if data in CLIPS or is_remote(data):
        return Place(data, data)
    try:
        path = Path(data).expanduser().resolve()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{data!r} is not a valid path ({error}): pass another") from error
    return Place(data, str(path), mark_of(path))


def mark_of(path: Path) -> str:
    """Of a file its size and its two ends, of a folder the names and sizes of its images; '' where nothing is.

    Raises UserError for what cannot be read.
    """
    try:
        if path.is_dir():
            rows = [f"{image.name}\0{image.stat().st_size}" for image in list_images(path)]
            return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
        if not path.is_file():
            return ""
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.sha256(f"{size}\0".encode() + file.read(_END))
            file.seek(max(size - _END, 0))
            digest.update(file.read(_END))
        return digest.hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): check its permissions") from error


def send(place: Place) -> bytes:
    """The file, or the images of the folder, as an archive. Raises UserError for one that is too large."""
    path = Path(place.source)
    files = list_images(path) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if size > MOST:
        raise UserError(
            f"{path} is missing on the worker, and its {size / 1e9:.1f} GB are too large to send: put it at the same "
            "path on all workers, or pass an address (s3://, https://)"
        )
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w", dereference=True) as archive:
        for file in files:
            archive.add(file, f"{path.name}/{file.name}" if path.is_dir() else path.name, recursive=False)
    return text.getvalue()


def receive(sent: bytes, place: Place, folder: Path) -> Path:
    """Inverse of `send`: the file or folder, inside `folder`."""
    with tarfile.open(fileobj=io.BytesIO(sent)) as archive:
        archive.extractall(folder, filter="data")
    return folder / Path(place.source).name


def locate(place: Place, sent: bytes | None) -> Path | None:
    """On a worker: the path to read; None where `data` says it already. Raises Absent, and UserError."""
    if sent is not None:
        return _kept(place, lambda folder: receive(sent, place, folder))
    if place.data in CLIPS:
        return None
    if is_remote(place.data):
        return _kept(place, lambda folder: download(place.data, folder))
    path = Path(place.source)
    if place.mark and mark_of(path) != place.mark:
        raise Absent(place.source)
    return path


def scratch() -> Path:
    """The folder of this process for what it need not keep. What processes that were killed left is removed."""
    if not _own:
        root = Path(tempfile.gettempdir())
        for old in root.glob("hnerv-fleet-*"):
            number = re.fullmatch(r"hnerv-fleet-(\d+)-\w+", old.name)
            if number and not _alive(int(number[1])):
                shutil.rmtree(old, ignore_errors=True)
        _own.append(Path(tempfile.mkdtemp(prefix=f"hnerv-fleet-{os.getpid()}-")))
        atexit.register(shutil.rmtree, _own[0], ignore_errors=True)
    return _own[0]


_own: list[Path] = []
_videos: dict[Place, Path] = {}


def _kept(place: Place, make) -> Path:
    """The last video that was fetched stays: the next segment may be of the same one."""
    if place not in _videos:
        _videos.clear()
        folder = scratch() / "video"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _videos[place] = make(folder)
    return _videos[place]


def _alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
