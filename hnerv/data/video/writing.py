"""Frames, one at a time, into a video file or a folder of PNG; memory does not grow with their number.

Legend: H W pixels of a frame.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from hnerv.errors import UserError
from hnerv.files import check_place, replacing
from hnerv.timeline import Timeline
from hnerv.data.video.colour import UNTAGGED, Display, tags_of, to_stored


class FrameWriter(Protocol):
    """What `open_writer` hands out."""

    def write(self, frame: np.ndarray) -> None:
        """frame (H, W, 3) uint8 RGB, the next one. Raises UserError when it cannot be stored."""


class _Coding(NamedTuple):
    container: str
    codec: str
    pix_fmt: str
    options: dict[str, str]
    even: bool
    """Height and width must be even."""


_H264 = {"crf": "10", "preset": "medium"}
FORMATS = {
    ".mp4": _Coding("mp4", "libx264", "yuv420p", _H264, even=True),
    ".mov": _Coding("mov", "libx264", "yuv420p", _H264, even=True),
    ".mkv": _Coding("matroska", "ffv1", "bgr0", {"level": "3", "slicecrc": "1"}, even=False),
}
"""Suffix -> how it is written: H.264 to look at, lossless FFV1 to measure on."""


def check_target(path: Path, size: tuple[int, int], overwrite: bool = False) -> None:
    """Raises UserError where `open_writer` could not write frames of `size` (H, W): to be asked before they are made.

    A suffix that is not known, an odd size for H.264, a file or frames that are there unless `overwrite`, a folder
    with other files, a place that may not be written.
    """
    if _is_folder(path):
        _check_folder(path, overwrite)
    else:
        _check_file(path, size)
    if path.is_file() and not overwrite:
        raise UserError(f"{path} already exists: choose another name, or pass --overwrite")
    check_place(path)


@contextlib.contextmanager
def open_writer(
    path: Path,
    size: tuple[int, int],
    times: Timeline,
    *,
    display: Display = UNTAGGED,
    overwrite: bool = False,
    numbers: Sequence[int] | None = None,
) -> Iterator[FrameWriter]:
    """A writer of frames of `size` (H, W), each shown at its time of `times` from the first, to be used as a context.

    .mp4 and .mov become H.264 (4:2:0, lossy, even sizes), .mkv lossless FFV1; no suffix, or a folder that is there,
    becomes PNG images 00000.png, 00001.png, ..., or of these `numbers`, which store no rate. With `overwrite` they take
    the place of what was there: of a file, or of all such images. A file gets the tags of `display`, and 4:2:0 its
    matrix and range. All of it is moved to its place at the end of a block that succeeds; a block that fails leaves
    what was there. Raises UserError as `check_target` does, for a disk that fails, and when no frame came.
    """
    check_target(path, size, overwrite)
    folder = _is_folder(path)
    with _folder_writer(path, size, numbers) if folder else _file_writer(path, size, times, display) as writer:
        yield writer


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _check_folder(path: Path, overwrite: bool) -> None:
    """Hidden files are nobody's frames: they are let be."""
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{path} is a file, but a name without a suffix means a folder of PNG images: choose a name that ends in "
            f"{', '.join(FORMATS)}"
        )
    others = [name for name in _names(path) if not (name.startswith(".") or _is_ours(name))]
    if others:
        raise UserError(
            f"{path} contains files other than frames, such as {sorted(others)[0]}: choose a new folder, or a video "
            f"file that ends in {', '.join(FORMATS)}"
        )

    if not overwrite and any(_is_ours(name) for name in _names(path)):
        raise UserError(
            f"{path} already contains frames: choose a new folder, or pass --overwrite, which removes them all"
        )


def _check_file(path: Path, size: tuple[int, int]) -> None:
    coding = FORMATS.get(path.suffix.lower())
    if coding is None:
        raise UserError(
            f"{path.name} cannot be written; {path.suffix} is not supported: choose {', '.join(FORMATS)}, or a name "
            "without a suffix for a folder of PNG images"
        )
    if coding.even and (size[0] % 2 or size[1] % 2):
        raise UserError(
            f"{path.suffix} (H.264) needs even sizes, but the frames are {size[0]}x{size[1]}: choose .mkv, or a folder"
        )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): change its permissions") from error


def _is_ours(name: str) -> bool:
    return bool(re.fullmatch(r"\d{5,}\.png", name))


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """What the disk or FFmpeg says inside the block becomes one line; what the caller's own code raises must not."""
    import av

    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        cause = error.strerror or str(error)
        raise UserError(f"{path} cannot be written ({cause}): free disk space, or choose another location") from error


class _Frames:
    """Counts and checks what is written; `store` keeps one frame."""

    def __init__(self, path: Path, size: tuple[int, int], store: Callable[[int, np.ndarray], None]) -> None:
        self.count = 0
        self._path, self._size, self._store = path, size, store

    def write(self, frame: np.ndarray) -> None:
        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, not uint8 {(*self._size, 3)}")
        with _storing(self._path):
            self._store(self.count, frame)
        self.count += 1

    def check_some(self) -> None:
        if not self.count:
            raise UserError(f"{self._path} would contain no frames: select at least one")


@contextlib.contextmanager
def _file_writer(path: Path, size: tuple[int, int], times: Timeline, display: Display) -> Iterator[_Frames]:
    import av

    coding = FORMATS[path.suffix.lower()]
    with _replacing(path) as file:
        container = av.open(file, "w", format=coding.container)
        try:
            stream = _add_stream(container, coding, size, times, display)

            def store(number: int, frame: np.ndarray) -> None:
                picture = to_stored(frame, coding.pix_fmt, display)
                picture.pts, picture.time_base = abs(times.stamps[number] - times.stamps[0]), times.tick
                container.mux(stream.encode(picture))

            frames = _Frames(path, size, store)
            yield frames
            frames.check_some()
            with _storing(path):
                container.mux(stream.encode())
                container.close()
        except BaseException:
            with contextlib.suppress(Exception):
                container.close()
            raise


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """`replacing`, whose own first and last steps fail in one line; an error of the block stays what it is."""
    target = replacing(path)
    with _storing(path):
        file = target.__enter__()
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk fails a second time when the file is closed
            target.__exit__(*sys.exc_info())
        raise
    with _storing(path):
        target.__exit__(None, None, None)


def _add_stream(container, coding: _Coding, size: tuple[int, int], times: Timeline, display: Display):
    rate = 1 / (times.step * times.tick)  # also says how long the last frame is shown
    stream = container.add_stream(coding.codec, rate=rate, options=coding.options)
    stream.height, stream.width = size
    stream.pix_fmt = coding.pix_fmt
    context = stream.codec_context
    context.time_base = times.tick
    context.color_primaries, context.color_trc = display.primaries, display.transfer
    context.sample_aspect_ratio = Fraction(display.wide, display.high)
    context.colorspace, context.color_range = tags_of(display, coding.pix_fmt)
    return stream


@contextlib.contextmanager
def _folder_writer(path: Path, size: tuple[int, int], numbers: Sequence[int] | None) -> Iterator[_Frames]:
    """Images wait in a hidden folder inside `path`, so that moving them to their place is a rename and cannot fill."""
    from PIL import Image

    waiting = path / f".{os.getpid()}.tmp"
    there = path.is_dir()
    try:
        with _storing(path):
            waiting.mkdir(parents=True, exist_ok=True)
        names = range(1 << 31) if numbers is None else numbers
        frames = _Frames(path, size, lambda i, frame: Image.fromarray(frame).save(waiting / f"{names[i]:05d}.png"))
        yield frames
        frames.check_some()
        with _storing(path):
            for name in filter(_is_ours, os.listdir(path)):
                (path / name).unlink()
            for name in sorted(os.listdir(waiting)):
                os.replace(waiting / name, path / name)
            waiting.rmdir()
    except BaseException:
        shutil.rmtree(waiting, ignore_errors=True)
        if not there:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
