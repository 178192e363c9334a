"""Load the frames to train on, cropped and resized while they are read, in memory or in a file mapped into it.

Legend: N frames, H W rows and columns of the result, in pixels.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hnerv.data.video.colour import HDR, UNTAGGED, Display
from hnerv.data.video.planes import NO_PLANES, SourcePlanes, source_planes
from hnerv.data.video.probe import Probe
from hnerv.data.video.readers import DecordFailed, probe_by_decoding, read_decord
from hnerv.data.video.sources import Source, open_source
from hnerv.data.video.split import ends_before, slice_positions
from hnerv.errors import UserError
from hnerv.files import cache_folder, memory_bytes
from hnerv.geometry import CropPlan, plan_crop
from hnerv.storage import is_remote
from hnerv.timeline import Timeline, exact_rate

_log = logging.getLogger("hnerv")
IN_MEMORY = 4 << 30
"""Bytes of frames held in memory, at most a quarter of the machine's; more lie in a file in the cache."""
_MAX_ASPECT = 10_000
"""Largest numerator and denominator of a pixel's aspect ratio."""


class Video(NamedTuple):
    """Frames with their origin and timing."""

    frames: Tensor
    """(N, 3, H, W) uint8 RGB, after crop and resize. Pixels as stored: aspect ratio and transfer are not applied."""
    fps: float
    """Frames per second of the source, whatever --frames selects; the mean if it varies."""
    name: str
    """Name of the clip or folder, or stem of the file."""
    source: str
    """Resolved path, or the address."""
    reader: str
    """'pyav', 'decord' or 'images'."""
    crop: CropPlan
    digest: str
    """sha256, hexadecimal, of the frames' shape and bytes: identifies the content in caches."""
    times: Timeline | None = None
    """When each frame is shown in the source; None if frame k is shown at k / fps."""
    display: Display = UNTAGGED
    """Colour tags and pixel aspect ratio, after crop and resize."""
    raw_video: str = ""
    """Geometry of raw video, as --raw-video takes it."""
    planes: SourcePlanes = NO_PLANES
    """The planes of the frames in YUV 4:2:0, read from the source again when they are needed."""


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
    """Load a video file, a folder of images, a clip of `CLIPS`, or a file at an address (s3://, https://).

    `crop`, `resize` and `multiple` are as in `hnerv.geometry.plan_crop`; resizing is bicubic with antialiasing, on the
    cropped frame, rounded to 8 bits. `frames` is a Python slice 'start:stop:step' of positions in the source, empty for
    all. `raw_video` is the geometry of raw video (`hnerv.data.video.raw`). `fps` is the rate of a source without time
    stamps (0: the one it declares, else 24). Phone videos are turned upright.

    Raises UserError if the source is missing, not a video, truncated, damaged, transparent, of changing size, or too
    large for memory and disk, or if crop, size, rate or slice do not fit it. A truncated or damaged file is read if
    `frames` ends before the damage.
    """
    slice_positions(frames, 0)  # refuse a malformed slice before anything is decoded
    source = open_source(data, raw_video, exact=bool(frames))
    probe, path = source.probe, source.probe.spec.path
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
    _check_complete(probe, frames)
    source, pixels = _load_frames(source, plan, frames)
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    for frame in pixels:
        digest.update(frame.contiguous().numpy().data)
    positions = slice_positions(frames, source.probe.count)
    return Video(
        pixels,
        float(source.probe.rate),
        source.name,
        data if is_remote(data) else str(path),
        source.reader,
        plan,
        digest.hexdigest(),
        source.probe.times_of(positions),
        _display_of(probe.display, plan),
        ":".join(value for _, value in probe.spec.raw),
        source_planes(source, plan, positions),
    )


def frame_count(data: str, frames: str = "", raw_video: str = "") -> int:
    """Number of decodable frames. Raises UserError if a file is truncated before the end of the slice `frames`."""
    probe = open_source(data, raw_video, exact=True).probe
    _check_complete(probe, frames)
    return probe.count


def seeks(data: str, raw_video: str = "") -> bool:
    """Whether a source can be read from its middle without decoding everything before. Raises UserError."""
    return open_source(data, raw_video).seeks


def read_frames(data: str, positions: range, raw_video: str = "") -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) uint8 RGB at ascending positions, one in memory at a time. Raises UserError."""
    if positions:
        for position, _, frame in open_source(data, raw_video, exact=True).frames_from(positions.start):
            if position in positions:
                yield frame
            if position >= positions[-1]:
                return


def _check_complete(probe: Probe, frames: str) -> None:
    """Raises UserError if the slice needs frames after a cut or damage."""
    path, count = probe.spec.path, probe.count
    cut = f"{path} is truncated; only {count} frames can be read: pass --frames 0:{count}, or copy or download it again"
    if (probe.truncated or probe.damage) and not ends_before(frames, count):
        raise UserError(probe.damage or cut)


@functools.lru_cache  # one warning for each file
def _warn_hdr(path: Path, kind: str) -> None:
    _log.warning(
        "%s is HDR (%s): its values are read as stored, in 8 bits and without tone mapping, so PSNR and CLIP refer to "
        "them; the file and hnerv decode keep its colour tags",
        path.name,
        kind,
    )


def _display_of(display: Display, plan: CropPlan) -> Display:
    """Display tags after resizing: a pixel that stands for 2x1 pixels of the source is twice as wide."""
    aspect = Fraction(display.wide * plan.width * plan.out_height, display.high * plan.height * plan.out_width)
    aspect = min(max(aspect, Fraction(1, _MAX_ASPECT)), _MAX_ASPECT).limit_denominator(_MAX_ASPECT)
    return display._replace(wide=aspect.numerator, high=aspect.denominator)


def _load_frames(source: Source, plan: CropPlan, frames: str) -> tuple[Source, Tensor]:
    """The selected frames, and the source as decoding found it to be."""
    probe = source.probe
    fits = probe.count * math.prod(probe.size) * 3 <= _memory_limit()  # decord decodes ahead without a limit
    if os.environ.get("HNERV_READER") == "decord" and probe.decord_safe and fits:
        by_decord = source._replace(read=lambda start: read_decord(probe), seeks=False, reader="decord")
        try:
            return by_decord, _decode_selected(by_decord, plan, frames)[0]
        except DecordFailed as failure:
            _log.warning("%s is read with PyAV: %s", probe.spec.path.name, failure)
    pixels, stamps = _decode_selected(source, plan, frames)
    needed = max(slice_positions(frames, probe.count)) + 1 if ends_before(frames, probe.count) else probe.count
    if probe.exact and max(stamps) + 1 == needed:
        return source, pixels
    # The packets did not determine the number of frames, or did so wrongly. Which frames a slice selects, such as -3:,
    # may depend on it.
    corrected = probe_by_decoding(probe) if frames else probe.with_decoded(list(stamps.values()))
    _check_complete(corrected, frames)
    if probe.exact:
        _log.warning("%s has %d frames, but declares %d", probe.spec.path.name, corrected.count, probe.count)
    source = source._replace(probe=corrected, seeks=False)
    if frames or corrected.count > len(pixels):
        pixels, _ = _decode_selected(source, plan, frames)
    return source, pixels[: corrected.count]


def _decode_selected(source: Source, plan: CropPlan, frames: str) -> tuple[Tensor, dict[int, int | None]]:
    """The selected frames (N, 3, H, W) uint8, and {position: time stamp} of all frames decoded for them."""
    count = source.probe.count
    selected = slice_positions(frames, count)
    if not selected:
        raise UserError(f"--frames {frames!r} selects none of the {count} frames: pass a wider start:stop:step")
    result, stamps = _empty_frames(len(selected), plan.out_height, plan.out_width), {}
    last = max(selected) if ends_before(frames, count) else None
    for position, stamp, frame in source.frames_from(min(selected)):
        stamps[position] = stamp
        if position in selected and position < count:
            result[selected.index(position)] = _crop_and_resize(frame, plan)
        if position == last:
            break
    return result, stamps


def _crop_and_resize(frame: np.ndarray, plan: CropPlan) -> Tensor:
    """(h, w, 3) uint8 -> (3, H, W) uint8."""
    region = frame[plan.top : plan.top + plan.height, plan.left : plan.left + plan.width]
    pixels = torch.from_numpy(np.ascontiguousarray(region)).permute(2, 0, 1)
    size = (plan.out_height, plan.out_width)
    if size == (plan.height, plan.width):
        return pixels
    pixels = F.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _memory_limit() -> int:
    return min(IN_MEMORY, memory_bytes() // 4)


def _empty_frames(count: int, height: int, width: int) -> Tensor:
    """(N, 3, H, W) uint8, channels last in memory, as the readers give them. Raises UserError if the disk is full."""
    shape = count, height, width, 3
    size = math.prod(shape)
    if size <= _memory_limit():
        return torch.empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    try:
        return _map_file(size).view(shape).permute(0, 3, 1, 2)
    except OSError as error:
        raise UserError(
            f"{count} frames of {height}x{width} take {size / 1e9:.1f} GB, which {cache_folder()} "
            f"cannot hold ({error.strerror}): select fewer with --frames, make them smaller with --resize, or set "
            "HNERV_CACHE to a folder on a larger disk"
        ) from error


def _map_file(size: int) -> Tensor:
    """(size,) uint8 in an unnamed file of the cache, which the system frees however the process ends. Raises OSError.

    Pages that were read stay in memory while there is room, and are dropped when there is none.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        if hasattr(os, "posix_fallocate"):
            # Reserve the space: writing to a mapped page for which the disk has no room kills the process.
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
