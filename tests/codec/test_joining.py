"""A video in segments as one file: each segment is found, read alone, and drawn as its own file draws it."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from hnerv.codec import (
    Bitstream,
    Film,
    Options,
    encode_run,
    open_film,
    play,
    play_film,
    write_container,
    write_film,
)
from hnerv.codec import file as file_module
from hnerv.codec.container import PROLOGUE, SEGMENTED, is_segmented_file, pack_header, read_header, read_section
from hnerv.errors import UserError
from hnerv.runs.opening import open_checkpoint

CPU = torch.device("cpu")
NAMES = ("grid", "grid", "encoder")
"""Three segments of twelve frames each."""


@pytest.fixture(scope="module")
def joined(coded, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("joined") / "whole.hnerv"
    write_film(path, [coded(name) for name in NAMES])
    return path


@pytest.fixture(scope="module")
def pictures(coded) -> np.ndarray:
    """All frames, drawn by the files that were joined."""
    streams = [Bitstream(coded(name)) for name in NAMES]
    return np.stack([picture for s in streams for picture in play(s.model(), range(12))])


def test_every_byte_of_the_parts_is_there(joined, coded):
    film = open_film(joined)
    parts = [coded(name).read_bytes() for name in NAMES]
    whole = joined.read_bytes()
    assert whole[film.header_bytes :] == b"".join(parts) and film.size == len(whole) and film.frames == 36
    assert [(p.first, p.frames) for p in film.parts] == [(0, 12), (12, 12), (24, 12)]
    assert all(whole[p.offset : p.offset + p.size] == part for p, part in zip(film.parts, parts, strict=True))
    assert is_segmented_file(joined) and not is_segmented_file(coded("grid"))
    assert film.header_bytes < 300


def test_a_file_of_one_model_is_a_film_too(coded):
    film = open_film(coded("grid"))
    assert film.frames == 12 and film.header_bytes == 0 and len(film.parts) == 1
    assert np.array_equal(next(play_film(film, [7], CPU)), next(play(Bitstream(coded("grid")).model(), [7])))


@pytest.mark.parametrize(
    "frames", [range(36), range(10, 14), range(35, -1, -7), range(23, 25), range(24, 25), range(11, 12)], ids=str
)
def test_frames_of_the_whole(joined, pictures, frames):
    assert np.array_equal(np.stack(list(play_film(open_film(joined), frames, CPU))), pictures[list(frames)])


def test_a_patch_of_the_whole(joined, pictures):
    found = np.stack(list(play_film(open_film(joined), range(8, 30), CPU, patch=5)))
    grid = open_film(joined).grid
    top, left = grid.origin_of(5)
    height, width = grid.patch_size
    assert np.array_equal(found, pictures[8:30, top : top + height, left : left + width])


def test_a_time_range_reads_its_segments_alone(joined, monkeypatch):
    read = []
    monkeypatch.setattr(
        file_module, "read_section", lambda c, name: read.append((c.offset, name)) or read_section(c, name)
    )
    film = open_film(joined)
    list(play_film(film, range(13, 20), CPU))
    assert {offset for offset, _ in read} == {film.parts[1].offset}
    assert not any("clip" in name for _, name in read)


def test_damage_elsewhere_does_not_matter(joined, pictures, tmp_path):
    film, data = open_film(joined), bytearray(joined.read_bytes())
    data[film.parts[2].offset + 200] ^= 4
    path = tmp_path / "damaged.hnerv"
    path.write_bytes(data)
    assert np.array_equal(np.stack(list(play_film(open_film(path), range(24), CPU))), pictures[:24])
    with pytest.raises(UserError, match="damaged.*frames 24 to 35; the other frames may be intact"):
        list(play_film(open_film(path), range(24, 36), CPU))


def test_every_bit_of_the_index_is_watched_over(joined, tmp_path):
    good, path = joined.read_bytes(), tmp_path / "flipped.hnerv"
    for bit in range(8 * open_film(joined).header_bytes):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(UserError):
            open_film(path)


def test_cut_short_or_longer(joined, tmp_path):
    good, path = joined.read_bytes(), tmp_path / "cut.hnerv"
    for size in [*range(0, 400, 7), len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(UserError):
            open_film(path)
    path.write_bytes(good + b"x")
    with pytest.raises(UserError, match="has extra bytes after its end"):
        open_film(path)


def forged(joined: Path, path: Path, **changes: object) -> Path:
    """The file under another header with sound checksums."""
    header, header_bytes, size = read_header(joined, SEGMENTED)
    behind = joined.read_bytes()[header_bytes:]
    path.write_bytes(pack_header(header | changes, len(behind), SEGMENTED) + behind)
    return path


def test_forged_by_nobody(joined, tmp_path):
    assert open_film(forged(joined, tmp_path / "same.hnerv")).parts == open_film(joined).parts


@pytest.mark.parametrize(
    "changes",
    [
        {"segments": []},
        {"segments": None},
        {"segments": [[12, 10]]},
        {"segments": [[12, 0], [12, 10]]},
        {"segments": [[0, 10]]},
        {"segments": [[12.0, 10]]},
        {"segments": [[12, 10, 3]]},
        {"segments": [[12, 1 << 70]]},
        {"segments": [[10**30, 10]]},
        {"segments": [[10**9, 10]]},
        {"facts": {}},
        {"facts": None},
    ],
)
def test_what_no_writer_writes(joined, tmp_path, changes):
    with pytest.raises(UserError, match="does not follow the .hnerv format"):
        open_film(forged(joined, tmp_path / "forged.hnerv", **changes))


def test_an_index_that_lies(joined, tmp_path):
    film = open_film(joined)
    rows = [[p.frames, p.size] for p in film.parts]
    rows[0][0] = 13
    with pytest.raises(UserError, match="has a segment at frame 0 that does not match its index"):
        list(play_film(open_film(forged(joined, tmp_path / "a.hnerv", segments=rows)), [0], CPU))
    facts = film.facts | {"fps": 3.0}
    with pytest.raises(UserError, match="segment at frame 0 that does not match"):
        list(play_film(open_film(forged(joined, tmp_path / "b.hnerv", facts=facts)), [0], CPU))
    rows = [[p.frames, p.size] for p in film.parts]
    rows[0][1], rows[1][1] = rows[0][1] + 1, rows[1][1] - 1
    with pytest.raises(UserError):
        list(play_film(open_film(forged(joined, tmp_path / "c.hnerv", segments=rows)), [0], CPU))


def test_a_part_that_promises_too_much_takes_no_memory(joined, tmp_path):
    film = open_film(joined)
    rows = [[p.frames, p.size] for p in film.parts]
    rows[1][0] = 16_000_000
    path = forged(joined, tmp_path / "huge.hnerv", segments=rows)
    tracemalloc.start()
    with pytest.raises(UserError, match="segment at frame 12 that does not match"):
        list(play_film(open_film(path), range(12, 16_000_000), CPU))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_other_geometry_is_no_segment_of_it(coded, tmp_path, train, flags):
    assert train(tmp_path, flags(grid="2x2", clip_targets=None, clip_weights="none", epochs=2)) == 0
    found, other = open_checkpoint(tmp_path / "run" / "checkpoints" / "latest.pt"), tmp_path / "other.hnerv"
    write_container(other, encode_run(found.model, found.record, Options(), None, {}))
    with pytest.raises(UserError, match="differ in frame size, .* join segments of one run"):
        write_film(tmp_path / "x.hnerv", [coded("grid"), other])
    assert not list(tmp_path.glob("*x.hnerv*"))


def test_who_takes_one_model_says_so(joined):
    with pytest.raises(UserError, match="holds a video in segments, but a single segment is needed"):
        Bitstream(joined)


def test_another_format_is_called_so(joined, tmp_path):
    data = bytearray(joined.read_bytes())
    struct.pack_into("<H", data, 8, SEGMENTED + 1)
    path = tmp_path / "newer.hnerv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"another version of hnerv .its format is {SEGMENTED + 1}"):
        open_film(path)
    assert PROLOGUE.size == 32


def test_the_index_grows_by_bytes(coded, tmp_path):
    """300 segments: what a reader of one has to read before it."""
    path = tmp_path / "long.hnerv"
    write_film(path, [coded("grid")] * 300)
    film = open_film(path)
    assert isinstance(film, Film) and film.frames == 3600 and film.header_bytes < 600
    assert len(list(play_film(film, range(1795, 1805), CPU))) == 10
