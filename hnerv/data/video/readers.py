"""Readers of video files: PyAV, the reference, and decord, for files where it gives the same pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hnerv.data.video.container import open_container, playable_packets, video_stream
from hnerv.data.video.probe import Probe, transparency_error
from hnerv.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    StampedFrame = tuple[int | None, np.ndarray]
    """Time stamp, None if unknown, and pixels (H, W, 3) uint8 RGB."""

Converted = TypeVar("Converted")


class SeekFailed(Exception):
    """Decoding from the middle of the file does not give the frames that the time stamps promise."""


class DecordFailed(Exception):
    """decord cannot read this file, or reads it unlike PyAV; the message is a clause with the reason."""


def read_pyav(probe: Probe, start: int = 0) -> Iterator[StampedFrame]:
    """`read_converted` to upright RGB. Raises UserError also for a transparent frame."""
    return read_converted(probe, lambda frame: _upright_rgb(probe, frame), start)


def read_converted(
    probe: Probe, convert: Callable[[VideoFrame], Converted], start: int = 0
) -> Iterator[tuple[int | None, Converted]]:
    """Yield time stamp and converted frame from position `start` to the end of the file, which may differ from
    `probe.count`.

    With `start` above 0, decoding begins at an earlier key frame, and frames are identified by their time stamps.
    Raises SeekFailed if one is missing, possibly after yielding frames, and UserError at a frame that cannot be
    decoded or differs in size from the first.
    """
    for position, frame in enumerate(_decoded_frames(probe, start), start):
        if start and (position == probe.count or frame.pts != probe.times.stamps[position]):
            raise SeekFailed(f"frame {position} has another time stamp than its packet")
        yield frame.pts, convert(frame)
    if start and position + 1 < probe.count:
        raise SeekFailed(f"{probe.count - position - 1} frames are missing at the end")


def read_decord(probe: Probe) -> Iterator[StampedFrame]:
    """`read_pyav` from the start with decord, for a probe that is `decord_safe`. Not for forked processes.

    decord hides damaged and interlaced frames, so PyAV decodes in step, without converting to RGB. It never seeks, as
    random access returns wrong frames on open groups of pictures. Raises DecordFailed, possibly after yielding frames,
    and UserError as `read_pyav`.
    """
    import torch  # noqa: F401  decord crashes if it is loaded before torch

    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecordFailed("decord is not installed") from error
    failures = (decord.DECORDError, RuntimeError, AssertionError, StopIteration)
    try:
        decord.logging.set_level(decord.logging.QUIET)
        # By default decord repeats a neighbour in place of a frame it cannot decode; a tolerance below one frame makes
        # it fail instead.
        reader = decord.VideoReader(str(probe.spec.path), num_threads=4, fault_tol=1e-9)
        count = len(reader)
    except failures as error:
        raise DecordFailed("decord cannot open it") from error
    for position, frame in enumerate(_decoded_frames(probe)):
        if frame.interlaced_frame:
            raise DecordFailed("decord mixes the chroma of interlaced fields")
        try:
            pixels = reader.next().asnumpy()
        except failures as error:
            raise DecordFailed(f"decord fails at frame {position}") from error
        if pixels.shape != (*probe.size, 3):
            raise DecordFailed(f"decord returns a frame of shape {pixels.shape}")
        yield frame.pts, pixels
    if not position + 1 == count == probe.count:
        raise DecordFailed(f"decord counts {count} frames, but {position + 1} can be decoded")


def probe_by_decoding(probe: Probe) -> Probe:
    """The probe corrected by decoding all frames, in a truncated file those before the cut.

    Raises UserError if not even the first frame can be decoded.
    """
    stamps, damage = [], ""
    try:
        for frame in itertools.islice(_decoded_frames(probe), probe.count if probe.truncated else None):
            stamps.append(frame.pts)
    except UserError as error:
        if not stamps:
            raise
        damage = "" if probe.truncated else str(error)
    return probe.with_decoded(stamps)._replace(damage=damage)


def _upright_rgb(probe: Probe, frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, identical to FFmpeg's scale filter. Raises UserError for transparent pixels.

    PyAV passes swscale the matrix, range and chroma siting of the frame, and its interlacing: the chroma rows of
    interlaced 4:2:0 belong to one field each. Interpolated across fields, they would mix two moments.
    """
    from av.video.reformatter import Interpolation

    # By default swscale looks up chroma in tables of 8 bits, so deeper samples come out up to 4 levels off.
    components, interpolation = frame.format.components, Interpolation.BILINEAR
    if max(component.bits for component in components) > 8:
        interpolation |= Interpolation.FULL_CHR_H_INT
    if not any(component.is_alpha for component in components):
        return probe.orientation.upright(frame.to_ndarray(format="rgb24", interpolation=interpolation))
    pixels = frame.to_ndarray(format="rgba", interpolation=interpolation)
    if pixels[..., 3].min() < 255:
        raise transparency_error(probe.spec.path)
    return probe.orientation.upright(pixels[..., :3])


def _decoded_frames(probe: Probe, start: int = 0) -> Iterator[VideoFrame]:
    """Decoded frames as stored, from `start` on. Raises UserError at the first that is damaged or of another size."""
    import av
    from av.video.frame import PictureType

    # FFmpeg notices damage late: the frames before it may be predicted from damaged ones. A B frame may refer to the
    # frame shown after it, and the last other frame before the damage may itself hold its start. So frames are certain
    # to be intact up to the last but one that is not a B frame.
    position = intact_end = last_anchor = start
    with open_container(probe.spec) as container:
        stream = video_stream(container, probe.spec.path)
        stream.codec_context.thread_count = 1  # with more, FFmpeg does not always mark damaged frames
        try:
            for frame in _frames_from(start, probe, container, stream):
                if frame.is_corrupt:
                    raise _damage_error(probe, "damaged data", position, range(start, intact_end))
                size = probe.orientation.upright_size(frame.height, frame.width)
                if size != probe.size:
                    new, old = (f"{height}x{width}" for height, width in (size, probe.size))
                    scale = f"ffmpeg -i {probe.spec.path.name} -vf scale={probe.size[1]}:{probe.size[0]} out.mp4"
                    raise UserError(
                        f"{probe.spec.path} changes size from {old} to {new} at frame {position}: pass --frames "
                        f"0:{position}, or scale all frames to one size with {scale}"
                    )
                yield frame
                position += 1
                if frame.pict_type != PictureType.B:
                    intact_end, last_anchor = last_anchor, position
        except av.error.FFmpegError as error:
            if start and position == start:
                raise SeekFailed(f"no frame can be decoded from there on ({error.strerror})") from error
            cause = error.strerror or "unknown error"
            raise _damage_error(probe, cause, position, range(start, intact_end)) from error
    if position == start:
        if start:
            raise SeekFailed("no frame can be decoded from there on")
        raise UserError(f"{probe.spec.path} has no frames that can be decoded: pass another video to --data")


def _frames_from(start: int, probe: Probe, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames from `start` on, decoded from two key frames before it if there are two, else from the start."""
    complete_from, first = None, probe.times.stamps[start] if start else 0
    if start and (keys := probe.keys_before(start)):
        container.seek(keys[0], stream=stream)
        complete_from = keys[1]
    for packet in playable_packets(container, stream):
        # The half packet at a cut would end decoding before the decoder has output the frames it delays.
        if probe.truncated and packet.is_corrupt:
            continue
        for frame in packet.decode():
            if not start or (frame.pts is not None and frame.pts >= first):
                yield frame
            elif frame.is_corrupt and (complete_from is None or frame.pts is None or frame.pts >= complete_from):
                raise SeekFailed("a frame before it is damaged, which it may be predicted from")


def _damage_error(probe: Probe, cause: str, position: int, intact: range) -> UserError:
    path = probe.spec.path
    fix = "no earlier frame is certain to be intact, so copy the file again, or pass another video to --data"
    if intact:
        repair = f"ffmpeg -i {path.name} -c:v libx264 -crf 12 out.mp4"
        fix = f"pass --frames {intact.start}:{intact.stop}, or repair the file with {repair}"
    return UserError(f"{path}: frame {position} cannot be decoded ({cause}): {fix}")
