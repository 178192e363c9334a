"""The container alone: what went in comes out, and every byte of the file is watched over."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from hnerv.codec.container import (
    MAGIC,
    PROLOGUE,
    VERSION,
    is_container,
    open_container,
    pack,
    read_section,
    write_container,
)
from hnerv.errors import UserError

HEADER = {"record": {"a": [1, 2.5, "é"]}, "encoder": {}}
SECTIONS = {"first": b"0123456789", "empty": b"", "last": bytes(range(256))}


def read_all(path: Path) -> tuple[dict, dict[str, bytes]]:
    opened = open_container(path)
    return opened.header, {entry.name: read_section(opened, entry.name) for entry in opened.entries}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "file.hnerv"


def with_header(text: bytes, inflated: int | None = None, stored: bytes | None = None, version: int = VERSION) -> bytes:
    """A file without sections whose checksums are right, whatever its header says."""
    stored = zlib.compress(text) if stored is None else stored
    inflated = len(text) if inflated is None else inflated
    fields = struct.pack("<8sHHIIQ", MAGIC, version, 0, len(stored), inflated, PROLOGUE.size + len(stored))
    return fields + struct.pack("<I", zlib.crc32(fields + stored)) + stored


def test_what_went_in_comes_out(path):
    data = pack(HEADER, SECTIONS)
    write_container(path, data)
    assert path.read_bytes() == data
    assert read_all(path) == (HEADER, SECTIONS)
    opened = open_container(path)
    assert opened.size == len(data) == opened.header_bytes + sum(map(len, SECTIONS.values()))
    assert [entry.name for entry in opened.entries] == list(SECTIONS)


def test_opening_reads_no_section(path):
    data = bytearray(pack(HEADER, SECTIONS))
    data[-1] ^= 1
    path.write_bytes(data)
    opened = open_container(path)
    assert read_section(opened, "first") == SECTIONS["first"]
    with pytest.raises(UserError, match="has a damaged section 'last': copy or download it again"):
        read_section(opened, "last")
    with pytest.raises(UserError, match="no section 'other'"):
        read_section(opened, "other")


def test_every_bit_of_the_file_is_watched_over(path):
    good = pack(HEADER, SECTIONS)
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(UserError):
            read_all(path)


def test_every_truncation_and_every_byte_too_many_is_found(path):
    good = pack(HEADER, SECTIONS)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(UserError):
            open_container(path)
    for more in (b"\0", b"x", good, bytes(100_000)):
        path.write_bytes(good + more)
        with pytest.raises(UserError, match="has extra bytes after its end"):
            open_container(path)


def test_sections_that_change_places_are_found(path):
    data = pack(HEADER, {"a": b"1111", "b": b"2222"})
    path.write_bytes(data[:-8] + data[-4:] + data[-8:-4])
    with pytest.raises(UserError, match="section 'a'"):
        read_all(path)


def test_a_file_that_shrinks_after_it_was_opened(path):
    path.write_bytes(pack(HEADER, SECTIONS))
    opened = open_container(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has a damaged section"):
        read_section(opened, "last")
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_section(opened, "last")


@pytest.mark.parametrize("version", [0, 1, 65535])
def test_another_version_is_called_so(path, version):
    path.write_bytes(with_header(b'{"sections": []}', version=version))
    with pytest.raises(
        UserError, match=rf"version of hnerv \(its format is {version}, expected {VERSION}\): use that version"
    ):
        open_container(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a .hnerv file: pass one"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a .hnerv file: pass one"),
        (MAGIC, "truncated after 8 bytes"),
        (MAGIC + b"\1\0", "truncated after 10 bytes"),
    ],
)
def test_other_files(path, content, words):
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_container(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is a folder: pass a .hnerv file"):
        open_container(tmp_path)
    with pytest.raises(UserError, match="cannot be read .*: pass a file written by `hnerv encode`"):
        open_container(tmp_path / "gone.hnerv")


def test_what_a_container_is(tmp_path):
    (tmp_path / "a.bin").write_bytes(pack(HEADER, {}))
    (tmp_path / "b.hnerv").write_bytes(b"other")
    (tmp_path / "c.pt").write_bytes(b"other")
    (tmp_path / "d.pt").write_bytes(b"")
    found = [
        is_container(tmp_path / name) for name in ("a.bin", "b.hnerv", "c.pt", "d.pt", "gone.pt", "gone.hnerv", "")
    ]
    assert found == [True, True, False, False, False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no json",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b'{"sections": 5}',
        b'{"sections": [5]}',
        b'{"sections": [["a", 1]]}',
        b'{"sections": [["a", "x", 0]]}',
        b'{"sections": [["a", Infinity, 0]]}',
        b'{"sections": [["a", NaN, 0]]}',
        b'{"sections": [["a", null, 0]]}',
        b'{"sections": [["a", 1, 0]]}',
        b'{"sections": [["a", 5, 0], ["b", -5, 0]]}',
        b'{"sections": [["a", 1e300, 0]]}',
        b'{"sections": {}, "sections": [[[], [], []]]}',
        b"[" * 100_000,
    ],
)
def test_headers_with_right_checksums_that_are_not_ours(path, text):
    path.write_bytes(with_header(text))
    with pytest.raises(UserError, match="does not follow the .hnerv format .*encode the run again"):
        open_container(path)


@pytest.mark.parametrize("inflated", [0, 1, 15, 17, 2**20, 2**32 - 1])
def test_a_header_of_another_size_than_announced(path, inflated):
    path.write_bytes(with_header(b'{"sections": []}', inflated=inflated))
    with pytest.raises(UserError, match="does not inflate to|declares"):
        open_container(path)


def test_a_header_that_is_no_zlib_stream(path):
    path.write_bytes(with_header(b"", 100, stored=b"this is not zlib"))
    with pytest.raises(UserError, match="does not follow the .hnerv format"):
        open_container(path)


@pytest.mark.parametrize("announced", [20, 1 << 20])
def test_a_bomb_is_not_inflated_beyond_what_it_announces(path, announced):
    """64 MB of spaces in 64 kB."""
    squeeze = zlib.compressobj(9)
    bomb = b"".join([*(squeeze.compress(b" " * (1 << 20)) for _ in range(64)), squeeze.flush()])
    path.write_bytes(with_header(b"", announced, stored=bomb))
    tracemalloc.start()
    with pytest.raises(UserError, match="does not inflate to|declares"):
        open_container(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * announced + 4 * len(bomb) + 100_000


def test_a_promised_header_of_four_gigabytes_takes_no_memory(path):
    data = bytearray(pack(HEADER, SECTIONS))
    data[12:16] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UserError, match="has a damaged header"):
        open_container(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_disk_that_fails_is_an_error_in_words(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left.*choose another -o, or free disk space"):
        write_container(tmp_path / "a.hnerv", b"data")
    assert list(tmp_path.iterdir()) == []
