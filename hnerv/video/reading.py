"""Frames of a video file, in order, once: by decord where it is right, by PyAV elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hnerv.errors import UserError
from hnerv.video.probing import Probe, open_video, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_DECORD_THREADS = 4


class DecordFailed(Exception):
    """decord cannot read this file, or not as its packets promise; the message is a clause that says why."""


def read_decord(probe: Probe) -> Iterator[np.ndarray]:
    """Yield `probe.count` upright frames (H, W, 3) uint8 RGB. Raises DecordFailed, which may come after frames.

    Never seeks: decord's random access returns wrong frames on open groups of pictures. Not for forked processes.
    decord hides damage, so PyAV decodes in step without converting: raises UserError where `read_pyav` would.
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
        reader = decord.VideoReader(str(probe.path), num_threads=_DECORD_THREADS, fault_tol=1e-9)
        count = len(reader)
    except failures as error:
        raise DecordFailed("decord cannot open it") from error
    if count != probe.count:
        raise DecordFailed(f"decord counts {count} frames, but the file has {probe.count}")
    checked = _decode_checked(probe)
    for position in range(count):
        if next(checked, None) is None:
            raise DecordFailed(f"decord counts {count} frames, but only {position} can be decoded")
        try:
            frame = reader.next().asnumpy()
        except failures as error:
            raise DecordFailed(f"decord fails at frame {position}") from error
        if frame.shape != (*probe.size, 3):
            raise DecordFailed(f"decord returns a frame of shape {frame.shape}")
        yield frame
    if next(checked, None) is not None:
        raise DecordFailed(f"decord counts {count} frames, but more can be decoded")


class SeekFailed(Exception):
    """Decoding from the middle does not give the frames that the time stamps promise."""


def read_pyav(probe: Probe) -> Iterator[np.ndarray]:
    """Yield upright frames (H, W, 3) uint8 RGB until the file ends, which may be before or after `probe.count`.

    Raises UserError at a frame that cannot be decoded or has another size than the first.
    """
    for frame in _decode_checked(probe):
        yield probe.orientation.upright(frame.to_ndarray(format="rgb24"))


def read_pyav_from(probe: Probe, start: int) -> Iterator[np.ndarray]:
    """The frames of `read_pyav` from position `start` on; of those before, only what these lean on is decoded.

    Every frame is known by its time stamp. Raises SeekFailed where one is missing, which may come after frames, and
    UserError as `read_pyav`.
    """
    position, stamps = start, probe.index.frames
    for frame in _decode_checked(probe, start):
        if position >= len(stamps) or frame.pts != stamps[position]:
            raise SeekFailed(f"frame {position} has another time stamp than its packet")
        yield probe.orientation.upright(frame.to_ndarray(format="rgb24"))
        position += 1
    if position < len(stamps):
        raise SeekFailed(f"{len(stamps) - position} frames are missing at the end")


def _decode_checked(probe: Probe, start: int = 0) -> Iterator[VideoFrame]:
    """Decoded frames as stored, from `start` on; raises UserError at the first that is damaged or of another size."""
    import av
    from av.video.frame import PictureType

    position = sound = anchor = start
    with open_video(probe.path) as container:
        stream = video_stream(container, probe.path)
        stream.codec_context.thread_count = 1  # with more, FFmpeg marks damaged frames now and then, not always
        try:
            for frame in _begun_at(start, probe, container, stream):
                if frame.is_corrupt:
                    raise _undecodable(probe, "damaged data", position, range(start, sound))
                size = probe.orientation.upright_size(frame.height, frame.width)
                if size != probe.size:
                    raise _size_changes(probe, size, position)
                yield frame
                position += 1
                if frame.pict_type != PictureType.B:  # a B frame may lean on a later one that is damaged
                    sound, anchor = anchor, position  # and the last one before the damage shows may hold its start
        except av.error.FFmpegError as error:
            raise _undecodable(probe, error.strerror or "unknown error", position, range(start, sound)) from error


def _begun_at(start: int, probe: Probe, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    key = probe.index.key_before(start) if start else None
    if key is not None:
        container.seek(key, stream=stream)
    frames = _decode(container, stream, probe.cut)
    if not start:
        return frames
    first = probe.index.frames[start]
    return itertools.dropwhile(lambda frame: frame.pts is None or frame.pts < first, frames)


def _decode(container: InputContainer, stream: VideoStream, cut: bool) -> Iterator[VideoFrame]:
    for packet in container.demux(stream):
        # The half packet at the cut would end decoding before the whole frames in front of it are out.
        if not (cut and packet.is_corrupt):
            yield from packet.decode()


def _size_changes(probe: Probe, size: tuple[int, int], position: int) -> UserError:
    (height, width), name = probe.size, probe.path.name
    return UserError(
        f"{probe.path} changes size from {height}x{width} to {size[0]}x{size[1]} at frame {position}: pass --frames "
        f"0:{position}, or scale all frames to one size with ffmpeg -i {name} -vf scale={width}:{height} out.mp4"
    )


def _undecodable(probe: Probe, cause: str, position: int, sound: range) -> UserError:
    """The `sound` frames, of those that were decoded, are not touched by the damage that shows at `position`."""
    if not sound:
        return UserError(
            f"{probe.path}: frame {position} cannot be decoded ({cause}), and no earlier frame is certain to be "
            "intact: copy the file again, or pass another video to --data"
        )
    return UserError(
        f"{probe.path}: frame {position} cannot be decoded ({cause}): pass --frames {sound.start}:{sound.stop}, or "
        f"repair the file with ffmpeg -i {probe.path.name} -c:v libx264 -crf 12 out.mp4"
    )
