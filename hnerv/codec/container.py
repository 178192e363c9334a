"""The file: a prologue, a header, sections; every byte under a checksum. docs/format.md is its definition.

Opening reads prologue and header only; a section is read when it is asked for.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hnerv.errors import UserError
from hnerv.files import replacing

MAGIC = b"\x89HNRV\r\n\x1a"
VERSION, SEGMENTED = 3, 4
"""Of a file of one model, and of one that holds several such files."""
PROLOGUE = struct.Struct("<8sHHIIQI")
"""Magic, version, 0, bytes of the header as stored and inflated, bytes of the file, CRC-32 of all that + header."""

MAX_HEADER, MAX_INFLATION = 1 << 24, 64
"""Bytes of a header, and how many times its stored size: ours are some thousands, and inflate to three times that."""
_COPY = "copy or download it again"


class SectionEntry(NamedTuple):
    """A row of the header's table: name, length in bytes, CRC-32."""

    name: str
    size: int
    crc: int


class Container(NamedTuple):
    """An opened file: where it is, its header without the table, the table in file order."""

    path: Path
    header: dict
    entries: list[SectionEntry]
    header_bytes: int
    """Prologue and header, as stored."""
    offset: int = 0
    """Where it begins in the file at `path`: above 0 for a segment of a larger one."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.header_bytes + sum(entry.size for entry in self.entries)


def pack(header: dict, sections: dict[str, bytes]) -> bytes:
    """The whole file. Inverse of `open_container` and `read_section`."""
    table = [SectionEntry(name, len(data), zlib.crc32(data)) for name, data in sections.items()]
    head = pack_header({**header, "sections": table}, sum(map(len, sections.values())), VERSION)
    return b"".join([head, *sections.values()])


def pack_header(header: dict, behind: int, version: int) -> bytes:
    """Prologue and header of a file with `behind` more bytes. Inverse of `read_header`."""
    text = json.dumps(header, separators=(",", ":")).encode()
    stored = zlib.compress(text, 9)
    size = PROLOGUE.size + len(stored) + behind
    fields = PROLOGUE.pack(MAGIC, version, 0, len(stored), len(text), size, 0)[:-4]
    return fields + struct.pack("<I", zlib.crc32(fields + stored)) + stored


def write_container(path: Path, data: bytes) -> None:
    """Whole or not at all. Raises UserError when the disk does not take it."""
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another -o, or free disk space") from error


def is_container(path: Path) -> bool:
    """Whether a file begins like one of ours, or is called like one. Reads eight bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC or path.suffix == ".hnerv"
    except OSError:
        return path.suffix == ".hnerv"


def is_segmented_file(path: Path) -> bool:
    """Whether a file of ours holds segments. Reads ten bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC) + 2) == MAGIC + struct.pack("<H", SEGMENTED)
    except OSError:
        return False


def open_container(path: Path, offset: int = 0, room: int | None = None) -> Container:
    """Reads and checks prologue and header of a file of one model, or of one within the `room` bytes from `offset` on.

    Raises UserError for anything that is not a whole one of ours.
    """
    header, header_bytes, size = read_header(path, VERSION, offset, room)
    return _checked(path, header, header_bytes, size)._replace(offset=offset)


def read_header(path: Path, version: int, offset: int = 0, room: int | None = None) -> tuple[dict, int, int]:
    """Header, bytes of prologue and header, bytes of the whole. Inverse of `pack_header`. Raises UserError."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: pass a .hnerv file; `hnerv encode {path} -o NAME.hnerv` creates one from a run"
        )
    try:
        with path.open("rb") as file:
            return _read_header(path, file, version, offset, room)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): pass a file written by `hnerv encode`") from error


def read_section(container: Container, name: str) -> bytes:
    """The bytes of one section, checked. Raises UserError."""
    offset = container.offset + container.header_bytes
    for entry in container.entries:
        if entry.name == name:
            break
        offset += entry.size
    else:
        raise UserError(f"{container.path} has no section {name!r}: {_COPY}, or encode the run again")
    try:
        with container.path.open("rb") as file:
            file.seek(offset)
            data = file.read(entry.size)
    except OSError as error:
        raise UserError(f"{container.path} cannot be read ({error.strerror}): {_COPY}") from error
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise UserError(f"{container.path} has a damaged section {name!r}: {_COPY}")
    return data


def _read_header(path: Path, file: BinaryIO, wanted: int, offset: int, room: int | None) -> tuple[dict, int, int]:
    found = file.seek(0, 2) if room is None else room
    file.seek(offset)
    fields = file.read(PROLOGUE.size)
    if not fields.startswith(MAGIC):
        raise UserError(f"{path} is not a .hnerv file: pass one written by `hnerv encode`")
    if len(fields) < PROLOGUE.size:
        raise UserError(f"{path} is truncated after {len(fields)} bytes: {_COPY}")
    _, version, _, stored_size, text_size, size, crc = PROLOGUE.unpack(fields)
    if version != wanted:
        raise _of_another_format(path, version, wanted)
    if found != size:
        what = f"is truncated to {found} of {size} bytes" if found < size else "has extra bytes after its end"
        raise UserError(f"{path} {what}: {_COPY}")
    stored = file.read(min(stored_size, size))
    if zlib.crc32(fields[:-4] + stored) != crc:
        raise UserError(f"{path} has a damaged header: {_COPY}")
    return _inflate(path, stored, text_size), PROLOGUE.size + len(stored), size


def _of_another_format(path: Path, version: int, wanted: int) -> UserError:
    if (version, wanted) == (SEGMENTED, VERSION):
        return UserError(
            f"{path} holds a video in segments, but a single segment is needed: create one with "
            "`hnerv encode RUN/segments/00000 -o ONE.hnerv`"
        )
    return UserError(
        f"{path} is damaged or was written by another version of hnerv (its format is {version}, expected {wanted}): "
        f"use that version, or {_COPY}"
    )


def _inflate(path: Path, stored: bytes, text_size: int) -> dict:
    """The checksum is right, so what fails here was not written by us; no more than announced is inflated."""
    try:
        if text_size > min(MAX_HEADER, MAX_INFLATION * len(stored) + 4096):
            raise ValueError(f"its header declares {text_size} bytes")
        text = zlib.decompressobj().decompress(stored, text_size + 1)
        if len(text) != text_size:
            raise ValueError(f"its header does not inflate to {text_size} bytes")
        header = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path} does not follow the .hnerv format ({error}): encode the run again") from error
    return header


def _checked(path: Path, header: dict, header_bytes: int, size: int) -> Container:
    try:
        entries = [SectionEntry(str(name), int(length), int(crc)) for name, length, crc in header.pop("sections")]
        whole = all(entry.size >= 0 for entry in entries) and header_bytes + sum(e.size for e in entries) == size
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not follow the .hnerv format (invalid section table): encode the run again"
        ) from error
    if not whole:
        raise UserError(f"{path} does not follow the .hnerv format (invalid section lengths): encode the run again")
    return Container(path, header, entries, header_bytes)
