"""Dividing a video: every chosen frame is in one chunk, in order, and none is left short."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.data.chunks import ChunkOptions, PlannedChunk, divide, plan_video
from hnerv.data.video import open_writer, slice_positions
from hnerv.errors import UserError
from hnerv.timeline import Timeline

chosen_ranges = st.builds(
    lambda count, frames: slice_positions(frames, count),
    st.integers(1, 400),
    st.sampled_from(["", "::3", "5:", "::-1", "300:20:-7", "-50:", "2:9"]),
).filter(len)


@given(chosen_ranges, st.integers(0, 60), st.lists(st.integers(-5, 450), max_size=6))
def test_chunks_tile_what_was_chosen(chosen, longest, cuts):
    chunks = divide(chosen, longest, cuts)
    assert [c.number for c in chunks] == list(range(len(chunks)))
    assert [c.first for c in chunks] == [sum(other.count for other in chunks[:k]) for k in range(len(chunks))]
    assert [p for c in chunks for p in slice_positions(c.frames, 1000)] == list(chosen)
    assert all(c.count == len(slice_positions(c.frames, 1000)) for c in chunks)
    assert {cut for cut in cuts if 0 < cut < len(chosen)} <= {c.first for c in chunks}
    sizes = [c.count for c in divide(chosen, longest)]
    assert max(sizes) - min(sizes) <= 1 and len(sizes) == (-(-len(chosen) // longest) if longest else 1)


def test_by_hand():
    three = (PlannedChunk(0, "0:3", 0, 3), PlannedChunk(1, "3:6", 3, 3), PlannedChunk(2, "6:10", 6, 4))
    assert divide(range(10), 4) == three and three[2].name == "00002"
    assert [c.frames for c in divide(range(4, 24, 2), 5, [3])] == ["4:10:2", "10:16:2", "16:24:2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((2,), "--segment-frames 2 must be at least 3"),
        ((-1,), "--segment-frames -1 must be at least 3"),
        ((8, False, "first"), "--segment-init 'first' does not exist: choose from none, previous"),
        ((0, False, "previous"), "--segment-init needs a video in segments"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UserError, match=message):
        ChunkOptions(*options).checked()


def test_a_video():
    plan = plan_video("bunny", "10:110", ChunkOptions(frames=30))
    assert plan.count == 100 and [s.frames for s in plan.chunks] == ["10:35", "35:60", "60:85", "85:110"]
    with pytest.raises(UserError, match="selects no frames of bunny"):
        plan_video("bunny", "500:", ChunkOptions(frames=30))


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """An MP4 of 60 frames."""
    path = tmp_path_factory.mktemp("video") / "noise.mp4"
    with open_writer(path, (64, 96), Timeline.at_rate(24.0)) as writer:
        for k in range(60):
            writer.write(np.random.default_rng(k).integers(0, 255, (64, 96, 3)).astype(np.uint8))
    return path


def remux(path, other) -> None:
    """The same packets in another container."""
    with av.open(str(path)) as source, av.open(str(other), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def test_a_truncated_file_is_refused_before_it_is_divided(noise, tmp_path):
    assert plan_video(str(noise), "", ChunkOptions(frames=20)).count == 60
    remuxed = tmp_path / "cut.mkv"
    remux(noise, remuxed)
    data = remuxed.read_bytes()
    remuxed.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is truncated; only .* frames can be read"):
        plan_video(str(remuxed), "", ChunkOptions(frames=20))
    assert plan_video(str(remuxed), "0:20", ChunkOptions(frames=10)).count == 20


def test_a_container_without_key_frames_is_warned_of(noise, tmp_path, caplog):
    plan_video(str(noise), "", ChunkOptions(frames=10))
    assert not caplog.text
    stream = tmp_path / "stream.ts"
    remux(noise, stream)
    plan_video(str(stream), "", ChunkOptions(frames=10))
    assert "cannot be read from a key frame" in caplog.text and "ffmpeg -i" in caplog.text


def test_backwards_with_scenes():
    plan = plan_video("bikes", "::-1", ChunkOptions(scenes=True))
    assert [s.first for s in plan.chunks] == [0, 8, 63, 113, 174, 220]
