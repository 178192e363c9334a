"""Frames of a video file, in order, once: by PyAV, which is the reference, or by decord where that gives the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hnerv.errors import UserError
from hnerv.data.video.probing import Probe, open_video, playable_packets, transparent, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    Shown = tuple[int | None, np.ndarray]
    """A frame's time stamp, None where it has none, and its pixels (H, W, 3) uint8 RGB."""


class SeekFailed(Exception):
    """Decoding from the middle does not give the frames that the time stamps promise."""


class DecordFailed(Exception):
    """decord cannot read this file, or not as PyAV does; the message is a clause that says why."""


def read_pyav(probe: Probe, start: int = 0) -> Iterator[Shown]:
    """Yield upright frames from position `start` on until the file ends, before or after `probe.count`.

    With a `start` above 0 decoding begins at a key frame before it, and every frame is known by its time stamp.
    Raises SeekFailed where one is missing, which may come after frames, and UserError at a frame that cannot be
    decoded, is transparent, or has another size than the first.
    """
    for position, frame in enumerate(_decode_checked(probe, start), start):
        if start and (position == probe.count or frame.pts != probe.times.stamps[position]):
            raise SeekFailed(f"frame {position} has another time stamp than its packet")
        yield frame.pts, _upright_rgb(probe, frame)
    if start and position + 1 < probe.count:
        raise SeekFailed(f"{probe.count - position - 1} frames are missing at the end")


def read_decord(probe: Probe) -> Iterator[Shown]:
    """`read_pyav` of a `probe.for_decord` file by decord. Raises DecordFailed, which may come after frames.

    Never seeks: decord's random access returns wrong frames on open groups of pictures. Not for forked processes.
    decord hides damage and fields, so PyAV decodes in step without converting: raises UserError as `read_pyav`.
    """
    import torch  # noqa: F401  decord crashes where it is loaded before torch

    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecordFailed("decord is not installed") from error
    failures = (decord.DECORDError, RuntimeError, AssertionError, StopIteration)
    try:
        decord.logging.set_level(decord.logging.QUIET)
        # Any positive tolerance below one frame: decord else repeats a neighbour for a frame it cannot decode.
        reader = decord.VideoReader(str(probe.medium.path), num_threads=4, fault_tol=1e-9)
        count = len(reader)
    except failures as error:
        raise DecordFailed("decord cannot open it") from error
    for position, frame in enumerate(_decode_checked(probe)):
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


def decoded(probe: Probe) -> Probe:
    """`probe` with the frames that decoding finds, in a truncated file before the cut, and what it finds behind them.

    Raises UserError where not even the first frame can be decoded.
    """
    stamps, damage = [], ""
    try:
        for frame in itertools.islice(_decode_checked(probe), probe.count if probe.cut else None):
            stamps.append(frame.pts)
    except UserError as error:
        if not stamps:
            raise
        damage = "" if probe.cut else str(error)
    return probe.as_decoded(stamps)._replace(damage=damage)


def _upright_rgb(probe: Probe, frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8, as FFmpeg's scale filter converts; raises UserError for transparent pixels.

    It uses the matrix, range and chroma position of the frame, and converts interlaced frames field by field.
    """
    from av.video.reformatter import Interpolation

    # Above 8 bits the default looks chroma up in tables of 8 bits, and is up to 4 levels off.
    parts, how = frame.format.components, Interpolation.BILINEAR
    if max(part.bits for part in parts) > 8:
        how |= Interpolation.FULL_CHR_H_INT
    if not any(part.is_alpha for part in parts):
        return probe.orientation.upright(frame.to_ndarray(format="rgb24", interpolation=how))
    pixels = frame.to_ndarray(format="rgba", interpolation=how)
    if pixels[..., 3].min() < 255:
        raise transparent(probe.medium.path)
    return probe.orientation.upright(pixels[..., :3])


def _decode_checked(probe: Probe, start: int = 0) -> Iterator[VideoFrame]:
    """Decoded frames as stored, from `start` on; raises UserError at the first that is damaged or of another size."""
    import av
    from av.video.frame import PictureType

    position = sound = anchor = start
    with open_video(probe.medium) as container:
        stream = video_stream(container, probe.medium.path)
        stream.codec_context.thread_count = 1  # with more, FFmpeg marks damaged frames now and then, not always
        try:
            for frame in _frames_from(start, probe, container, stream):
                if frame.is_corrupt:
                    raise _undecodable(probe, "damaged data", position, range(start, sound))
                size = probe.orientation.upright_size(frame.height, frame.width)
                if size != probe.size:
                    raise _size_changes(probe, size, position)
                yield frame
                position += 1
                if frame.pict_type != PictureType.B:  # a B frame may be predicted from a later, damaged one
                    sound, anchor = anchor, position  # and the last one before the damage shows may hold its start
        except av.error.FFmpegError as error:
            if start and position == start:
                raise SeekFailed(f"no frame can be decoded from there on ({error.strerror})") from error
            raise _undecodable(probe, error.strerror or "unknown error", position, range(start, sound)) from error
    if position == start:
        if start:
            raise SeekFailed("no frame can be decoded from there on")
        raise UserError(f"{probe.medium.path} has no frames that can be decoded: pass another video to --data")


def _frames_from(start: int, probe: Probe, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    key, first = None, probe.times.stamps[start] if start else 0
    if start and (keys := probe.keys_before(start)):
        container.seek(keys[0], stream=stream)
        key = keys[1]
    for packet in playable_packets(container, stream):
        # The half packet at the cut would end decoding before the complete frames in front of it are out.
        if probe.cut and packet.is_corrupt:
            continue
        for frame in packet.decode():
            if not start or (frame.pts is not None and frame.pts >= first):
                yield frame
            elif frame.is_corrupt and (key is None or frame.pts is None or frame.pts >= key):
                raise SeekFailed("a frame before it is damaged, which it may be predicted from")


def _size_changes(probe: Probe, size: tuple[int, int], position: int) -> UserError:
    (height, width), path = probe.size, probe.medium.path
    return UserError(
        f"{path} changes size from {height}x{width} to {size[0]}x{size[1]} at frame {position}: pass --frames "
        f"0:{position}, or scale all frames to one size with ffmpeg -i {path.name} -vf scale={width}:{height} out.mp4"
    )


def _undecodable(probe: Probe, cause: str, position: int, sound: range) -> UserError:
    """The `sound` frames, of those that were decoded, are not touched by the damage that shows at `position`."""
    path = probe.medium.path
    fix = "no earlier frame is certain to be intact, so copy the file again, or pass another video to --data"
    if sound:
        repair = f"ffmpeg -i {path.name} -c:v libx264 -crf 12 out.mp4"
        fix = f"pass --frames {sound.start}:{sound.stop}, or repair the file with {repair}"
    return UserError(f"{path}: frame {position} cannot be decoded ({cause}): {fix}")
