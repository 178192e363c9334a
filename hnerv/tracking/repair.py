"""Logs that a full disk or a lost machine left torn: the records that are whole stay, the others go.

An event file is a chain of records (TFRecord): length, 8 bytes; its check sum, 4; the data; its check sum, 4.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from pathlib import Path

from hnerv.files import replacing

HEADER, FOOTER = 12, 4


def repair_lines(path: Path) -> None:
    """Leaves of a file of JSON objects, one a line, the lines that are whole. A file without fault is not written."""
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    good = [line for line in lines if line.endswith(b"\n") and _is_object(line)]
    if len(good) < len(lines):
        _write(path, good)


def repair_events(path: Path) -> None:
    """Leaves of an event file the records that are whole. A file without fault is not written."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        spans = whole_records(data)
        if sum(end - start for start, end in spans) == len(data):
            return
        good = [data[start:end] for start, end in spans]
    _write(path, good)


def whole_records(data: bytes | mmap.mmap) -> list[tuple[int, int]]:
    """[start, end) of the records of an event file that are whole.

    Data is checked only where no record follows: to check all of it would take minutes in a long run's file.
    """
    spans, at = [], 0
    while at < len(data):
        end = _end(data, at)
        if end and (_end(data, end) or _data_fits(data, at, end)):
            spans.append((at, end))
            at = end
        else:
            at = _next_header(data, at + 1)
    return spans


def _end(data: bytes | mmap.mmap, at: int) -> int:
    """Of the record that begins at a place; 0 where none does, or where it is cut short."""
    if at + HEADER + FOOTER > len(data):
        return 0
    length, check = struct.unpack_from("<QI", data, at)
    end = at + HEADER + length + FOOTER
    return end if end <= len(data) and check == _sum(data[at : at + 8]) else 0


def _data_fits(data: bytes | mmap.mmap, at: int, end: int) -> bool:
    (check,) = struct.unpack_from("<I", data, end - FOOTER)
    return check == _sum(data[at + HEADER : end - FOOTER])


def _next_header(data: bytes | mmap.mmap, at: int) -> int:
    """Where the next record begins, or the end. A length below 4 GB ends with four bytes of 0."""
    place = data.find(b"\0\0\0\0", at + 4)
    while place >= 0:
        if _end(data, place - 4):
            return place - 4
        place = data.find(b"\0\0\0\0", place + 1)
    return len(data)


def _sum(data: bytes) -> int:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return masked_crc32c(data)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _write(path: Path, parts: list[bytes]) -> None:
    """Whole or not at all, under the times that the file had."""
    before = path.stat()
    with replacing(path) as file:
        file.writelines(parts)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
