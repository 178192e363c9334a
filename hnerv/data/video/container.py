"""Video files as containers: how FFmpeg opens them, the packets of their video stream, and whether they are complete.

Packets are read from the first to the last, since headers do not give the number of frames: Matroska and MPEG-TS store
none, durations are rounded or estimated from the bitrate, and the table of MP4 counts frames that an edit list hides.
Reading packets decodes nothing and costs little more than reading the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import unquote

from hnerv.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

PLAYLISTS = (".m3u8", ".m3u")


class InputSpec(NamedTuple):
    """Path of a file or folder, and FFmpeg's options to read raw video, empty for files with a header."""

    path: Path
    raw: tuple[tuple[str, str], ...] = ()


class PacketInfo(NamedTuple):
    """What the container declares about a packet; times are in ticks of the stream."""

    pts: int | None
    dts: int | None
    duration: int
    hidden: bool
    """Decoded but not shown: before the start of an edit list, or an alternate reference frame of VP8 or VP9."""
    corrupt: bool
    key: bool
    alpha: bool
    """Whether it has a separate alpha block, which FFmpeg's own decoders of VP8 and VP9 ignore."""


def open_container(spec: InputSpec) -> InputContainer:
    """Raises UserError if FFmpeg does not recognise the format or the file has no index."""
    import av

    path, kind = spec.path, "rawvideo" if spec.raw else None
    # Tags such as titles need not be UTF-8. PyAV 18 raises by default; PyAV 19 reads them, and has no such argument.
    metadata = {} if av.__version__ >= "19" else {"metadata_errors": "replace"}
    try:
        container = av.open(str(path), format=kind, options=dict(spec.raw), **metadata)
    except av.error.PermissionError as error:
        raise UserError(f"{path} is not readable: change its permissions") from error
    except (av.error.FFmpegError, OSError) as error:
        raise _not_a_video(path) from error
    if container.format.name == "tty":  # FFmpeg's ANSI art demuxer renders any text file as video
        container.close()
        raise _not_a_video(path)
    return container


def moving_streams(container: InputContainer) -> list[VideoStream]:
    """Video streams without cover pictures and thumbnails."""
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & still]


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that FFmpeg ranks best, unless it is a cover picture. Raises UserError if there is no video."""
    moving = moving_streams(container)
    if not len(container.streams):
        raise _not_a_video(path)
    if not moving:
        raise UserError(f"{path} has no video stream, only audio or other data: pass a video to --data")
    stream = best if (best := container.streams.best("video")) in moving else moving[0]
    if stream.codec_context is None:
        raise UserError(f"{path} has video of a codec that FFmpeg does not know, or is damaged: pass another to --data")
    return stream


def codec_name(stream: VideoStream) -> str:
    """Name of the codec, independent of the decoder: av1, not libdav1d."""
    return stream.codec_context.codec.canonical_name


def playable_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """All packets. Those before the first key frame are dropped for decoders that fail on them instead of skipping."""
    skip = codec_name(stream) in ("vp8", "vp9", "av1")
    for packet in container.demux(stream):
        skip = skip and not packet.is_keyframe
        if not skip:
            yield packet


def scan_packets(container: InputContainer, stream: VideoStream) -> tuple[list[PacketInfo], bool]:
    """All packets of a stream, and whether the last one or the end of the container is unreadable."""
    import av

    packets: list[PacketInfo] = []
    codec = codec_name(stream)
    try:
        for packet in container.demux(stream):
            if packet.size:  # PyAV ends with an empty packet, which flushes a decoder
                hidden = packet.is_discard or (codec in ("vp8", "vp9") and not shows_frame(codec, bytes(packet)))
                alpha = packet.has_sidedata("matroska_block_additional")
                times = packet.pts, packet.dts, packet.duration or 0
                packets.append(PacketInfo(*times, hidden, packet.is_corrupt, packet.is_keyframe, alpha))
    except av.error.FFmpegError:
        return packets, True
    return packets, bool(packets) and packets[-1].corrupt


def shows_frame(codec: str, data: bytes) -> bool:
    """Whether a packet of VP8 or VP9 holds a frame to show, not only a reference for predicting others.

    Source: RFC 6386, section 9.1; the uncompressed header and the superframe index of the VP9 bitstream specification.
    """
    if codec == "vp8":
        return bool(data[0] & 0x10)
    # show_existing_frame or show_frame; in profile 3 a reserved bit before them shifts both.
    flags = 0x05 if data[0] & 0x30 == 0x30 else 0x0A
    return data[-1] & 0xE0 == 0xC0 or bool(data[0] & flags)  # a superframe ends in a marker 110xxxxx


def declared_bytes(container: InputContainer, stream: VideoStream, path: Path) -> int:
    """Size of the file according to its own structure, 0 if unknown: a shorter file was truncated."""
    kind = container.format.name
    if "mov" in kind:
        return max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    with path.open("rb") as file:
        if kind == "avi":
            return max(_riff_ends(file), default=0)
        head = file.read(4096)
    if "matroska" in kind:
        return _segment_end(head)
    offset = head.find(b"filesize\0") + 9  # the type byte 0 of a number, then a double, in FLV's onMetaData
    if kind != "flv" or not 9 <= offset <= len(head) - 8:
        return 0
    size = struct.unpack_from(">d", head, offset)[0]
    return int(size) if math.isfinite(size) else 0


def _riff_ends(file: BinaryIO) -> Iterator[int]:
    """Ends of the top-level chunks of an AVI file: large files have several, streamed ones a size of 0 or -1.

    The eight bytes of the chunk header are not added, as some writers count them already: a file is taken as complete
    rather than refused.
    """
    end = 0
    while len(head := file.read(8)) == 8 and head[:4] == b"RIFF" and head[4:] not in (bytes(4), b"\xff" * 4):
        end += struct.unpack("<I", head[4:])[0]
        yield end
        end += 8
        file.seek(end)


def _segment_end(head: bytes) -> int:
    """End of a Matroska segment, 0 if unknown.

    The file is an EBML header, then the segment. Each has an id of 4 bytes, a size, and as many bytes. The leading
    zeros of the size's first byte give its length, 1 to 8 bytes of 7 bits each; all ones mean unknown, as in a stream.
    """
    end = 0
    for _ in range(2):
        if len(head) < end + 12:
            return 0
        start = end + 4
        length = 9 - head[start].bit_length()
        unknown = (1 << 7 * length) - 1
        size = int.from_bytes(head[start : start + length], "big") & unknown
        if size == unknown:
            return 0
        end = start + length + size
    return end


def count_before_cut(packets: Sequence[PacketInfo]) -> int:
    """Frames shown before any frame that a truncation removed.

    Packets are stored by dts, and pts >= dts. A missing packet has a dts, hence a pts, above all dts that are left. So
    a frame is complete if its pts does not exceed the last dts.
    """
    intact = [p for p in packets if not p.corrupt]
    if any(p.pts is None or p.dts is None for p in intact):
        return max(len(intact) - 1, 0)
    last = max((p.dts for p in intact), default=0)
    return sum(p.pts <= last for p in intact)


def check_playlist(path: Path, nested: bool = False) -> None:
    """Raises UserError for an HLS playlist with missing parts or without an end.

    FFmpeg silently skips missing parts, and polls a playlist without an end, since it may be live.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return  # opening it gives a clearer error
    is_master = any(line.startswith("#EXT-X-STREAM-INF") for line in lines)
    if not is_master and "#EXT-X-ENDLIST" not in lines:
        raise UserError(f"{path} is a playlist without an end: add the line #EXT-X-ENDLIST")
    for name in (line.split("?")[0] for line in lines if line and not line.startswith("#") and "://" not in line):
        part = path.parent / unquote(name)
        if not part.exists():
            raise UserError(f"{path} lists {name}, which is missing: put it where the playlist expects it")
        if is_master and not nested:
            check_playlist(part, nested=True)


def _not_a_video(path: Path) -> UserError:
    return UserError(
        f"{path} is not a video, or is truncated before its index: check that it plays, or copy it again; --data takes "
        "a video file, a folder of images, a raw .yuv file, or the name of a clip"
    )
