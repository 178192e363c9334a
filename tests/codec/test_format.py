"""The container alone: content comes back as it was written, and every byte of a file is under a checksum."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.codec.format import (
    MAGIC,
    PROLOGUE,
    VERSION,
    ChunkContent,
    common_part,
    complete_record,
    content_of,
    is_container,
    own_part,
    read_header,
    read_index,
    read_section,
    serialize,
    stored_chunks,
    write_bitstream,
)
from hnerv.errors import UserError

RECORD = {"a": [1, 2.5, "é"], "scene": {"frames": 3, "fps": 24.0}}
SECTIONS = {"first": b"0123456789", "empty": b"", "last": bytes(range(256))}
ONE = [content_of(3, RECORD, {"epoch": 1}, SECTIONS)]
TWO = [*ONE, content_of(2, RECORD | {"scene": {"frames": 2, "fps": 24.0}, "b": {}}, {"epoch": 2}, {"x": b"12"})]


def pack(chunks: list[ChunkContent]) -> bytes:
    return b"".join(serialize(chunks))


def read_all(path: Path) -> list[tuple]:
    """(frames, record, encoder, sections) of every chunk."""
    index = read_index(path)
    headers = [read_header(index, entry) for entry in index.chunks]
    return [
        (h.entry.frames, h.record, h.encoder, {section.name: read_section(h, section.name) for section in h.sections})
        for h in headers
    ]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "file.hnerv"


def with_index(text: bytes, stored: bytes | None = None, version: int = VERSION, behind: bytes = b"") -> bytes:
    """A file with right checksums, whatever its index contains."""
    stored = zlib.compress(text) if stored is None else stored
    size = PROLOGUE.size + len(stored) + len(behind)
    fields = struct.pack("<8sHHIQ", MAGIC, version, 0, len(stored), size)
    return fields + struct.pack("<I", zlib.crc32(fields + stored)) + stored + behind


def with_header(text: bytes, sections: bytes = b"") -> bytes:
    """A file of one chunk with right checksums, whatever the header of the chunk contains."""
    stored = zlib.compress(text)
    row = [1, len(stored) + len(sections), len(stored), zlib.crc32(stored)]
    return with_index(b'{"record": {}, "chunks": [%s]}' % str(row).encode(), behind=stored + sections)


@pytest.mark.parametrize("chunks", [ONE, TWO, TWO * 5], ids=len)
def test_content_comes_back(path, chunks):
    write_bitstream(path, serialize(chunks))
    assert path.read_bytes() == pack(chunks)
    expected = [SECTIONS, {"x": b"12"}]
    assert read_all(path) == [(*c[:3], expected[k % 2]) for k, c in enumerate(chunks)]
    index = read_index(path)
    assert index.file_size == path.stat().st_size == index.size + sum(entry.size for entry in index.chunks)
    assert [entry.first for entry in index.chunks] == [sum(c.frames for c in chunks[:k]) for k in range(len(chunks))]


def test_stored_chunks_are_written_again_byte_by_byte(path):
    """Joining one file is copying it, and joining two is writing their chunks together."""
    path.write_bytes(pack(ONE))
    other = path.with_name("other.hnerv")
    other.write_bytes(pack(TWO[1:]))
    first, second = (list(stored_chunks(read_index(p))) for p in (path, other))
    assert pack(first) == pack(ONE)
    first, second = (list(stored_chunks(read_index(p))) for p in (path, other))
    assert pack(first + second) == pack(TWO)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.floats(0, 2) | st.just(""),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), JSON, max_size=3), min_size=1, max_size=3))
def test_records_without_their_common_part_are_merged_again(records):
    common = common_part(records)
    for record in records:
        assert repr_sorted(complete_record(own_part(record, common), common)) == repr_sorted(record)
    assert len(records) > 1 or (common, own_part(records[0], common)) == (records[0], {})


def repr_sorted(value: object) -> str:
    """Distinguishes 1, 1.0 and True, but no order of keys."""
    if isinstance(value, dict):
        return str(sorted((key, repr_sorted(inner)) for key, inner in value.items()))
    return repr(value)


def test_a_chunk_cannot_contradict_the_index():
    own, common = {"scene": {"fps": 3, "frames": 2}, "a": {"b": 1}}, {"scene": {"fps": 24}, "a": 5}
    assert complete_record(own, common) == {"scene": {"fps": 24, "frames": 2}, "a": 5}


def test_opening_reads_no_section(path):
    data = bytearray(pack(ONE))
    data[-1] ^= 1
    path.write_bytes(data)
    index = read_index(path)
    header = read_header(index, index.chunks[0])
    assert read_section(header, "first") == SECTIONS["first"]
    with pytest.raises(UserError, match="has a damaged section 'last': copy or download it again"):
        read_section(header, "last")
    with pytest.raises(UserError, match="no section 'other'"):
        read_section(header, "other")


def test_every_byte_is_under_a_checksum(path):
    good = pack(TWO)
    size = PROLOGUE.size
    for bit in [*range(8 * size), *(8 * byte + byte % 8 for byte in range(size, len(good)))]:
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(UserError, match="file.hnerv"):
            read_all(path)


def test_every_truncation_and_every_byte_too_many_is_found(path):
    good = pack(TWO)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match="truncated|is not a .hnerv file"):
            read_index(path)
    for more in (b"\0", good, bytes(100_000)):
        path.write_bytes(good + more)
        with pytest.raises(UserError, match="has extra bytes after its end"):
            read_index(path)


def test_sections_and_chunks_that_change_places_are_found(path):
    data = pack([content_of(1, {}, {}, {"a": b"1111", "b": b"2222"})])
    path.write_bytes(data[:-8] + data[-4:] + data[-8:-4])
    with pytest.raises(UserError, match="section 'a'"):
        read_all(path)
    chunks = [content_of(1, {}, {}, {"a": data}) for data in (b"11", b"22")]
    data = pack(chunks)
    path.write_bytes(data)
    first, second = read_index(path).chunks
    assert first.size == second.size
    path.write_bytes(data[: first.offset] + data[second.offset :] + data[first.offset : second.offset])
    with pytest.raises(UserError, match="damaged header"):
        read_all(path)


def test_a_file_that_shrinks_after_it_was_opened(path):
    path.write_bytes(pack(ONE))
    index = read_index(path)
    header = read_header(index, index.chunks[0])
    chunks = list(stored_chunks(index))
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has a damaged section"):
        read_section(header, "last")
    with pytest.raises(UserError, match="was truncated while it was copied"):
        pack(chunks)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_section(header, "last")


@pytest.mark.parametrize("version", [0, 3, 4, 5, 7, 65535])
def test_another_version_is_refused(path, version):
    path.write_bytes(with_index(b"{}", version=version))
    expected = rf"version of hnerv \(its format is {version}, expected {VERSION}\): use that version"
    with pytest.raises(UserError, match=expected):
        read_index(path)


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
        read_index(path)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="is a folder: pass a .hnerv file"):
        read_index(tmp_path)
    with pytest.raises(UserError, match="cannot be read .*: pass a file written by `hnerv encode`"):
        read_index(tmp_path / "gone.hnerv")


def test_a_container_is_recognised_by_content_or_name(tmp_path):
    (tmp_path / "a.bin").write_bytes(pack(ONE))
    (tmp_path / "b.hnerv").write_bytes(b"other")
    (tmp_path / "c.pt").write_bytes(b"other")
    names = ("a.bin", "b.hnerv", "c.pt", "gone.pt", "gone.hnerv", "")
    assert [is_container(tmp_path / name) for name in names] == [True, True, False, False, True, False]


FOREIGN = [b"", b"no json", b"\xff\xfe", b"[]", b"7", b"null", b"{}", b"[" * 100_000]
SECTION_TABLES = [
    *("5", "[5]", '[["a", 1]]', '[["a", "x", 0]]', '[["a", Infinity, 0]]', '[["a", NaN, 0]]', '[["a", null, 0]]'),
    *('[["a", 1, 0]]', '[["a", 5, 0], ["b", -5, 0]]', '[["a", 1e300, 0]]'),
]
ROWS = [
    *("[]", "null", "7", "[5]", "[[1, 0, 0, 0]]", "[[0, 4, 4, 0]]", "[[1, 4, 5, 0]]", "[[1, 4, 0, 0]]"),
    *("[[1.0, 4, 4, 0]]", "[[1, 4, 4]]", "[[1, 4, 4, 0, 0]]", "[[1, 8, 4, 0], [1, -4, -4, 0]]", "[[true, 4, 4, 0]]"),
    *("[[1, 3, 3, 0]]", "[[1, 1e3, 4, 0]]", f"[[{10**30}, 4, 4, 0]]", f"[[{1 << 25}, 4, 4, 0]]"),
]


@pytest.mark.parametrize(
    "data",
    [
        *(with_index(text) for text in FOREIGN),
        *(with_index(b'{"record": {}, "chunks": %s}' % rows.encode(), behind=bytes(4)) for rows in ROWS),
        with_index(b'{"record": 5, "chunks": [[1, 4, 4, 0]]}', behind=bytes(4)),
        with_index(b"", stored=b"this is not zlib"),
        with_index(b"", stored=zlib.compress(b"{}") + b"x"),
        *(with_header(text) for text in FOREIGN),
        *(with_header(b'{"record": {}, "encoder": {}, "sections": %s}' % rows.encode()) for rows in SECTION_TABLES),
        with_header(b'{"record": 7, "encoder": {}, "sections": []}'),
    ],
)
def test_right_checksums_with_foreign_content(path, data):
    path.write_bytes(data)
    with pytest.raises(
        UserError, match="file.hnerv does not follow the .hnerv format .*encode the run again"
    ) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [lambda bomb: with_index(b"", stored=bomb), None], ids=["index", "header"])
def test_a_bomb_is_not_inflated(path, place):
    """128 MB of spaces in 128 kB, as an index and as the header of a chunk."""
    deflater = zlib.compressobj(9)
    bomb = b"".join([*(deflater.compress(b" " * (1 << 20)) for _ in range(128)), deflater.flush()])
    row = [1, len(bomb), len(bomb), zlib.crc32(bomb)]
    header = with_index(b'{"record": {}, "chunks": [%s]}' % str(row).encode(), behind=bomb)
    path.write_bytes(place(bomb) if place else header)
    tracemalloc.start()
    with pytest.raises(UserError, match="no zlib stream of at most"):
        read_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def test_an_index_that_declares_four_gigabytes_takes_no_memory(path):
    data = bytearray(pack(ONE))
    data[12:16] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UserError, match="has a damaged index"):
        read_index(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_failing_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left.*choose another -o, or free disk space"):
        write_bitstream(tmp_path / "a.hnerv", [b"data"])
    assert list(tmp_path.iterdir()) == []
