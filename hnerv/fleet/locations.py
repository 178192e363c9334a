"""Where a video is for the driver, and how a worker gets the same content: from its path, its address or the driver.

A worker that does not find the same content at the path reports this, and the driver sends the video.
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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hnerv.data.video import CLIPS, is_remote
from hnerv.data.video.images import list_images
from hnerv.data.video.sources import download
from hnerv.errors import UserError

MAX_SENT_BYTES = 4 << 30
"""Largest video that is sent through Ray: it is held in Ray's object store as one object."""
_END = 1 << 20


class VideoLocation(NamedTuple):
    """`data` as it was given, `source` as a run records it, a fingerprint of the content ('': not on the driver)."""

    data: str
    source: str
    fingerprint: str = ""


class VideoMissing(Exception):
    """The worker does not find the video that the driver sees."""


def driver_location(data: str) -> VideoLocation:
    """The video as the driver sees it. Raises UserError for a path that is invalid or cannot be read."""
    if data in CLIPS or is_remote(data):
        return VideoLocation(data, data)
    try:
        path = Path(data).expanduser().resolve()
        str(path).encode()  # Ray, config.json and FFmpeg take text; other bytes of a name are surrogates in it
    except UnicodeEncodeError as error:
        raise UserError(f"the path {data!r} is not valid UTF-8: rename it") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{data!r} is not a valid path ({error}): pass another") from error
    return VideoLocation(data, str(path), content_fingerprint(path))


def content_fingerprint(path: Path) -> str:
    """Hash of the size and both ends of a file, or of image names and sizes of a folder; '' if `path` does not exist.

    Raises UserError if it cannot be read.
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


def archive_video(location: VideoLocation) -> bytes:
    """The file, or the images of the folder, as a tar archive. Raises UserError if they are too large."""
    path = Path(location.source)
    files = list_images(path) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    if size > MAX_SENT_BYTES:
        raise UserError(
            f"{path} is missing on the worker, and its {size / 1e9:.1f} GB are too large to send: put it at the same "
            "path on all workers, or pass an address (s3://, https://)"
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
        for file in files:
            archive.add(file, f"{path.name}/{file.name}" if path.is_dir() else path.name, recursive=False)
    return buffer.getvalue()


def extract_video(archive: bytes, location: VideoLocation, folder: Path) -> Path:
    """Inverse of `archive_video`: the file or folder, extracted into `folder`."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        opened.extractall(folder, filter="data")
    return folder / Path(location.source).name


def worker_path(location: VideoLocation, archive: bytes | None) -> Path | None:
    """The path to read on a worker; None for a named clip. Raises VideoMissing, UserError.

    With an `archive`, VideoMissing is not raised.
    """
    if archive is not None:
        return _cached(location, lambda folder: extract_video(archive, location, folder))
    if location.data in CLIPS:
        return None
    if is_remote(location.data):
        return _cached(location, lambda folder: download(location.data, folder))
    path = Path(location.source)
    if location.fingerprint and content_fingerprint(path) != location.fingerprint:
        raise VideoMissing(location.source)
    return path


def scratch_folder() -> Path:
    """Temporary folder of this process. Folders left by killed processes are removed first."""
    if not _scratch:
        root = Path(tempfile.gettempdir())
        for old in root.glob("hnerv-fleet-*"):
            number = re.fullmatch(r"hnerv-fleet-(\d+)-\w+", old.name)
            if number and not _is_alive(int(number[1])):
                shutil.rmtree(old, ignore_errors=True)
        _scratch.append(Path(tempfile.mkdtemp(prefix=f"hnerv-fleet-{os.getpid()}-")))
        atexit.register(shutil.rmtree, _scratch[0], ignore_errors=True)
    return _scratch[0]


_scratch: list[Path] = []
_videos: dict[VideoLocation, Path] = {}


def _cached(location: VideoLocation, fetch: Callable[[Path], Path]) -> Path:
    """Keep the last fetched video: the next segment is often of the same one."""
    if location not in _videos:
        _videos.clear()
        folder = scratch_folder() / "video"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _videos[location] = fetch(folder)
    return _videos[location]


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
