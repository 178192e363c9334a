"""Contents of a video file, determined from its packets and its first frame."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hnerv.data.video.colour import UNTAGGED, Display
from hnerv.data.video.container import (
    PLAYLISTS,
    InputSpec,
    PacketInfo,
    check_playlist,
    codec_name,
    count_before_cut,
    declared_bytes,
    moving_streams,
    open_container,
    playable_packets,
    scan_packets,
    video_stream,
)
from hnerv.errors import UserError
from hnerv.timeline import Timeline, estimate_rate

if TYPE_CHECKING:
    from pathlib import Path

    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DEFAULT_FPS = Fraction(24)
"""Rate of sources that declare none."""
ONE_FRAME_PER_PACKET = {
    *("av1", "dnxhd", "dvvideo", "ffv1", "ffvhuff", "gif", "h264", "hevc", "huffyuv", "jpeg2000", "mjpeg"),
    *("mpeg1video", "mpeg2video", "png", "prores", "qtrle", "rawvideo", "utvideo", "vp8", "vp9"),
}
"""Codecs in which every shown packet decodes to one frame. A packet of MPEG-4 Part 2, in contrast, may decode to none:
a frame that is "not coded" repeats the one before."""
YUV420 = ("yuv420p", "yuvj420p")
"""Names of 8-bit 4:2:0; the second means full range."""
_NO_TIME_STAMPS = 0x80
"""AVFMT_NOTIMESTAMPS: elementary streams, for which FFmpeg invents time stamps."""


class Orientation(NamedTuple):
    """How to turn a decoded frame upright: transpose, then flip."""

    transpose: bool = False
    flip_rows: bool = False
    flip_cols: bool = False

    def upright_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) as stored -> (H, W) as shown."""
        return (width, height) if self.transpose else (height, width)

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """(h, w, 3) as stored -> (H, W, 3) as shown, contiguous."""
        frame = frame.transpose(1, 0, 2) if self.transpose else frame
        return np.ascontiguousarray(frame[:: -1 if self.flip_rows else 1, :: -1 if self.flip_cols else 1])


_QUARTER_TURNS = (
    Orientation(),
    Orientation(True, True, False),
    Orientation(False, True, True),
    Orientation(True, False, True),
)
"""By the number of counter-clockwise quarter turns."""


class Probe(NamedTuple):
    """Contents of a source; of a file, the one stream that is read. H W are pixels of the upright frame."""

    spec: InputSpec
    size: tuple[int, int]
    count: int
    """Frames to expect, in a truncated file those before the cut."""
    times: Timeline | None = None
    """Time stamps of all frames as stored, ascending; None if there are none or they are unreliable."""
    rate: Fraction = DEFAULT_FPS
    """Frames per second, constant or the mean."""
    constant: bool = True
    """Whether frame k is shown k / rate after the first."""
    timed: bool = False
    """Whether the time stamps are stored in the file, not invented by FFmpeg."""
    exact: bool = True
    """Whether `count` and `times` are certain: the packets determine them, or all frames were decoded."""
    truncated: bool = False
    damage: str = ""
    """Why the frames after the first `count` cannot be decoded, with the fix; '' if there are none."""
    display: Display = UNTAGGED
    orientation: Orientation = Orientation()
    decord_safe: bool = False
    """Whether decord 0.6 reads such files correctly; interlacing shows only in the frames."""
    no_planes: str = "the source is not YUV video"
    """Why it has no upright progressive planes of 8-bit 4:2:0, a clause; '' if it has."""
    keys: tuple[int, ...] = ()
    """Time stamps of key frames, ascending; empty if seeking might return other frames."""

    def with_decoded(self, stamps: Sequence[int | None]) -> Probe:
        """Corrected by the time stamps of all decoded frames."""
        probe = self._replace(count=len(stamps), exact=True, keys=())
        if len(stamps) == self.count:
            return probe
        if not self.timed or None in stamps or any(b <= a for a, b in itertools.pairwise(stamps)):
            return probe._replace(constant=True)
        times = Timeline(self.times.tick, tuple(stamps))
        rate, constant = estimate_rate(times, hints=[self.rate])
        return probe._replace(times=times, rate=rate, constant=constant)

    def times_of(self, frames: range) -> Timeline | None:
        """Times of these frames from the first frame of the source on; None if the k-th is shown at k / rate."""
        if self.constant:
            return None if frames == range(len(frames)) else Timeline(1 / self.rate, tuple(frames))
        first = self.times.stamps[0]
        return Timeline(self.times.tick, tuple(self.times.stamps[frame] - first for frame in frames))

    def keys_before(self, position: int) -> tuple[int, int] | None:
        """Time stamps of the last two key frames up to a frame; None if it has to be decoded from the start.

        Decoding begins at the first of the two. In an open group of pictures, frames shown before a key frame are
        stored after it and refer to the group before, so only from the second key frame on are all frames complete.
        """
        number = bisect.bisect_right(self.keys, self.times.stamps[position]) - 2
        return (self.keys[number], self.keys[number + 1]) if number > 0 else None


def probe_video(spec: InputSpec) -> Probe:
    """Read all packets of a video file and decode its first frame.

    Raises UserError if it is not a video, has no video stream or no decodable frame, or is transparent.
    """
    path = spec.path
    if path.suffix.lower() in PLAYLISTS:
        check_playlist(path)
    with open_container(spec) as container:
        stream = video_stream(container, path)
        packets, failed = scan_packets(container, stream)
        truncated = failed or declared_bytes(container, stream, path) > path.stat().st_size
        shown = [p for p in packets if not p.hidden]
        first = _first_frame(spec)
        count = count_before_cut(shown) if truncated else len(shown)
        if not count or not first:
            cause = "is truncated before its first complete frame" if truncated else "has no frames that can be decoded"
            raise UserError(f"{path} {cause}: copy or download it again, or pass another video to --data")
        codec = codec_name(stream)
        if codec in ("vp8", "vp9") and any(p.alpha for p in packets):
            raise transparency_error(path, f"-c:v {'libvpx' if codec == 'vp8' else 'libvpx-vp9'} ")

        times, last = _timeline_of(container, stream, shown)
        hints = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        rate, constant = estimate_rate(times, last, hints) if times else ((hints or [DEFAULT_FPS])[-1], True)
        # A recording may begin inside a group of pictures: decoders drop all frames before the first key frame.
        # The fields of an interlaced picture may come in packets of their own.
        earliest = min((p.pts for p in packets if p.pts is not None), default=None)
        starts_with_key = packets[0].key and packets[0].pts == earliest
        one_each = codec in ONE_FRAME_PER_PACKET and not first.interlaced_frame
        exact = bool(times and starts_with_key and not truncated and one_each)
        orientation, keys = orientation_of(first), _seekable_keys(container, packets) if exact else ()
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        shape = (1 / aspect if orientation.transpose else aspect).as_integer_ratio()
        codes = first.color_primaries, first.color_trc, first.colorspace, first.color_range
        return Probe(
            spec,
            orientation.upright_size(first.height, first.width),
            count,
            times,
            rate,
            constant,
            timed=times is not None and not spec.raw and not container.format.flags & _NO_TIME_STAMPS,
            exact=exact,
            truncated=truncated,
            display=Display(*map(int, codes), *shape),
            orientation=orientation,
            no_planes=_planes_obstacle(first, orientation),
            decord_safe=bool(keys) and orientation == Orientation() and _is_decord_safe(container, stream, first),
            keys=keys,
        )


def transparency_error(path: Path, decoder: str = "") -> UserError:
    """The error for transparent video; `decoder` is the option of FFmpeg needed to decode the alpha of this file."""
    return UserError(
        f"{path} has transparency (alpha), which a video frame cannot have: put it on black with ffmpeg {decoder}-i "
        f"{path.name} -vf format=gbrap,premultiply=inplace=1,format=yuv420p out.mp4"
    )


def orientation_of(frame: VideoFrame) -> Orientation:
    """Orientation from the display matrix that phones write, rounded to right angles.

    The matrix (a b; c d) maps (x, y) to x' = a x + c y, y' = b x + d y. Source: FFmpeg's libavutil/display.h.
    """
    from av.sidedata.sidedata import Type

    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV fails on side data of a type it has no name for, such as EXIF, but gives the angle
        return _QUARTER_TURNS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return Orientation()
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(b) > abs(a):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


def _first_frame(spec: InputSpec) -> VideoFrame | None:
    import av

    with open_container(spec) as container, contextlib.suppress(av.error.FFmpegError):
        for packet in playable_packets(container, video_stream(container, spec.path)):
            with contextlib.suppress(av.error.FFmpegError, ValueError):  # ValueError: PyAV 19, decoder did not open
                for frame in packet.decode():
                    return frame
    return None


def _timeline_of(
    container: InputContainer, stream: VideoStream, shown: list[PacketInfo]
) -> tuple[Timeline | None, int]:
    """Presentation times, and the duration of the last frame in ticks, 0 if unknown.

    None if decoding time goes backwards: concatenated recordings, each with a clock of its own.
    """
    clock = [packet.dts for packet in shown if packet.dts is not None]
    if any(b < a for a, b in itertools.pairwise(clock)):
        return None, 0
    # AVI stores the position of a frame in decoding order; its presentation stamps are a guess of FFmpeg.
    avi = container.format.name == "avi"
    for name in ("dts",) if avi else ("pts", "dts"):
        values = [getattr(packet, name) for packet in shown]
        if None not in values and len(set(values)) == len(values):
            stamps = sorted(values)
            steps = {b - a for a, b in itertools.pairwise(stamps[1:])}
            if avi and len(steps) == 1 and stamps[1] - stamps[0] == 2 * min(steps):
                # FFmpeg's writer puts the empty chunk of a late start after the first frame.
                stamps[0] = stamps[1] - min(steps)
            # In MP4, a duration is the time to the next packet in decoding order. That is the time to the next frame
            # only for the packet that is last in both orders.
            last = shown[-1].duration if values[-1] == stamps[-1] else 0
            return Timeline(Fraction(stream.time_base), tuple(stamps)), last
    return None, 0


def _seekable_keys(container: InputContainer, packets: list[PacketInfo]) -> tuple[int, ...]:
    """Time stamps of key frames if the format has an index of them and every packet is a frame with a time stamp."""
    seekable = any(kind in container.format.name for kind in ("mov", "matroska", "rawvideo"))
    if not seekable or any(p.hidden or p.corrupt or p.pts is None or p.pts < 0 for p in packets):
        return ()
    return tuple(sorted(p.pts for p in packets if p.key))


def _planes_obstacle(first: VideoFrame, orientation: Orientation) -> str:
    if first.format.name not in YUV420:
        return f"the source is {first.format.name}, not 8-bit 4:2:0"
    if first.interlaced_frame:
        return "the source is interlaced"
    return "" if orientation == Orientation() else "the source is rotated"


def _is_decord_safe(container: InputContainer, stream: VideoStream, first: VideoFrame) -> bool:
    """Whether this is 8-bit 4:2:0 H.264 of even size in MP4 or MOV, with one video stream."""
    return (
        "mov" in container.format.name
        and codec_name(stream) == "h264"
        and first.format.name in YUV420
        and not (first.height % 2 or first.width % 2)
        and len(moving_streams(container)) == 1
    )
