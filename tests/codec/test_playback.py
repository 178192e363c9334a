"""Frames, slices and patches, of one chunk and of several: the same pixels whatever else is decoded or damaged."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hnerv.codec import (
    BitstreamFile,
    Options,
    encode_run,
    has_several_chunks,
    join_files,
    open_single_chunk,
    play,
    play_patch,
    play_video,
    write_bitstream,
)
from hnerv.codec import file as file_module
from hnerv.codec.format import content_of, read_index, read_section, serialize, serialize_index
from hnerv.errors import UserError
from hnerv.model.predict import predict
from hnerv.runs.models import open_checkpoint

CPU = torch.device("cpu")
NAMES = ("grid", "grid", "encoder")
"""Runs of the three chunks of `joined`, twelve frames each."""
KINDS = ["grid", "encoder", "pe", "convnext", "long"]


@pytest.fixture(scope="module")
def frames_of(coded) -> Callable[[str], np.ndarray]:
    """frames_of(name) -> every frame (N, H, W, 3) uint8 of a file of one chunk."""
    made: dict[str, np.ndarray] = {}

    def build(name: str) -> np.ndarray:
        if name not in made:
            chunk = open_single_chunk(coded(name))
            made[name] = np.stack(list(play(chunk.model(), range(chunk.scene.frames))))
        return made[name]

    return build


@pytest.fixture(scope="module")
def joined(coded, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("joined") / "joined.hnerv"
    join_files(path, [coded(name) for name in NAMES])
    return path


@pytest.fixture(scope="module")
def pictures(frames_of) -> np.ndarray:
    """All frames of `joined`, decoded from the files that were joined."""
    return np.concatenate([frames_of(name) for name in NAMES])


def decoded(path: Path, frames: range, patch: int | None = None) -> np.ndarray:
    return np.stack(list(play_video(BitstreamFile(path), frames, CPU, patch)))


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_the_rounded_output_of_the_model(coded, frames_of, name):
    chunk = open_single_chunk(coded(name))
    model, found = chunk.model(), frames_of(name)
    assert found.shape == (chunk.scene.frames, 32, 64, 3) and found.dtype == np.uint8
    positions = torch.randperm(chunk.scene.frames, generator=torch.Generator().manual_seed(0))
    for where in positions.split(4):
        rgb = predict(model, where.float()).rgb
        by_hand = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        assert np.array_equal(by_hand.numpy(), found[where])


@pytest.mark.parametrize("frames", [range(3, 9), range(10, 1, -3), range(0, 12, 5), range(11, 12)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_a_slice_of_frames_is_cut_from_all(coded, frames_of, name, frames):
    assert np.array_equal(decoded(coded(name), frames), frames_of(name)[list(frames)])


@pytest.mark.parametrize(
    "frames", [range(36), range(10, 14), range(35, -1, -7), range(23, 25), range(24, 25), range(11, 12)], ids=str
)
def test_frames_of_several_chunks(joined, pictures, frames):
    assert np.array_equal(decoded(joined, frames), pictures[list(frames)])


@pytest.mark.parametrize("frame", range(0, 40, 3))
def test_a_frame_alone_reads_only_its_slices(coded, frames_of, monkeypatch, frame):
    """40, 20 and 10 knots: in slices of 16, a frame needs one or two of each level."""
    read = []
    monkeypatch.setattr(file_module, "read_section", lambda h, name: read.append(name) or read_section(h, name))
    model = open_single_chunk(coded("long")).model(("rgb_head",), range(frame, frame + 1))
    assert np.array_equal(next(play(model, range(frame, frame + 1))), frames_of("long")[frame])
    assert "clip_head" not in read and "rgb_head" in read
    for level, knots in enumerate((40, 20, 10)):
        place = frame * (knots - 1) / 39
        needed = {int(place) // 16, min(int(place + 0.999999), knots - 1) // 16}
        found = {int(name.split("[")[1].split(":")[0]) // 16 for name in read if f"levels.{level}[" in name}
        assert needed <= found and len(found) <= 2 and (knots > 16 or found == {0})
        if 1 < place % 16 < 14:
            assert found == needed


def test_a_range_of_frames_reads_its_chunks_alone(joined, monkeypatch):
    read = []
    monkeypatch.setattr(
        file_module, "read_section", lambda h, name: read.append((h.entry.first, name)) or read_section(h, name)
    )
    decoded(joined, range(13, 20))
    assert {first for first, _ in read} == {12} and not any("clip" in name for _, name in read)


@pytest.mark.parametrize("name", KINDS)
def test_patches_are_cut_from_the_frames(coded, frames_of, name):
    chunk = open_single_chunk(coded(name))
    model, grid = chunk.model(("rgb_head",)), chunk.scene.grid
    for patch in range(grid.patches):
        (top, left), (height, width) = grid.origin_of(patch), grid.patch_size
        found = np.stack(list(play_patch(model, range(chunk.scene.frames), patch))).astype(int)
        cut = frames_of(name)[:, top : top + height, left : left + width]
        # a convolution over fewer pixels may add up in another order, and a pixel round the other way
        assert np.abs(found - cut).max() <= 1 and (found != cut).mean() < 1e-3


def test_a_patch_of_several_chunks(joined, pictures):
    grid = BitstreamFile(joined).grid
    (top, left), (height, width) = grid.origin_of(5), grid.patch_size
    assert np.array_equal(decoded(joined, range(8, 30), 5), pictures[8:30, top : top + height, left : left + width])


def test_memory_does_not_grow_with_the_video(coded):
    """Frames come four at a time: the first is there when no more have been computed."""
    model, calls = open_single_chunk(coded("long")).model(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    frames = play(model, range(40))
    for count in range(1, 13):
        next(frames)
        assert len(calls) == -(-count // 4)


def test_joining_keeps_records_and_sections(joined, coded, tmp_path):
    file, parts = BitstreamFile(joined), [open_single_chunk(coded(name)) for name in NAMES]
    assert file.size == joined.stat().st_size and file.frames == 36
    assert [(entry.first, entry.frames) for entry in file.chunks] == [(0, 12), (12, 12), (24, 12)]
    for chunk, part in zip(file.opened_chunks, parts, strict=True):
        assert chunk.record == part.record and chunk.encoder == part.encoder
        assert chunk.header.sections == part.header.sections
        assert all(read_section(chunk.header, s.name) == read_section(part.header, s.name) for s in part.sections)
    join_files(tmp_path / "again.hnerv", [joined])
    join_files(tmp_path / "nested.hnerv", [coded(NAMES[0]), tmp_path / "again.hnerv"])
    nested = BitstreamFile(tmp_path / "nested.hnerv")
    assert [chunk.record for chunk in nested.opened_chunks] == [parts[0].record, *(part.record for part in parts)]
    assert np.array_equal(decoded(nested.path, range(33, 37)), decoded(joined, range(21, 25)))
    assert has_several_chunks(joined) and not has_several_chunks(coded("grid"))
    with pytest.raises(UserError, match="holds a video in segments, but a single segment is needed"):
        open_single_chunk(joined)


def test_common_facts_are_stored_once(coded, tmp_path):
    """300 chunks: their records are in the index, which a reader of one chunk has to read before it."""
    path, one = tmp_path / "long.hnerv", BitstreamFile(coded("grid"))
    join_files(path, [one.path] * 300)
    file = BitstreamFile(path)
    assert file.frames == 3600 and file.index.size < one.index.size + 600
    assert file.size < 300 * one.size - 299 * 500
    assert len(list(play_video(file, range(1795, 1805), CPU))) == 10


def test_joining_takes_a_buffer_of_memory(coded, tmp_path, monkeypatch):
    monkeypatch.setattr("hnerv.codec.format.BUFFER", 1 << 14)
    sections = {"a": bytes(20 << 20)}
    record = open_single_chunk(coded("grid")).header.record
    write_bitstream(tmp_path / "a.hnerv", serialize([content_of(12, record, {}, sections)]))
    tracemalloc.start()
    join_files(tmp_path / "b.hnerv", [tmp_path / "a.hnerv"] * 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "b.hnerv").stat().st_size > 40 << 20 and peak < 1 << 20


def test_damage_in_another_chunk_does_not_matter(joined, pictures, tmp_path):
    path, entry = tmp_path / "damaged.hnerv", BitstreamFile(joined).chunks[2]
    for offset in (entry.offset, entry.offset + entry.header_bytes):
        data = bytearray(joined.read_bytes())
        data[offset] ^= 4
        path.write_bytes(data)
        assert np.array_equal(decoded(path, range(24)), pictures[:24])
        with pytest.raises(UserError, match="damaged.*frames 24 to 35; the other frames may be intact"):
            decoded(path, range(24, 36))


@pytest.fixture
def with_index(joined, tmp_path) -> Callable[..., Path]:
    """with_index(rows, **scene) -> `joined` under another index with right checksums."""

    def build(change: Callable[[list[list[int]]], None] = lambda table: None, **scene: object) -> Path:
        index, path = read_index(joined), tmp_path / "forged.hnerv"
        table = [[entry.frames, entry.size, entry.header_bytes, entry.crc] for entry in index.chunks]
        change(table)
        record = index.record | {"scene": index.record["scene"] | scene}
        behind = joined.read_bytes()[index.size :]
        path.write_bytes(b"".join(serialize_index({"record": record, "chunks": table}, len(behind))) + behind)
        return path

    return build


def test_an_index_that_lies(with_index, joined):
    assert BitstreamFile(with_index()).chunks == BitstreamFile(joined).chunks

    def more_frames(rows: list[list[int]]) -> None:
        rows[1][0] = 16_000_000

    path = with_index(more_frames)
    tracemalloc.start()
    with pytest.raises(UserError, match="has a segment at frame 12 that does not match its index"):
        decoded(path, range(12, 16_000_000))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000, "no memory for frames that are not there"
    tracemalloc.stop()

    def other_sizes(rows: list[list[int]]) -> None:
        rows[0][1], rows[1][1] = rows[0][1] + 1, rows[1][1] - 1

    with pytest.raises(UserError, match="invalid section lengths"):
        decoded(with_index(other_sizes), [0])
    for scene in ({"height": 0}, {"fps": "24"}, {"rows": 1 << 30}):
        with pytest.raises(UserError, match="does not follow the .hnerv format"):
            BitstreamFile(with_index(**scene))


def test_chunks_of_another_geometry_are_not_joined(coded, tmp_path, train, flags):
    assert train(tmp_path, flags(grid="2x2", clip_targets=None, clip_weights="none", epochs=2)) == 0
    found, other = open_checkpoint(tmp_path / "run" / "checkpoints" / "latest.pt"), tmp_path / "other.hnerv"
    write_bitstream(other, [encode_run(found.model, found.record, Options(), None, {})])
    with pytest.raises(UserError, match="differ in frame size, .* join segments of one run"):
        join_files(tmp_path / "x.hnerv", [coded("grid"), other])
    assert not list(tmp_path.glob("*x.hnerv*"))
