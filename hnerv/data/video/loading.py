"""A name or path -> the frames to train on, cropped and resized while they are read.

Legend: N frames, H W rows and columns of the result, in pixels.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hnerv.errors import UserError
from hnerv.geometry import CropPlan, plan_crop
from hnerv.timeline import Timeline, exact_rate, rate_of
from hnerv.data.video import images
from hnerv.data.video.clips import CLIPS, clip_path
from hnerv.data.video.colour import HDR, UNTAGGED, Display
from hnerv.data.video.memory import empty_frames, room
from hnerv.data.video.probing import Medium, Probe, probe_video
from hnerv.data.video.raw import SUFFIX, raw_medium
from hnerv.data.video.reading import DecordFailed, SeekFailed, decoded, read_decord, read_pyav
from hnerv.data.video.remote import fetched, is_remote
from hnerv.data.video.split import ends_before, slice_positions

if TYPE_CHECKING:
    from hnerv.data.video.reading import Shown

_log = logging.getLogger("hnerv")
SEEK_FROM = 256
"""First frame from which on a file is not decoded from its start: below, that costs little and finds its damage."""
_FINEST_ASPECT = 10_000


class Video(NamedTuple):
    """Frames, in memory or mapped from a file, and where they came from."""

    frames: Tensor
    """(N, 3, H, W) uint8 RGB, after crop and resize. Pixels as stored: aspect ratio and transfer are not applied."""
    fps: float
    """Frames per second of the source, whatever --frames picks; the mean rate where it varies."""
    name: str
    """The clip's name, the file's stem, or the folder's name."""
    source: str
    """Resolved path."""
    reader: str
    """'pyav', 'decord' or 'images'."""
    crop: CropPlan
    digest: str
    """sha256, hexadecimal, of the frames' shape and bytes: names the content in caches."""
    times: Timeline | None = None
    """When each frame is shown in the source; None where frame k is at k / fps."""
    display: Display = UNTAGGED
    """Colour tags and pixel aspect ratio, after crop and resize."""
    raw_video: str = ""
    """Geometry of raw video, as --raw-video takes it."""


class _Source(NamedTuple):
    name: str
    probe: Probe
    read: Callable[[int], Iterator[Shown]]
    """From the position given on, 0 unless `seeks`."""
    seeks: bool
    reader: str = "images"


def load_video(
    data: str,
    *,
    crop: str = "",
    resize: str = "",
    frames: str = "",
    multiple: tuple[int, int] = (1, 1),
    raw_video: str = "",
    fps: float = 0.0,
) -> Video:
    """Read a video file, a folder of images, or a clip of `hnerv.data.video.clips.CLIPS`.

    A clip's name wins over a file of the same name, which is written ./bunny. `crop` and `resize` are as in
    `hnerv.geometry.plan_crop`; resizing is bicubic with antialias on the cropped frame, rounded to 8 bits. `frames` is
    a Python slice 'start:stop:step' of positions in the source, empty for all. `raw_video` is the geometry of a raw
    file (`hnerv.data.video.raw`), `fps` the rate of a source without time stamps (0: what it says, else 24). Phone videos
    come out upright. Frames too many for memory lie in a file (`hnerv.data.video.memory`). An address (s3://, https://) is
    fetched for the time it is read.
    Raises UserError when the source is missing, no video, cut short, damaged, of changing size or too large for memory
    and the disk of the cache, when its images differ in size or are transparent, and for a crop, size, rate or range
    that does not fit. A file cut short or damaged is read up to there when `frames` asks for no more.
    """
    if is_remote(data):
        with fetched(data) as path:
            return load_video(
                str(path), crop=crop, resize=resize, frames=frames, multiple=multiple, raw_video=raw_video, fps=fps
            )._replace(source=data)  # fmt: skip
    slice_positions(frames, 0)
    source = _open_source(data, raw_video, exactly=bool(frames))
    probe, path = source.probe, source.probe.medium.path
    if fps:
        if probe.timed:
            raise UserError(
                f"{path} has time stamps, of {float(probe.rate):.6g} frames per second: remove --fps, which is "
                "for image folders, raw video and streams without time stamps"
            )
        source = source._replace(probe=probe._replace(rate=exact_rate(fps)))
    if probe.display.transfer in HDR:
        _warn_hdr(path, HDR[probe.display.transfer])
    plan = plan_crop(probe.size, crop, resize, multiple)
    _check_whole(probe, frames)
    source, pixels = _read(source, plan, frames)
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    for frame in pixels:
        digest.update(frame.contiguous().numpy().data)
    times = source.probe.times_of(slice_positions(frames, source.probe.count))
    return Video(
        pixels, float(source.probe.rate), source.name, str(path), source.reader, plan, digest.hexdigest(), times,
        _resized(probe.display, plan), ":".join(value for _, value in probe.medium.raw),
    )  # fmt: skip


def frame_count(data: str, frames: str = "", raw_video: str = "") -> int:
    """Frames that can be decoded. Raises UserError where a file is cut short before those that `frames` chooses."""
    probe = _open_source(data, raw_video, exactly=True).probe
    _check_whole(probe, frames)
    return probe.count


def seeks(data: str, raw_video: str = "") -> bool:
    """Whether a source is read from its middle without decoding all that is before. Raises UserError."""
    return _open_source(data, raw_video).seeks


def read_frames(data: str, chosen: range, raw_video: str = "") -> Iterator[np.ndarray]:
    """The frames (H, W, 3) uint8 RGB at ascending positions of a source, one in memory at a time. Raises UserError."""
    for position, _, frame in _read_from(_open_source(data, raw_video, exactly=True), chosen.start) if chosen else ():
        if position in chosen:
            yield frame
        if position >= chosen[-1]:
            return


def _check_whole(probe: Probe, frames: str) -> None:
    path, count = probe.medium.path, probe.count
    cut = f"{path} is truncated; only {count} frames can be read: pass --frames 0:{count}, or copy or download it again"
    if (probe.cut or probe.damage) and not ends_before(frames, count):
        raise UserError(probe.damage or cut)


def _open_source(data: str, raw_video: str = "", exactly: bool = False) -> _Source:
    """With `exactly`, a file is decoded once if its packets do not determine the number of frames."""
    if data in CLIPS and not raw_video:
        return _file_source(Medium(clip_path(data)), data, exactly)
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
        if raw_video:
            raise UserError(f"--raw-video is for a file, but {path} is a folder: remove it, or pass the file")
        return _image_source(path, path.name, images.list_images(path))
    if raw_video or path.suffix.lower() == SUFFIX:
        return _file_source(raw_medium(path, raw_video), path.stem, exactly)
    if path.suffix.lower() not in images.SUFFIXES:
        return _file_source(Medium(path), path.stem, exactly)
    return _animation_source(path) if images.frame_total(path) > 1 else _image_source(path, path.stem, [path])


def _resolved(data: str) -> Path | None:
    """A file or folder that is there, else None: names too long, of no user or with a zero byte, pipes and devices."""
    try:
        path = Path(data).expanduser().resolve()
        return path if data and (path.is_file() or path.is_dir()) else None
    except (OSError, RuntimeError, ValueError):
        return None


def _image_source(path: Path, name: str, files: list[Path]) -> _Source:
    probe = Probe(Medium(path), images.common_size(files), len(files))
    return _Source(name, probe, lambda start: ((None, image) for image in images.read_images(files[start:])), True)


def _animation_source(path: Path) -> _Source:
    *stamps, end = images.animation_times(path)
    times = Timeline(Fraction(1, 1000), tuple(stamps))
    rate, constant = rate_of(times, end - stamps[-1])
    probe = Probe(Medium(path), images.common_size([path]), len(stamps), times, rate, constant, timed=True)
    return _Source(path.stem, probe, lambda start: zip(stamps, images.read_animation(path), strict=True), False)


def _file_source(medium: Medium, name: str, exactly: bool) -> _Source:
    state = medium.path.stat()
    probe = _probe(medium, state.st_size, state.st_mtime_ns)
    if not probe.exact and (exactly or probe.cut):
        probe = _exact_probe(medium, state.st_size, state.st_mtime_ns)
    return _Source(name, probe, functools.partial(read_pyav, probe), bool(probe.keys), "pyav")


@functools.lru_cache(maxsize=4)
def _probe(medium: Medium, size: int, changed: int) -> Probe:
    """Of a file of this size and time of change: a long one is read through once for all its segments."""
    return probe_video(medium)


@functools.lru_cache(maxsize=4)
def _exact_probe(medium: Medium, size: int, changed: int) -> Probe:
    return decoded(_probe(medium, size, changed))


@functools.lru_cache
def _warn_hdr(path: Path, kind: str) -> None:
    """Log once per file."""
    _log.warning(
        "%s is HDR (%s): its values are read as stored, in 8 bits and without tone mapping, so PSNR and CLIP refer to "
        "them; the file and hnerv decode keep its colour tags", path.name, kind,
    )  # fmt: skip


def _resized(display: Display, plan: CropPlan) -> Display:
    """A pixel's shape after the crop was resized."""
    aspect = Fraction(display.wide * plan.width * plan.out_height, display.high * plan.height * plan.out_width)
    aspect = min(max(aspect, Fraction(1, _FINEST_ASPECT)), _FINEST_ASPECT).limit_denominator(_FINEST_ASPECT)
    return display._replace(wide=aspect.numerator, high=aspect.denominator)


def _read(source: _Source, plan: CropPlan, frames: str) -> tuple[_Source, Tensor]:
    """The frames chosen, and the source as it was found to be when it was decoded."""
    probe = source.probe
    fits = probe.count * math.prod(probe.size) * 3 <= room()  # decord decodes ahead without limit
    if os.environ.get("HNERV_READER") == "decord" and probe.for_decord and fits:
        by_decord = source._replace(read=lambda start: read_decord(probe), seeks=False, reader="decord")
        try:
            return by_decord, _fill(by_decord, plan, frames)[0]
        except DecordFailed as failure:
            _log.warning("%s is read with PyAV: %s", probe.medium.path.name, failure)
    pixels, stamps = _fill(source, plan, frames)
    needed = max(slice_positions(frames, probe.count)) + 1 if ends_before(frames, probe.count) else probe.count
    if probe.exact and max(stamps) + 1 == needed:
        return source, pixels
    found = decoded(probe) if frames else probe.as_decoded(list(stamps.values()))
    _check_whole(found, frames)
    if probe.exact:
        _log.warning("%s has %d frames, but declares %d", probe.medium.path.name, found.count, probe.count)
    source = source._replace(probe=found, seeks=False)
    if frames or found.count > len(pixels):
        pixels, _ = _fill(source, plan, frames)
    return source, pixels[: found.count]


def _fill(source: _Source, plan: CropPlan, frames: str) -> tuple[Tensor, dict[int, int | None]]:
    """The frames chosen (N, 3, H, W) uint8, and {position: time stamp} of all that were read for them."""
    count = source.probe.count
    chosen = slice_positions(frames, count)
    if not chosen:
        raise UserError(f"--frames {frames!r} selects none of the {count} frames: pass a wider start:stop:step")
    result, stamps = empty_frames(len(chosen), plan.out_height, plan.out_width), {}
    last = max(chosen) if ends_before(frames, count) else None
    for position, stamp, frame in _read_from(source, min(chosen)):
        stamps[position] = stamp
        if position in chosen and position < count:
            result[chosen.index(position)] = _fit(frame, plan)
        if position == last:
            break
    return result, stamps


def _read_from(source: _Source, start: int) -> Iterator[tuple[int, int | None, np.ndarray]]:
    """Position, time stamp and pixels of each frame from `start` on at least, once."""
    done = 0
    if source.seeks and start >= SEEK_FROM:
        with contextlib.suppress(SeekFailed):
            for done, shown in enumerate(source.read(start), start + 1):
                yield done - 1, *shown
            return
    for position, shown in enumerate(source.read(0)):
        if position >= done:
            yield position, *shown


def _fit(frame: np.ndarray, plan: CropPlan) -> Tensor:
    """(h, w, 3) uint8 -> (3, H, W) uint8, cropped, then resized where the plan changes the size."""
    region = frame[plan.top : plan.top + plan.height, plan.left : plan.left + plan.width]
    pixels = torch.from_numpy(np.ascontiguousarray(region)).permute(2, 0, 1)
    size = (plan.out_height, plan.out_width)
    if size == (plan.height, plan.width):
        return pixels
    pixels = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
    return pixels.round_().clamp_(0, 255).to(torch.uint8)
