"""The bytes of a .hnerv file: prologue, index, then chunks of a header and sections. docs/format.md is its definition.

The checksums form a chain: the prologue has the CRC-32 of the index, the index that of each chunk's header, a header
those of its sections. Each is verified when its part is read; opening a file reads the prologue and the index alone.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.model.scene import MAX_SIZE

MAGIC = b"\x89HNRV\r\n\x1a"
VERSION = 6
PROLOGUE = struct.Struct("<8sHHIQI")
"""Magic, version, 0, bytes of the index as stored, bytes of the file, CRC-32 of these fields and the stored index."""

MAX_TEXT, MAX_INFLATION = 1 << 24, 64
"""Bytes of an inflated index or header, and that in stored sizes: ours inflate to three times their stored size."""
BUFFER = 1 << 20
_COPY = "copy or download it again"


class SectionEntry(NamedTuple):
    """A row of the table in a chunk's header: name, length in bytes, CRC-32."""

    name: str
    size: int
    crc: int


class ChunkEntry(NamedTuple):
    """A row of the index: `frames` from frame `first` of the video on, stored in `size` bytes of the file at `offset`.

    The first `header_bytes` of them are the chunk's header, with the checksum `crc`.
    """

    first: int
    frames: int
    offset: int
    size: int
    header_bytes: int
    crc: int


class FileIndex(NamedTuple):
    """`record` is the part that the run records of all chunks share, `size` the bytes of prologue and index."""

    path: Path
    record: dict
    chunks: list[ChunkEntry]
    size: int
    file_size: int


class ChunkHeader(NamedTuple):
    """The header of a chunk: its `record` is complete, its sections are in file order."""

    path: Path
    entry: ChunkEntry
    record: object
    encoder: object
    sections: list[SectionEntry]


class ChunkContent(NamedTuple):
    """A chunk to write. `data` are the bytes of its sections in pieces of any size."""

    frames: int
    record: dict
    encoder: dict
    sections: list[SectionEntry]
    data: Iterable[bytes]


def content_of(frames: int, record: dict, encoder: dict, sections: dict[str, bytes]) -> ChunkContent:
    """A chunk of these sections. Read back by `read_header` and `read_section`."""
    table = [SectionEntry(name, len(data), zlib.crc32(data)) for name, data in sections.items()]
    return ChunkContent(frames, record, encoder, table, sections.values())


def serialize(chunks: Sequence[ChunkContent]) -> Iterator[bytes]:
    """A file of these chunks, piece by piece. Inverse of `read_index`, `read_header` and `read_section`."""
    record = common_part([chunk.record for chunk in chunks])
    # The index comes first in the file and holds the checksums of the headers: all headers are made before the first
    # byte is yielded. They are small; the sections, which are large, pass through one piece at a time.
    headers, rows = [], []
    for chunk in chunks:
        own = own_part(chunk.record, record)
        headers.append(_deflated({"record": own, "encoder": chunk.encoder, "sections": chunk.sections}))
        size = len(headers[-1]) + sum(section.size for section in chunk.sections)
        rows.append([chunk.frames, size, len(headers[-1]), zlib.crc32(headers[-1])])
    yield from serialize_index({"record": record, "chunks": rows}, sum(row[1] for row in rows))
    for header, chunk in zip(headers, chunks, strict=True):
        yield header
        yield from chunk.data


def serialize_index(index: dict, behind: int) -> Iterator[bytes]:
    """Prologue and index of a file with `behind` more bytes. Inverse of `read_index`."""
    stored = _deflated(index)
    fields = PROLOGUE.pack(MAGIC, VERSION, 0, len(stored), PROLOGUE.size + len(stored) + behind, 0)[:-4]
    yield fields + struct.pack("<I", zlib.crc32(fields + stored)) + stored


def stored_chunks(index: FileIndex) -> Iterator[ChunkContent]:
    """The chunks of a file, to be written to another; a buffer of their sections is in memory at a time."""
    for entry in index.chunks:
        header = read_header(index, entry)
        data = _copied(index.path, entry.offset + entry.header_bytes, entry.size - entry.header_bytes)
        yield ChunkContent(entry.frames, header.record, header.encoder, header.sections, data)


def write_bitstream(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file atomically. Raises UserError when the disk does not take it."""
    try:
        with replacing(path) as file:
            file.writelines(pieces)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another -o, or free disk space") from error


def is_container(path: Path) -> bool:
    """Whether a file begins like a .hnerv file, or is named like one. Reads eight bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix == ".hnerv"
    except OSError:
        return path.suffix == ".hnerv"


def read_index(path: Path) -> FileIndex:
    """Prologue and index of a file. Raises UserError for a file that is foreign, damaged or incomplete."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: pass a .hnerv file; `hnerv encode {path} -o NAME.hnerv` creates one from a run"
        )
    try:
        with path.open("rb") as file:
            stored, size = _read_stored_index(path, file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): pass a file written by `hnerv encode`") from error
    start = PROLOGUE.size + len(stored)
    try:
        data = _inflated(stored)
        if not isinstance(data["record"], dict):
            raise TypeError("invalid record")
        return FileIndex(path, data["record"], _entries(data["chunks"], start, size), start, size)
    except (KeyError, TypeError, ValueError, RecursionError, zlib.error) as error:
        raise _foreign(path, f"index: {error}") from error


def read_header(index: FileIndex, entry: ChunkEntry) -> ChunkHeader:
    """The header of one chunk of a file. Raises UserError."""
    path, stored = index.path, _read_at(index.path, entry.offset, entry.header_bytes)
    if len(stored) != entry.header_bytes or zlib.crc32(stored) != entry.crc:
        raise UserError(f"{path} has a damaged header: {_COPY}")
    try:
        data = _inflated(stored)
        sections = [SectionEntry(str(name), int(size), int(crc)) for name, size, crc in data["sections"]]
        # The index has the size of the chunk, the header those of its sections: both must lead to the same end.
        sizes = [section.size for section in sections]
        if min(sizes, default=0) < 0 or entry.header_bytes + sum(sizes) != entry.size:
            raise ValueError("invalid section lengths")
        return ChunkHeader(path, entry, complete_record(data["record"], index.record), data["encoder"], sections)
    except (KeyError, OverflowError, TypeError, ValueError, RecursionError, zlib.error) as error:
        raise _foreign(path, f"header: {error}") from error


def read_section(header: ChunkHeader, name: str) -> bytes:
    """The bytes of one section of a chunk, verified. Raises UserError."""
    offset = header.entry.offset + header.entry.header_bytes
    for section in header.sections:
        if section.name == name:
            break
        offset += section.size
    else:
        raise UserError(f"{header.path} has no section {name!r}: {_COPY}, or encode the run again")
    data = _read_at(header.path, offset, section.size)
    if len(data) != section.size or zlib.crc32(data) != section.crc:
        raise UserError(f"{header.path} has a damaged section {name!r}: {_COPY}")
    return data


def common_part(records: Sequence[dict]) -> dict:
    """The part that all dictionaries share, at any depth: keys with values that are equal as JSON."""
    first, *others = records
    common = {}
    for key, value in first.items():
        values = [value, *(other[key] for other in others if key in other)]
        if len(values) == len(records):
            # not ==, for which 1, 1.0 and True are equal: a reader must get the type that was written
            if len({json.dumps(v) for v in values}) == 1:
                common[key] = value
            elif all(isinstance(v, dict) for v in values) and (inner := common_part(values)):
                common[key] = inner
    return common


def own_part(record: dict, common: dict) -> dict:
    """A dictionary without `common`, a `common_part` of it. Inverse of `complete_record`."""
    own = {}
    for key, value in record.items():
        if key not in common:
            own[key] = value
        elif isinstance(value, dict) and (inner := own_part(value, common[key])):
            own[key] = inner
    return own


def complete_record(own: dict, common: dict) -> dict:
    """Both together; no value of `own` replaces one of `common`, so that a chunk cannot contradict the index."""
    both = dict(own)
    for key, value in common.items():
        inner = own.get(key)
        both[key] = complete_record(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def _read_stored_index(path: Path, file: BinaryIO) -> tuple[bytes, int]:
    """The verified index as it is stored, and the size of the file."""
    actual_size = file.seek(0, 2)
    file.seek(0)
    fields = file.read(PROLOGUE.size)
    if not fields.startswith(MAGIC):
        raise UserError(f"{path} is not a .hnerv file: pass one written by `hnerv encode`")
    if len(fields) < PROLOGUE.size:
        raise UserError(f"{path} is truncated after {len(fields)} bytes: {_COPY}")
    _, version, _, stored_size, size, crc = PROLOGUE.unpack(fields)
    if version != VERSION:
        raise UserError(
            f"{path} is damaged or was written by another version of hnerv (its format is {version}, expected "
            f"{VERSION}): use that version, or {_COPY}"
        )
    if actual_size != size:
        problem = (
            f"is truncated to {actual_size} of {size} bytes" if actual_size < size else "has extra bytes after its end"
        )
        raise UserError(f"{path} {problem}: {_COPY}")
    stored = file.read(min(stored_size, size))
    if zlib.crc32(fields[:-4] + stored) != crc:
        raise UserError(f"{path} has a damaged index: {_COPY}")
    return stored, size


def _entries(rows: list, offset: int, size: int) -> list[ChunkEntry]:
    """Rows [frames, size, header bytes, CRC-32] of chunks that follow one another from `offset` to `size`."""
    entries, first = [], 0
    for row in rows:
        frames, chunk_size, header_bytes, crc = row
        if any(type(number) is not int for number in row):
            raise TypeError(f"invalid chunk {len(entries)}")
        if frames < 1 or first + frames > MAX_SIZE or not 0 < header_bytes <= chunk_size:
            raise ValueError(f"invalid chunk {len(entries)}")
        entries.append(ChunkEntry(first, frames, offset, chunk_size, header_bytes, crc))
        first, offset = first + frames, offset + chunk_size
    if not entries or offset != size:
        raise ValueError("invalid chunk lengths")
    return entries


def _deflated(data: dict) -> bytes:
    return zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 9)


def _inflated(stored: bytes) -> dict:
    """Inverse of `_deflated`. The checksum was right, so a failure means that the file was not written by `serialize`.

    A few bytes can inflate to gigabytes: no more than a plausible size is inflated.
    """
    limit = min(MAX_TEXT, MAX_INFLATION * len(stored) + 4096)
    inflater = zlib.decompressobj()  # zlib.decompress has no limit
    text = inflater.decompress(stored, limit)
    if not inflater.eof or inflater.unused_data:
        raise ValueError(f"no zlib stream of at most {limit} bytes")
    data = json.loads(text)
    if not isinstance(data, dict):
        raise TypeError("no JSON object")
    return data


def _read_at(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_COPY}") from error


def _copied(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """The `size` bytes at `offset`, a buffer at a time. Raises UserError where the file has become shorter."""
    while size:
        data = _read_at(path, offset, min(size, BUFFER))
        if not data:
            raise UserError(f"{path} was truncated while it was copied: encode the run again")
        yield data
        offset, size = offset + len(data), size - len(data)


def _foreign(path: Path, problem: str) -> UserError:
    return UserError(f"{path} does not follow the .hnerv format ({problem}): encode the run again")
