"""Whether a file is complete, by what its container states of its length or parts, and what is left of it if not."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

from hnerv.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from hnerv.data.video.probing import PacketFacts

PLAYLISTS = (".m3u8", ".m3u")


def promised_bytes(container: InputContainer, stream: VideoStream, path: Path) -> int:
    """Bytes of the file as its own structure says; 0 where that says nothing."""
    kind = container.format.name
    if "mov" in kind:
        return max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    with path.open("rb") as file:
        if kind == "avi":
            return max(_riff_ends(file), default=0)
        head = file.read(4096)
    if "matroska" in kind:
        return _segment_end(head)
    place = head.find(b"filesize\0") + 9  # a number of FLV's onMetaData
    if kind != "flv" or not 9 <= place <= len(head) - 8:
        return 0
    size = struct.unpack_from(">d", head, place)[0]
    return int(size) if math.isfinite(size) else 0


def check_playlist(path: Path, nested: bool = False) -> None:
    """Raises UserError for a part of an HLS playlist that is missing, which FFmpeg skips, and for one without an end.

    For that, FFmpeg would wait, since such a playlist may grow.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return  # the error of opening it is clearer
    is_master = any(line.startswith("#EXT-X-STREAM-INF") for line in lines)
    if not is_master and "#EXT-X-ENDLIST" not in lines:
        raise UserError(f"{path} is a playlist without an end: add the line #EXT-X-ENDLIST")
    for name in (line.split("?")[0] for line in lines if line and not line.startswith("#") and "://" not in line):
        part = path.parent / unquote(name)
        if not part.exists():
            raise UserError(f"{path} lists {name}, which is missing: put it where the playlist expects it")
        if is_master and not nested:
            check_playlist(part, nested=True)


def _riff_ends(file: BinaryIO) -> Iterator[int]:
    """Where each top-level chunk ends: large files have several. Some writers count the chunk's own eight bytes, too.

    A file that was written to a pipe, or never finished, has no size.
    """
    end = 0
    while len(head := file.read(8)) == 8 and head[:4] == b"RIFF" and head[4:] not in (bytes(4), b"\xff" * 4):
        end += struct.unpack("<I", head[4:])[0]
        yield end
        end += 8
        file.seek(end)


def _segment_end(head: bytes) -> int:
    """Matroska: an EBML header, then the segment; each an id, a size of variable length, and that many bytes."""
    end = 0
    for _ in range(2):
        if len(head) < end + 12:
            return 0
        start = end + 4
        length = 9 - head[start].bit_length()
        number = int.from_bytes(head[start : start + length], "big") & ((1 << 7 * length) - 1)
        if number == (1 << 7 * length) - 1:  # unknown, as in a stream
            return 0
        end = start + length + number
    return end


def count_before_cut(packets: Sequence[PacketFacts]) -> int:
    """Frames shown before any that the cut took: a lost packet has a later dts than all, and pts >= dts."""
    intact = [p for p in packets if not p.corrupt]
    if any(p.pts is None or p.dts is None for p in intact):
        return max(len(intact) - 1, 0)
    last = max((p.dts for p in intact), default=0)
    return sum(p.pts <= last for p in intact)
