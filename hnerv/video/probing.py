"""What a video file holds, read from its packets and its first frame."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hnerv.errors import UserError
from hnerv.timeline import Timeline, rate_of
from hnerv.video.colour import UNTAGGED, Display
from hnerv.video.truncation import count_before_cut, promised_bytes

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DEFAULT_FPS = Fraction(24)
"""Of images and streams that say nothing."""


class Orientation(NamedTuple):
    """How to put a decoded frame upright: transpose first, then flip. Source: FFmpeg's libavutil/display.h."""

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


class Medium(NamedTuple):
    """A file or folder; of raw video FFmpeg's video_size, pixel_format and framerate, which others say themselves."""

    path: Path
    raw: tuple[tuple[str, str], ...] = ()


class Probe(NamedTuple):
    """What a source holds; of a file, its one stream that is read. H W are pixels of the upright frame."""

    medium: Medium
    size: tuple[int, int]
    count: int
    """Frames to expect; of a file that is cut short, those before the cut."""
    times: Timeline | None = None
    """Time stamps of all frames as stored, ascending; None where there are none to be trusted."""
    rate: Fraction = DEFAULT_FPS
    """Frames per second: constant, or the mean."""
    steady: bool = True
    """Whether frame k is k / rate after the first."""
    exact: bool = True
    """Whether `count` and `times` are those of the decoded frames, as far as the packets say."""
    cut: bool = False
    display: Display = UNTAGGED
    orientation: Orientation = Orientation()
    simple: bool = False
    """Whether decord 0.6 gives the same pixels, as far as was found out."""
    keys: tuple[int, ...] = ()
    """Time stamps that decoding can begin at; empty where that is not sure to give the frames of decoding from 0."""

    @property
    def timed(self) -> bool:
        return self.times is not None and not self.medium.raw

    def as_decoded(self, found: dict[int, int | None]) -> Probe:
        """With the frames {position: time stamp} that were decoded, up to the last one."""
        count, stamps = max(found) + 1, tuple(found.values())
        known = self.timed and len(stamps) == count and None not in stamps
        if not known or any(b <= a for a, b in itertools.pairwise(stamps)):
            return self._replace(count=count, steady=True)
        times = Timeline(self.times.tick, stamps)
        rate, steady = rate_of(times, hints=[self.rate])
        return self._replace(count=count, times=times, rate=rate, steady=steady)

    def times_of(self, chosen: range) -> Timeline | None:
        """When these are shown, 0 being the first frame; None where the k-th of them is at k / rate."""
        if self.steady:
            return None if chosen == range(len(chosen)) else Timeline(1 / self.rate, tuple(chosen))
        first = self.times.stamps[0]
        return Timeline(self.times.tick, tuple(self.times.stamps[frame] - first for frame in chosen))

    def key_before(self, position: int) -> int | None:
        """The last but one key frame at or before a frame: from there on even open groups of pictures are whole.

        None where decoding has to begin at the start.
        """
        number = bisect.bisect_right(self.keys, self.times.stamps[position]) - 2
        return self.keys[number] if number > 0 else None


class Packet(NamedTuple):
    """What a container says of one packet; times are in its ticks."""

    pts: int | None
    dts: int | None
    duration: int
    hidden: bool
    corrupt: bool
    key: bool
    alpha: bool
    """Which FFmpeg's own decoders of VP8 and VP9 leave out."""


def open_video(medium: Medium) -> InputContainer:
    """Raises UserError when FFmpeg knows no such format or the file has no index."""
    import av

    path, kind = medium.path, "rawvideo" if medium.raw else None
    try:  # tags need not be UTF-8
        container = av.open(str(path), format=kind, options=dict(medium.raw), metadata_errors="replace")
    except av.error.PermissionError as error:
        raise UserError(f"{path} is not readable: change its permissions") from error
    except (av.error.FFmpegError, OSError) as error:
        raise _not_a_video(path) from error
    if container.format.name == "tty":  # FFmpeg draws any .txt file as a picture of its letters
        container.close()
        raise _not_a_video(path)
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that FFmpeg calls the best; a cover picture is none. Raises UserError when there is no other."""
    moving = _moving_streams(container)
    if not len(container.streams):
        raise _not_a_video(path)
    if not moving:
        raise UserError(f"{path} has no video stream, only audio or other data: pass a video to --data")
    best = container.streams.best("video")
    stream = best if best in moving else moving[0]
    if stream.codec_context is None:
        raise UserError(f"{path} has video of a codec that FFmpeg does not know, or is damaged: pass another to --data")
    return stream


def probe_video(medium: Medium) -> Probe:
    """Read all packets of a video, decode one frame, and say what to expect.

    Raises UserError when it is not a video, has no video stream, is transparent, or no frame can be read.
    """
    path = medium.path
    with open_video(medium) as container:
        stream = video_stream(container, path)
        packets, failed = _scan(container, stream)
        cut = failed or promised_bytes(container, stream, path) > path.stat().st_size
        shown = [p for p in packets if not p.hidden]
        first = _first_frame(medium)
        count = count_before_cut(shown) if cut else len(shown)
        if not count or not first:
            cause = "is truncated before its first complete frame" if cut else "has no frames that can be decoded"
            raise UserError(f"{path} {cause}: copy or download it again, or pass another video to --data")
        if any(p.alpha for p in packets):
            raise transparent(path, f"-c:v libvpx{'-vp9' if stream.codec_context.name == 'vp9' else ''} ")
        times, last = _times(container, stream, shown)
        hints = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        rate, steady = rate_of(times, last, hints) if times else ((hints or [DEFAULT_FPS])[-1], True)
        begins = packets[0].key and packets[0].pts == min((p.pts for p in packets if p.pts is not None), default=None)
        exact, orientation = bool(times and begins and not cut), _orientation(first)
        codes = first.color_primaries, first.color_trc, first.colorspace, first.color_range
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        shape = (1 / aspect if orientation.transpose else aspect).as_integer_ratio()
        simple = exact and orientation == Orientation() and _is_simple(container, stream, first, packets)
        return Probe(
            medium, orientation.upright_size(first.height, first.width), count, times, rate, steady, exact, cut,
            Display(*map(int, codes), *shape), orientation, simple, _keys(container, packets) if exact else (),
        )  # fmt: skip


def transparent(path: Path, decoder: str = "") -> UserError:
    """`decoder` is what FFmpeg needs to see the alpha of this file."""
    return UserError(
        f"{path} has transparent pixels, which a video frame cannot have: put them on black with ffmpeg {decoder}-i "
        f"{path.name} -vf format=gbrap,premultiply=inplace=1,format=yuv420p out.mp4"
    )


def _not_a_video(path: Path) -> UserError:
    return UserError(
        f"{path} is not a video, or is truncated before its index: check that it plays, or copy it again; --data takes "
        "a video file, a folder of images, a raw .yuv file, or the name of a clip"
    )


def _moving_streams(container: InputContainer) -> list[VideoStream]:
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


def _scan(container: InputContainer, stream: VideoStream) -> tuple[list[Packet], bool]:
    """All packets of a stream, and whether the last of them, or the end of the container, could not be read."""
    import av

    packets: list[Packet] = []
    codec = stream.codec_context.name
    try:
        for packet in container.demux(stream):
            if packet.size:  # PyAV ends with an empty one
                hidden = packet.is_discard or (codec in ("vp8", "vp9") and not _shows(codec, bytes(packet)))
                alpha = packet.has_sidedata("matroska_block_additional")
                facts = packet.pts, packet.dts, packet.duration or 0, hidden, packet.is_corrupt, packet.is_keyframe
                packets.append(Packet(*facts, alpha))
    except av.error.FFmpegError:
        return packets, True
    return packets, bool(packets) and packets[-1].corrupt


def _shows(codec: str, data: bytes) -> bool:
    """Whether a packet has a frame to show; an alternate reference frame is for other frames to lean on only.

    Source: RFC 6386, 9.1, and the uncompressed header and superframe index of the VP9 bitstream specification.
    """
    if codec == "vp8":
        return bool(data[0] & 0x10)
    flags = 0x05 if data[0] & 0x30 == 0x30 else 0x0A  # profile 3 has a bit more in front of them
    return data[-1] & 0xE0 == 0xC0 or bool(data[0] & flags)


def _first_frame(medium: Medium) -> VideoFrame | None:
    import av

    with open_video(medium) as container, contextlib.suppress(av.error.FFmpegError):
        return next(container.decode(video_stream(container, medium.path)), None)


def _times(container: InputContainer, stream: VideoStream, shown: list[Packet]) -> tuple[Timeline | None, int]:
    """By presentation time stamps, in AVI by decoding ones (others are FFmpeg's guess); and the last one's duration.

    A duration is the step to the next packet, which is that of the frame only where it is the last packet, too.
    """
    avi = container.format.name == "avi"
    for name in ("dts",) if avi else ("pts", "dts"):
        found = [getattr(packet, name) for packet in shown]
        if None not in found and len(set(found)) == len(found):
            stamps = sorted(found)
            steps = {b - a for a, b in itertools.pairwise(stamps[1:])}
            if avi and len(steps) == 1:  # FFmpeg writes the empty chunks of a late start behind the first frame
                stamps[0] = stamps[1] - steps.pop()
            last = shown[-1].duration if found[-1] == stamps[-1] else 0
            return Timeline(Fraction(stream.time_base), tuple(stamps)), last
    return None, 0


def _keys(container: InputContainer, packets: list[Packet]) -> tuple[int, ...]:
    """Of a file whose every packet is a frame with a time stamp of its own, in a format that finds key frames."""
    seekable = any(kind in container.format.name for kind in ("mov", "matroska", "rawvideo"))
    if not seekable or any(p.hidden or p.corrupt or p.pts is None or p.pts < 0 for p in packets):
        return ()
    return tuple(sorted(p.pts for p in packets if p.key))


def _is_simple(container: InputContainer, stream: VideoStream, first: VideoFrame, packets: list[Packet]) -> bool:
    """H.264 of 8 bits in 4:2:0 in MP4 or MOV without edits; that it is progressive shows while it is read."""
    return (
        "mov" in container.format.name
        and stream.codec_context.name == "h264"
        and first.format.name in ("yuv420p", "yuvj420p")
        and not (first.height % 2 or first.width % 2)
        and len(_moving_streams(container)) == 1
        and not any(p.hidden or p.pts < 0 for p in packets)
    )


_TURNS = {1: Orientation(True, True, False), 2: Orientation(False, True, True), 3: Orientation(True, False, True)}
"""Quarter turns against the clock."""


def _orientation(frame: VideoFrame) -> Orientation:
    """From the display matrix: x' = a x + c y, y' = b x + d y; angles between go to the nearest right one."""
    from av.sidedata.sidedata import Type

    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # side data of a kind that PyAV has no name for, such as EXIF: the angle is told all the same
        return _TURNS.get(round(frame.rotation / 90) % 4, Orientation())
    if matrix is None:
        return Orientation()
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(b) > abs(a):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)
