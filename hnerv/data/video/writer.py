"""Write frames, one at a time, to a video file or a folder of PNG images.

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
from typing import BinaryIO, NamedTuple

import numpy as np

from hnerv.data.video.colour import UNTAGGED, Display, coded_tags, to_coded
from hnerv.errors import UserError
from hnerv.files import check_place, replacing
from hnerv.timeline import Timeline


class FrameWriter:
    """Checks and counts the frames that are written; created by `open_writer`."""

    def __init__(self, path: Path, size: tuple[int, int], store: Callable[[int, np.ndarray], None]) -> None:
        self.path, self.size, self.count = path, size, 0
        self._store = store

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3) uint8 RGB. Raises UserError if it cannot be stored."""
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {frame.dtype} {frame.shape}, not uint8 {(*self.size, 3)}")
        with _disk_errors(self.path):
            self._store(self.count, frame)
        self.count += 1


class _Format(NamedTuple):
    container: str
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = (("crf", "10"), ("preset", "medium"))


FORMATS = {
    ".mp4": _Format("mp4"),
    ".mov": _Format("mov"),
    ".mkv": _Format("matroska", "ffv1", "bgr0", (("level", "3"), ("slicecrc", "1"))),
}
"""H.264 for viewing, lossless FFV1 for measurements."""


def check_target(path: Path, size: tuple[int, int], overwrite: bool = False) -> None:
    """Raises UserError if `open_writer` would refuse this path and size (H, W): for a check before decoding starts."""
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
    """Context of a writer of frames of `size` (H, W), shown at `times`, counted from the first.

    .mp4 and .mov are H.264 (4:2:0, lossy, even sizes), .mkv is lossless FFV1. An existing folder, or a path without
    suffix, becomes PNG images 00000.png, 00001.png, ..., or with these `numbers`; it has no times. Files are tagged
    with `display`. With `overwrite`, the output replaces an existing file, or all numbered images of a folder.

    The output appears when the block succeeds; if it fails, nothing changes. Raises UserError as `check_target`, for
    disk errors, and if no frame was written.
    """
    check_target(path, size, overwrite)
    folder = _is_folder(path)
    with _folder_writer(path, size, numbers) if folder else _file_writer(path, size, times, display) as writer:
        yield writer
        if not writer.count:
            raise UserError(f"{path} would contain no frames: select at least one")


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _check_folder(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{path} is a file, but a name without a suffix means a folder of PNG images: choose a name that ends in "
            f"{', '.join(FORMATS)}"
        )
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")] if path.is_dir() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change its permissions") from error
    if others := sorted(name for name in names if not _is_frame(name)):
        raise UserError(
            f"{path} contains files other than frames, such as {others[0]}: choose a new folder, or a video "
            f"file that ends in {', '.join(FORMATS)}"
        )
    if names and not overwrite:
        raise UserError(
            f"{path} already contains frames: choose a new folder, or pass --overwrite, which removes them all"
        )


def _is_frame(name: str) -> bool:
    return bool(re.fullmatch(r"\d{5,}\.png", name))


def _check_file(path: Path, size: tuple[int, int]) -> None:
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise UserError(
            f"{path.name} cannot be written; {path.suffix} is not supported: choose {', '.join(FORMATS)}, or a name "
            "without a suffix for a folder of PNG images"
        )
    if form.pix_fmt == "yuv420p" and (size[0] % 2 or size[1] % 2):
        raise UserError(
            f"{path.suffix} (H.264) needs even sizes, but the frames are {size[0]}x{size[1]}: choose .mkv, or a folder"
        )


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Convert errors of the disk and of FFmpeg to UserError. Never wraps a block of the caller."""
    import av

    try:
        yield
    except (OSError, av.error.FFmpegError) as error:
        cause = error.strerror or str(error)
        raise UserError(f"{path} cannot be written ({cause}): free disk space, or choose another location") from error


@contextlib.contextmanager
def _file_writer(path: Path, size: tuple[int, int], times: Timeline, display: Display) -> Iterator[FrameWriter]:
    import av

    form = FORMATS[path.suffix.lower()]
    with _replacing(path) as file:
        container = av.open(file, "w", format=form.container)
        try:
            # The rate of the stream tells the muxer how long the last frame is shown, too.
            rate = 1 / (times.median_step * times.tick)
            stream = container.add_stream(form.codec, rate=rate, options=dict(form.options))
            stream.height, stream.width = size
            stream.pix_fmt = form.pix_fmt
            context = stream.codec_context
            context.time_base = times.tick
            context.color_primaries, context.color_trc = display.primaries, display.transfer
            context.sample_aspect_ratio = Fraction(display.wide, display.high)
            context.colorspace, context.color_range = coded_tags(display, form.pix_fmt)

            def store(number: int, frame: np.ndarray) -> None:
                picture = to_coded(frame, form.pix_fmt, display)
                # A slice with a negative step gives descending times: their distances are kept.
                picture.pts, picture.time_base = abs(times.stamps[number] - times.stamps[0]), times.tick
                container.mux(stream.encode(picture))

            yield FrameWriter(path, size, store)
            with _disk_errors(path):
                container.mux(stream.encode())
                container.close()
        except BaseException:
            with contextlib.suppress(Exception):
                container.close()
            raise


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """`replacing`, with `_disk_errors` for opening and closing the file, but not for the block."""
    target = replacing(path)
    with _disk_errors(path):
        file = target.__enter__()
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):  # closing a file on a full disk fails again
            target.__exit__(*sys.exc_info())
        raise
    with _disk_errors(path):
        target.__exit__(None, None, None)


@contextlib.contextmanager
def _folder_writer(path: Path, size: tuple[int, int], numbers: Sequence[int] | None) -> Iterator[FrameWriter]:
    """Images are stored in a hidden folder inside `path`: moving them is a rename, for which the disk has room."""
    from PIL import Image

    hidden, existed = path / f".{os.getpid()}.tmp", path.is_dir()
    names = range(1 << 31) if numbers is None else numbers
    try:
        with _disk_errors(path):
            hidden.mkdir(parents=True, exist_ok=True)
        yield FrameWriter(path, size, lambda k, frame: Image.fromarray(frame).save(hidden / f"{names[k]:05d}.png"))
        with _disk_errors(path):
            for name in filter(_is_frame, os.listdir(path)):
                (path / name).unlink()
            for name in sorted(os.listdir(hidden)):
                os.replace(hidden / name, path / name)
            hidden.rmdir()
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
