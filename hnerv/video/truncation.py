"""Whether a file was cut short, which its container says better than any duration, and what is left of it then."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from hnerv.video.probing import Packet


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
    size = head.find(b"filesize\0") + 9  # a number of FLV's onMetaData
    return int(struct.unpack_from(">d", head, size)[0]) if kind == "flv" and size > 8 else 0


def _riff_ends(file: BinaryIO) -> Iterator[int]:
    """Where each top-level chunk ends: large files have several. A file that was never finished says 0."""
    end = 0
    while len(head := file.read(8)) == 8 and head[:4] == b"RIFF":
        end += 8 + struct.unpack("<I", head[4:])[0]
        yield end
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


def count_before_cut(packets: Sequence[Packet]) -> int:
    """Frames shown before any that the cut took: a lost packet has a later dts than all, and pts >= dts."""
    whole = [p for p in packets if not p.corrupt]
    if any(p.pts is None or p.dts is None for p in whole):
        return max(len(whole) - 1, 0)
    last = max((p.dts for p in whole), default=0)
    return sum(p.pts <= last for p in whole)
