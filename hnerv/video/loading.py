"""A name or path -> the frames to train on, cropped and resized while they are read.

Legend: N frames, H W rows and columns of the result, in pixels.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import math
import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hnerv.errors import UserError
from hnerv.files import cache_folder
from hnerv.geometry import CropPlan, plan_crop
from hnerv.video.clips import CLIPS, clip_path
from hnerv.video.images import SUFFIXES, common_size, list_images, read_images
from hnerv.video.probing import Probe, probe_video
from hnerv.video.reading import DecordFailed, SeekFailed, read_decord, read_pyav, read_pyav_from
from hnerv.video.remote import fetched, is_remote

_log = logging.getLogger("hnerv")
_FOLDER_FPS = 24.0
_MORE = 1_000_000_000
SEEK_FROM = 256
"""First frame from which on a file is not decoded from its start: below, that costs little and finds its damage."""
IN_MEMORY = 4 << 30
"""Bytes of frames; what takes more, or a quarter of this machine's memory, lies in a file under the cache."""


class Video(NamedTuple):
    """Frames, in memory or mapped from a file, and where they came from."""

    frames: Tensor
    """(N, 3, H, W) uint8 RGB, after crop and resize. Pixels as stored: a pixel aspect ratio is not applied."""
    fps: float
    """Frames per second of the source, whatever --frames picks; the mean rate where it varies, 24 for images."""
    name: str
    """The clip's name, the file's stem, or the folder's name."""
    source: str
    """Resolved path."""
    reader: str
    """'decord', 'pyav' or 'images'."""
    crop: CropPlan
    digest: str
    """sha256, hexadecimal, of the frames' shape and bytes: names the content in caches."""


class _Miscounted(Exception):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class _Reader(NamedTuple):
    name: str
    frames: Callable[[int], Iterator[np.ndarray]]
    """Yields (H, W, 3) uint8 RGB from the position given on, 0 unless `seeks`."""
    seeks: bool


class _Source(NamedTuple):
    path: Path
    name: str
    size: tuple[int, int]
    count: int
    fps: float
    cut: bool
    trouble: str
    """Why the preferred reader is not among `readers`, '' where it is."""
    readers: list[_Reader]
    """In order of preference; one that raises DecordFailed hands over to the next."""


def load_video(
    data: str, *, crop: str = "", resize: str = "", frames: str = "", multiple: tuple[int, int] = (1, 1)
) -> Video:
    """Read a video file, a folder of PNG or JPEG images, or a clip of `hnerv.video.clips.CLIPS`.

    A clip's name wins over a file of the same name, which is written ./bunny. `crop` and `resize` are as in
    `hnerv.geometry.plan_crop`; resizing is bicubic with antialias on the cropped frame, rounded to 8 bits. `frames` is
    a Python slice 'start:stop:step' of positions in the source, empty for all. Phone videos come out upright.
    Frames too many for memory lie in a file without a name, as in `IN_MEMORY`. An address (s3://, https://) is fetched
    for the time it is read.
    Raises UserError when the source is missing, no video, cut short, damaged, of changing size or too large for memory
    and the disk of the cache, when its images differ in size or are transparent, and for a crop, size or range that
    does not fit. A file cut short or damaged is read up to there when `frames` asks for no more.
    """
    if is_remote(data):
        with fetched(data) as path:
            return load_video(
                str(path), crop=crop, resize=resize, frames=frames, multiple=multiple
            )._replace(source=data)  # fmt: skip
    slice_positions(frames, 0)
    source = _open_source(data)
    plan = plan_crop(source.size, crop, resize, multiple)
    _check_whole(source, frames)
    pixels, reader = _read_with_first_able(source, plan, frames)
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    for frame in pixels:
        digest.update(frame.contiguous().numpy().data)
    return Video(pixels, source.fps, source.name, str(source.path), reader, plan, digest.hexdigest())


def frame_count(data: str, frames: str = "") -> int:
    """Frames that a source promises. Raises UserError where it is cut short before those that `frames` chooses."""
    source = _open_source(data)
    _check_whole(source, frames)
    return source.count


def seeks(data: str) -> bool:
    """Whether a source is read from its middle without decoding all that is before. Raises UserError."""
    return _open_source(data).readers[-1].seeks


def read_frames(data: str, chosen: range) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) uint8 RGB at ascending positions of a source, one at a time. Raises UserError.

    For what does not need all of them in memory.
    """
    reader, done = _open_source(data).readers[-1], 0
    if reader.seeks and chosen.start >= SEEK_FROM:
        with contextlib.suppress(SeekFailed):
            for frame in itertools.islice(reader.frames(chosen.start), 0, chosen.stop - chosen.start, chosen.step):
                yield frame
                done += 1
            return
    left = chosen[done:]
    yield from itertools.islice(reader.frames(0), left.start, left.stop, left.step)


def _check_whole(source: _Source, frames: str) -> None:
    if source.cut and not _ends_before(frames, source.count):
        raise UserError(
            f"{source.path} is truncated; only {source.count} frames can be read: pass --frames 0:{source.count}, or "
            "copy or download it again"
        )


def _open_source(data: str) -> _Source:
    if data in CLIPS:
        return _file_source(clip_path(data), data)
    if is_remote(data):
        raise UserError(
            f"{data} is an address, and each segment would fetch the full video: download it, or use hnerv fleet"
        )
    path = _resolved(data)
    if path is None:
        raise UserError(
            f"--data {data[:300]!r} is not a file, a folder or one of the clips {', '.join(CLIPS)}: check the path"
        )
    if path.is_dir():
        return _image_source(path, path.name, list_images(path))
    if path.suffix.lower() in SUFFIXES:
        return _image_source(path, path.stem, [path])
    return _file_source(path, path.stem)


def _resolved(data: str) -> Path | None:
    """The path that is there, None where there is none: names too long, of no user or with a zero byte among them."""
    try:
        path = Path(data).expanduser().resolve()
        return path if data and path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _image_source(path: Path, name: str, images: list[Path]) -> _Source:
    reader = _Reader("images", lambda start: read_images(images[start:]), True)
    return _Source(path, name, common_size(images), len(images), _FOLDER_FPS, False, "", [reader])


def _file_source(path: Path, name: str) -> _Source:
    probe = _probe(path, *_state_of(path))
    readers = [
        _Reader("decord", lambda start: read_decord(probe), False),
        _Reader("pyav", lambda start: read_pyav_from(probe, start) if start else read_pyav(probe), bool(probe.index)),
    ]
    trouble = probe.trouble
    if not trouble and probe.count * math.prod(probe.size) * 3 > _room():
        trouble = "decord decodes ahead without limit, and its frames do not all fit into memory"
    if trouble:
        del readers[0]
    return _Source(path, name, probe.size, probe.count, probe.fps, probe.cut, trouble, readers)


@functools.lru_cache(maxsize=4)
def _probe(path: Path, size: int, changed: int) -> Probe:
    """Of a file of this size and time of change: a long one is read through once for all its segments."""
    return probe_video(path)


def _state_of(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _say_pyav(path: Path, reason: str) -> None:
    _log.warning("%s is read with PyAV: %s", path.name, reason)


def _read_with_first_able(source: _Source, plan: CropPlan, frames: str) -> tuple[Tensor, str]:
    start = min(slice_positions(frames, source.count), default=0)
    if start >= SEEK_FROM and source.readers[-1].seeks:
        with contextlib.suppress(SeekFailed):
            return _fill(source.readers[-1].frames(start), source.count, frames, plan, start), source.readers[-1].name
    if source.trouble:
        _say_pyav(source.path, source.trouble)
    for reader in source.readers:
        try:
            return _read(source, reader, plan, frames), reader.name
        except DecordFailed as failure:
            _say_pyav(source.path, str(failure))
    raise AssertionError("the last reader raises no DecordFailed")


def _read(source: _Source, reader: _Reader, plan: CropPlan, frames: str) -> Tensor:
    try:
        return _fill(reader.frames(0), source.count, frames, plan)
    except _Miscounted as found:
        count = found.count
    if not count:
        raise UserError(f"{source.path} has no frames that can be decoded: pass another video to --data")
    _log.warning("%s has %d frames, but declares %d", source.path.name, count, source.count)
    return _fill(reader.frames(0), count, frames, plan)


def _fill(stream: Iterable[np.ndarray], count: int, frames: str, plan: CropPlan, start: int = 0) -> Tensor:
    """Frames chosen out of `count`, the stream beginning at `start` -> (N, 3, H, W) uint8.

    Raises _Miscounted with the true count.
    """
    chosen = slice_positions(frames, count)
    if not chosen:
        raise UserError(f"--frames {frames!r} selects none of the {count} frames: pass a wider start:stop:step")
    result = _allocate(len(chosen), plan)
    last = max(chosen)
    to_end = not _ends_before(frames, count)
    seen = 0
    for position, frame in enumerate(stream, start):
        seen = position + 1
        if position in chosen and position < count:
            result[chosen.index(position)] = _fit(frame, plan)
        if position == last and not to_end:
            return result
    if seen != count:
        raise _Miscounted(seen)
    return result


def _fit(frame: np.ndarray, plan: CropPlan) -> Tensor:
    """(h, w, 3) uint8 -> (3, H, W) uint8, cropped, then resized where the plan changes the size."""
    region = frame[plan.top : plan.top + plan.height, plan.left : plan.left + plan.width]
    pixels = torch.from_numpy(np.ascontiguousarray(region)).permute(2, 0, 1)
    size = (plan.out_height, plan.out_width)
    if size == (plan.height, plan.width):
        return pixels
    pixels = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _allocate(count: int, plan: CropPlan) -> Tensor:
    """(N, 3, H, W) uint8, channels last in memory, as the readers give them. Raises UserError."""
    size = count, plan.out_height, plan.out_width, 3
    needed = math.prod(size)
    if needed <= _room():
        return torch.empty(size, dtype=torch.uint8).permute(0, 3, 1, 2)
    try:
        return _on_disk(needed).view(size).permute(0, 3, 1, 2)
    except OSError as error:
        raise UserError(
            f"{count} frames of {plan.out_height}x{plan.out_width} take {needed / 1e9:.1f} GB, which {cache_folder()} "
            f"cannot hold ({error.strerror}): select fewer with --frames, make them smaller with --resize, or set "
            "HNERV_CACHE to a folder on a larger disk"
        ) from error


def _on_disk(size: int) -> Tensor:
    """(size,) uint8 in a file of the cache that has no name: the system frees it, however the process ends.

    What was read of it stays in memory while there is room, and is no obstacle where there is none. Raises OSError.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that fills up later would kill the process
        else:
            file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def _room() -> int:
    """Bytes of frames that may be held in memory."""
    return min(IN_MEMORY, memory_bytes() // 4)


def memory_bytes() -> int:
    """Of this machine; no bound where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 62


def slice_positions(frames: str, count: int) -> range:
    """Positions that --frames START:STOP:STEP picks out of `count`, '' for all. Raises UserError if malformed."""
    match = re.fullmatch(r"(-?\d{1,18})?:(-?\d{1,18})?(?::(-?\d{1,18})?)?", frames, flags=re.ASCII) if frames else None
    if frames and (not match or int(match[3] or 1) == 0):
        raise UserError(f"--frames {frames!r} must be start:stop:step with a step other than 0, such as 0:100 or ::2")
    parts = [int(text) if text else None for text in match.groups()] if match else [None]
    return range(count)[slice(*parts)]


def _ends_before(frames: str, count: int) -> bool:
    """Whether the slice picks the same positions however many frames follow the first `count`."""
    return slice_positions(frames, count) == slice_positions(frames, count + _MORE)
