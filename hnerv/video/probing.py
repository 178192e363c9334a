"""What a video file promises, read from its packets and its first frame, and whether decord may be trusted with it."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hnerv.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DECORD_FORMATS = {
    **dict.fromkeys(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p"), 2),
    **dict.fromkeys(("yuv444p", "yuvj444p", "gray", "rgb24", "bgr24"), 1),
}
"""Pixel format -> what must divide height and width for decord's RGB to equal FFmpeg's own.

For others (10 bit, odd sizes) decord's old swscale places or filters chroma differently, by up to 80 of 255.
"""


class Orientation(NamedTuple):
    """How to put a decoded frame upright: transpose first, then flip. Source: FFmpeg's libavutil/display.h."""

    transpose: bool = False
    flip_rows: bool = False
    flip_cols: bool = False

    @property
    def mirrored(self) -> bool:
        return self.transpose ^ self.flip_rows ^ self.flip_cols

    def upright_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) as stored -> (H, W) as shown."""
        return (width, height) if self.transpose else (height, width)

    def upright(self, frame: np.ndarray) -> np.ndarray:
        """(h, w, 3) as stored -> (H, W, 3) as shown, contiguous."""
        if self.transpose:
            frame = frame.transpose(1, 0, 2)
        rows, cols = (slice(None, None, -1 if flip else 1) for flip in (self.flip_rows, self.flip_cols))
        return np.ascontiguousarray(frame[rows, cols])


class Probe(NamedTuple):
    """Facts on the one video stream that is read. H W are pixels of the upright frame."""

    path: Path
    size: tuple[int, int]
    count: int
    """Frames to expect; of a file that is cut short, those before the cut."""
    fps: float
    orientation: Orientation
    cut: bool
    trouble: str
    """Why decord is not asked, '' when it is."""
    index: SeekIndex | None
    """None where decoding from the middle is not sure to give the frames that decoding from the start gives."""


class SeekIndex(NamedTuple):
    """Time stamps, in units of the stream, ascending: of all frames, and of those that decoding can begin at."""

    frames: list[int]
    keys: list[int]

    def key_before(self, position: int) -> int | None:
        """The last but one key frame at or before a frame: from there on even open groups of pictures are whole.

        None where decoding has to begin at the start.
        """
        number = bisect.bisect_right(self.keys, self.frames[position]) - 2
        return self.keys[number] if number > 0 else None


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int
    hidden: bool
    corrupt: bool
    key: bool


class _Scan(NamedTuple):
    packets: list[_Packet]
    failed: bool
    """The container could not be read to its end."""


def open_video(path: Path) -> InputContainer:
    """Open with PyAV. Raises UserError when FFmpeg knows no such format or the file has no index."""
    import av

    try:
        container = av.open(str(path))
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
    return best if best in moving else moving[0]


def probe_video(path: Path) -> Probe:
    """Read all packets of a video, decode one frame, and say what to expect and whom to ask for it.

    Raises UserError when it is not a video, has no video stream, or no frame can be read.
    """
    with open_video(path) as container:
        stream = video_stream(container, path)
        scan = _scan(container, stream)
        cut = _is_cut(container, stream, scan, path)
        shown = [p for p in scan.packets if not p.hidden]
        count = _before_cut(shown) if cut else len(shown)
        first = _first_frame(path)
        if not count or not first:
            cause = "is truncated before its first complete frame" if cut else "has no frames that can be decoded"
            raise UserError(f"{path} {cause}: copy or download it again, or pass another video to --data")
        orientation = _orientation(first)
        size = orientation.upright_size(first.height, first.width)
        trouble = "it is truncated" if cut else _trouble(container, first, scan)
        index = None if cut else _index(container, scan)
        return Probe(path, size, count, _rate(stream), orientation, cut, trouble, index)


def _not_a_video(path: Path) -> UserError:
    return UserError(
        f"{path} is not a video, or is truncated before its index: check that it plays, or copy it again; --data takes "
        "a video file, a folder of PNG or JPEG images, or the name of a clip"
    )


def _moving_streams(container: InputContainer) -> list[VideoStream]:
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


def _scan(container: InputContainer, stream: VideoStream) -> _Scan:
    import av

    packets: list[_Packet] = []
    try:
        for packet in container.demux(stream):
            if packet.size:  # PyAV ends with an empty one
                facts = (
                    packet.pts,
                    packet.dts,
                    packet.duration or 0,
                    packet.is_discard,
                    packet.is_corrupt,
                    packet.is_keyframe,
                )
                packets.append(_Packet(*facts))
    except av.error.FFmpegError:
        return _Scan(packets, True)
    return _Scan(packets, False)


def _first_frame(path: Path) -> VideoFrame | None:
    import av

    with open_video(path) as container:
        try:
            return next(container.decode(video_stream(container, path)), None)
        except av.error.FFmpegError:
            return None


def _is_cut(container: InputContainer, stream: VideoStream, scan: _Scan, path: Path) -> bool:
    """Whether the file ends before what its header or index promises; formats without a promise never say so."""
    if scan.failed or (scan.packets and scan.packets[-1].corrupt):
        return True
    kind = container.format.name
    if "mov" in kind:
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        return end > path.stat().st_size
    if kind == "avi":
        return stream.frames > len(scan.packets)
    if "matroska" in kind or kind == "flv":
        promised = _promised_seconds(container, stream)
        ends = [float((p.pts + p.duration) * stream.time_base) for p in scan.packets if p.pts is not None]
        return bool(promised and ends) and promised - max(ends) > 1.5 / _rate(stream)
    return False


def _index(container: InputContainer, scan: _Scan) -> SeekIndex | None:
    """Of a file whose every packet is a frame with a time stamp of its own, in a format that finds key frames."""
    stamps = [p.pts for p in scan.packets]
    sure = "mov" in container.format.name or "matroska" in container.format.name
    if not sure or any(p.hidden or p.corrupt or p.pts is None or p.pts < 0 for p in scan.packets):
        return None
    if len(set(stamps)) < len(stamps):
        return None
    return SeekIndex(sorted(stamps), sorted(p.pts for p in scan.packets if p.key))


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Matroska's DURATION tag of the stream, else the container's duration where the video has it for itself."""
    match = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if match:
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6
    return None


def _before_cut(packets: list[_Packet]) -> int:
    """Frames shown before any that the cut took: a lost packet has a later dts than all, and pts >= dts."""
    whole = [p for p in packets if not p.corrupt]
    if any(p.pts is None or p.dts is None for p in whole):
        return max(len(whole) - 1, 0)
    last = max((p.dts for p in whole), default=0)
    return sum(p.pts <= last for p in whole)


def _trouble(container: InputContainer, first: VideoFrame, scan: _Scan) -> str:
    """What decord 0.6 is known to get wrong in this file, '' for nothing."""
    return next(_troubles(container, first, scan), "")


def _troubles(container: InputContainer, first: VideoFrame, scan: _Scan) -> Iterator[str]:
    stamps = [p.pts for p in scan.packets if p.pts is not None]
    step = DECORD_FORMATS.get(first.format.name)
    orientation = _orientation(first)
    if container.format.name == "mpegts":
        yield "decord returns wrong frames for MPEG-TS"
    if any(stream.codec_context.name == "mjpeg" for stream in _moving_streams(container)):
        yield "decord conceals damage in Motion JPEG differently from FFmpeg"
    if len(_moving_streams(container)) > 1:
        yield "it has more than one video stream"
    if any(p.hidden for p in scan.packets) or min(stamps, default=0) < 0:
        yield "its edit list hides frames that decord would show"
    if len(set(stamps)) < len(scan.packets):
        yield "its timestamps are missing or repeated"
    if step is None or first.height % step or first.width % step:
        yield f"decord does not convert {first.format.name} of {first.height}x{first.width} exactly"
    if orientation.mirrored or (orientation != Orientation() and "mov" not in container.format.name):
        yield "decord does not rotate it upright"


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


def _rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 24)
