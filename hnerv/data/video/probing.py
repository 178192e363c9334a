"""What a video file holds, read from its packets and its first frame."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnerv.errors import UserError
from hnerv.timeline import Timeline, rate_of
from hnerv.data.video.colour import UNTAGGED, Display
from hnerv.data.video.orientation import Orientation, orientation_of
from hnerv.data.video.truncation import PLAYLISTS, check_playlist, count_before_cut, promised_bytes

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

DEFAULT_FPS = Fraction(24)
"""Rate of sources that declare none."""
ONE_FRAME_EACH = {
    *("av1", "dnxhd", "dvvideo", "ffv1", "ffvhuff", "gif", "h264", "hevc", "huffyuv", "jpeg2000", "mjpeg"),
    *("mpeg1video", "mpeg2video", "png", "prores", "qtrle", "rawvideo", "utvideo", "vp8", "vp9"),
}
"""Codecs in which every shown packet gives one frame. In MPEG-4 Part 2, for one, a packet may repeat a frame."""
_NO_TIME_STAMPS = 0x80
"""AVFMT_NOTIMESTAMPS: elementary streams, for which FFmpeg makes time stamps up."""


class Medium(NamedTuple):
    """A file or folder; `raw` are FFmpeg's options for a file without a header, empty for all others."""

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
    constant: bool = True
    """Whether frame k is shown k / rate after the first."""
    timed: bool = False
    """Whether the time stamps are the file's own."""
    exact: bool = True
    """Whether `count` and `times` are those of the decoded frames: by the packets, or since they were decoded."""
    cut: bool = False
    damage: str = ""
    """Why the frames behind these cannot be decoded, with the fix; '' where none follow."""
    display: Display = UNTAGGED
    orientation: Orientation = Orientation()
    for_decord: bool = False
    """Whether decord 0.6 reads such files correctly; interlacing is checked while reading."""
    keys: tuple[int, ...] = ()
    """Time stamps of key frames, ascending; empty if seeking might return other frames."""

    def as_decoded(self, stamps: Sequence[int | None]) -> Probe:
        """With the time stamps of all frames, as they were decoded."""
        probe = self._replace(count=len(stamps), exact=True, keys=())
        if len(stamps) == self.count:
            return probe
        if not self.timed or None in stamps or any(b <= a for a, b in itertools.pairwise(stamps)):
            return probe._replace(constant=True)
        times = Timeline(self.times.tick, tuple(stamps))
        rate, constant = rate_of(times, hints=[self.rate])
        return probe._replace(times=times, rate=rate, constant=constant)

    def times_of(self, chosen: range) -> Timeline | None:
        """When these frames are shown, from the first frame of the source on; None if the k-th is shown at k / rate."""
        if self.constant:
            return None if chosen == range(len(chosen)) else Timeline(1 / self.rate, tuple(chosen))
        first = self.times.stamps[0]
        return Timeline(self.times.tick, tuple(self.times.stamps[frame] - first for frame in chosen))

    def keys_before(self, position: int) -> tuple[int, int] | None:
        """The last two key frames at or before a frame: from the first on, even an open group of pictures is complete.

        None where decoding has to begin at the start.
        """
        number = bisect.bisect_right(self.keys, self.times.stamps[position]) - 2
        return (self.keys[number], self.keys[number + 1]) if number > 0 else None


class PacketFacts(NamedTuple):
    """What a container declares of one packet; times are in its ticks."""

    pts: int | None
    dts: int | None
    duration: int
    hidden: bool
    corrupt: bool
    key: bool
    alpha: bool
    """Whether it has an alpha block, which FFmpeg's own decoders of VP8 and VP9 ignore."""


def open_video(medium: Medium) -> InputContainer:
    """Raises UserError when FFmpeg knows no such format or the file has no index."""
    import av

    path, kind = medium.path, "rawvideo" if medium.raw else None
    tags = {} if av.__version__ >= "19" else {"metadata_errors": "replace"}  # they need not be UTF-8
    try:
        container = av.open(str(path), format=kind, options=dict(medium.raw), **tags)
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
    stream = best if (best := container.streams.best("video")) in moving else moving[0]
    if stream.codec_context is None:
        raise UserError(f"{path} has video of a codec that FFmpeg does not know, or is damaged: pass another to --data")
    return stream


def codec_name(stream: VideoStream) -> str:
    """Of the codec, whichever decoder reads it: av1, not libdav1d."""
    return stream.codec_context.codec.canonical_name


def probe_video(medium: Medium) -> Probe:
    """Read all packets of a video, decode one frame, and say what to expect.

    Raises UserError when it is not a video, has no video stream, is transparent, or no frame can be read.
    """
    path = medium.path
    if path.suffix.lower() in PLAYLISTS:
        check_playlist(path)
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
        codec = codec_name(stream)
        if codec in ("vp8", "vp9") and any(p.alpha for p in packets):
            raise transparent(path, f"-c:v {'libvpx' if codec == 'vp8' else 'libvpx-vp9'} ")
        times, last = _times(container, stream, shown)
        hints = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        rate, constant = rate_of(times, last, hints) if times else ((hints or [DEFAULT_FPS])[-1], True)
        begins = packets[0].key and packets[0].pts == min((p.pts for p in packets if p.pts is not None), default=None)
        timed = times is not None and not medium.raw and not container.format.flags & _NO_TIME_STAMPS
        exact = bool(times and begins and not cut and codec in ONE_FRAME_EACH and not first.interlaced_frame)
        orientation, keys = orientation_of(first), _keys(container, packets) if exact else ()
        codes = first.color_primaries, first.color_trc, first.colorspace, first.color_range
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        shape = (1 / aspect if orientation.transpose else aspect).as_integer_ratio()
        for_decord = bool(keys) and orientation == Orientation() and _is_for_decord(container, stream, first)
        return Probe(
            medium, orientation.upright_size(first.height, first.width), count, times, rate, constant, timed, exact,
            cut, "", Display(*map(int, codes), *shape), orientation, for_decord, keys,
        )  # fmt: skip


def transparent(path: Path, decoder: str = "") -> UserError:
    """`decoder` is what FFmpeg needs to see the alpha of this file."""
    return UserError(
        f"{path} has transparency (alpha), which a video frame cannot have: put it on black with ffmpeg {decoder}-i "
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


def playable_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """All packets, but for those before the first key frame where the decoder takes them for damage."""
    skips = codec_name(stream) in ("vp8", "vp9", "av1")
    for packet in container.demux(stream):
        skips = skips and not packet.is_keyframe
        if not skips:
            yield packet


def _scan(container: InputContainer, stream: VideoStream) -> tuple[list[PacketFacts], bool]:
    """All packets of a stream, and whether the last of them, or the end of the container, could not be read."""
    import av

    packets: list[PacketFacts] = []
    codec = codec_name(stream)
    try:
        for packet in container.demux(stream):
            if packet.size:  # PyAV ends with an empty one
                hidden = packet.is_discard or (codec in ("vp8", "vp9") and not _shows(codec, bytes(packet)))
                alpha = packet.has_sidedata("matroska_block_additional")
                facts = packet.pts, packet.dts, packet.duration or 0, hidden, packet.is_corrupt, packet.is_keyframe
                packets.append(PacketFacts(*facts, alpha))
    except av.error.FFmpegError:
        return packets, True
    return packets, bool(packets) and packets[-1].corrupt


def _shows(codec: str, data: bytes) -> bool:
    """Whether a packet has a frame to show; an alternate reference frame is used only to predict others.

    Source: RFC 6386, 9.1, and the uncompressed header and superframe index of the VP9 bitstream specification.
    """
    if codec == "vp8":
        return bool(data[0] & 0x10)
    flags = 0x05 if data[0] & 0x30 == 0x30 else 0x0A  # profile 3 has a bit more in front of them
    return data[-1] & 0xE0 == 0xC0 or bool(data[0] & flags)


def _first_frame(medium: Medium) -> VideoFrame | None:
    import av

    with open_video(medium) as container, contextlib.suppress(av.error.FFmpegError):
        for packet in playable_packets(container, video_stream(container, medium.path)):
            with contextlib.suppress(av.error.FFmpegError, ValueError):  # PyAV 19: a decoder that did not open
                for frame in packet.decode():
                    return frame
    return None


def _times(container: InputContainer, stream: VideoStream, shown: list[PacketFacts]) -> tuple[Timeline | None, int]:
    """By presentation time stamps, in AVI by decoding ones (others are FFmpeg's guess); and the last one's duration.

    A duration is the step to the next packet, which is that of the frame only where it is the last packet, too. None
    where decoding time goes backwards: recordings put behind each other, each with a clock of its own.
    """
    avi, clock = container.format.name == "avi", [packet.dts for packet in shown if packet.dts is not None]
    if any(b < a for a, b in itertools.pairwise(clock)):
        return None, 0
    for name in ("dts",) if avi else ("pts", "dts"):
        found = [getattr(packet, name) for packet in shown]
        if None not in found and len(set(found)) == len(found):
            stamps = sorted(found)
            steps = {b - a for a, b in itertools.pairwise(stamps[1:])}
            if avi and len(steps) == 1 and stamps[1] - stamps[0] == 2 * min(steps):
                stamps[0] = stamps[1] - min(steps)  # FFmpeg writes the empty chunk of a late start behind a frame
            last = shown[-1].duration if found[-1] == stamps[-1] else 0
            return Timeline(Fraction(stream.time_base), tuple(stamps)), last
    return None, 0


def _keys(container: InputContainer, packets: list[PacketFacts]) -> tuple[int, ...]:
    """Time stamps of key frames, if the format can seek to them and every packet is a frame with a time stamp."""
    seekable = any(kind in container.format.name for kind in ("mov", "matroska", "rawvideo"))
    if not seekable or any(p.hidden or p.corrupt or p.pts is None or p.pts < 0 for p in packets):
        return ()
    return tuple(sorted(p.pts for p in packets if p.key))


def _is_for_decord(container: InputContainer, stream: VideoStream, first: VideoFrame) -> bool:
    """Seekable H.264 of 8 bits in 4:2:0 in MP4 or MOV; that it is progressive shows while it is read."""
    return (
        "mov" in container.format.name
        and codec_name(stream) == "h264"
        and first.format.name in ("yuv420p", "yuvj420p")
        and not (first.height % 2 or first.width % 2)
        and len(_moving_streams(container)) == 1
    )
