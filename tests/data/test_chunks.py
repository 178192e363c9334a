"""Dividing a video: every chosen frame is in one segment, in order, and none is left short."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.errors import UserError
from hnerv.runs import Segment, Wishes, divide, plan_video
from hnerv.data.chunks import slice_text
from hnerv.data.video import slice_positions

chosen_ranges = st.builds(
    lambda count, frames: slice_positions(frames, count),
    st.integers(1, 400),
    st.sampled_from(["", "::3", "5:", "::-1", "300:20:-7", "-50:", "2:9"]),
).filter(len)


@given(chosen_ranges, st.integers(0, 60), st.lists(st.integers(-5, 450), max_size=6))
def test_segments_tile_what_was_chosen(chosen, longest, cuts):
    segments = divide(chosen, longest, cuts)
    assert [s.number for s in segments] == list(range(len(segments)))
    assert [s.first for s in segments] == [sum(t.count for t in segments[:k]) for k in range(len(segments))]
    assert [p for s in segments for p in slice_positions(s.frames, 1000)] == list(chosen)
    assert all(s.count == len(slice_positions(s.frames, 1000)) for s in segments)
    assert not longest or max(s.count for s in segments) <= longest
    assert {cut for cut in cuts if 0 < cut < len(chosen)} <= {s.first for s in segments}


@given(st.integers(2, 500), st.integers(2, 90))
def test_pieces_of_one_scene_differ_by_a_frame_at_most(count, longest):
    sizes = [s.count for s in divide(range(count), longest)]
    assert max(sizes) - min(sizes) <= 1 and len(sizes) == -(-count // longest)


def test_by_hand():
    assert divide(range(10), 4) == (Segment(0, "0:3", 0, 3), Segment(1, "3:6", 3, 3), Segment(2, "6:10", 6, 4))
    assert [s.frames for s in divide(range(4, 24, 2), 5, [3])] == ["4:10:2", "10:16:2", "16:24:2"]
    assert [s.name for s in divide(range(3), 0)] == ["00000"]


@given(chosen_ranges)
def test_a_slice_says_what_the_range_is(chosen):
    assert list(slice_positions(slice_text(chosen), 1000)) == list(chosen)


def test_a_video():
    plan = plan_video("bunny", "10:110", Wishes(frames=30))
    assert plan.count == 100 and [s.frames for s in plan.segments] == ["10:35", "35:60", "60:85", "85:110"]
    with pytest.raises(UserError, match="selects no frames of bunny"):
        plan_video("bunny", "500:", Wishes(frames=30))


def remux(path, other) -> None:
    """The same packets in another container."""
    with av.open(str(path)) as source, av.open(str(other), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def test_a_file_that_is_cut_short_is_refused_as_a_whole(tmp_path):
    from hnerv.timeline import Timeline
    from hnerv.data.video import open_writer

    path = tmp_path / "whole.mp4"
    with open_writer(path, (64, 96), Timeline.at_rate(24.0)) as writer:
        for k in range(60):
            writer.write(np.random.default_rng(k).integers(0, 255, (64, 96, 3)).astype(np.uint8))
    data = path.read_bytes()
    assert plan_video(str(path), "", Wishes(frames=20)).count == 60
    remuxed = tmp_path / "cut.mkv"
    remux(path, remuxed)
    data = remuxed.read_bytes()
    remuxed.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is truncated; only .* frames can be read"):
        plan_video(str(remuxed), "", Wishes(frames=20))
    assert plan_video(str(remuxed), "0:20", Wishes(frames=10)).count == 20


def test_what_cannot_be_read_from_its_middle_is_said(tmp_path, caplog):
    from hnerv.timeline import Timeline
    from hnerv.data.video import open_writer

    path = tmp_path / "whole.mp4"
    with open_writer(path, (64, 96), Timeline.at_rate(24.0)) as writer:
        for k in range(20):
            writer.write(np.full((64, 96, 3), 10 * k, np.uint8))
    plan_video(str(path), "", Wishes(frames=10))
    assert not caplog.text
    stream = tmp_path / "stream.ts"
    remux(path, stream)
    plan_video(str(stream), "", Wishes(frames=10))
    assert "cannot be read from a key frame" in caplog.text


def test_backwards_with_scenes():
    plan = plan_video("bikes", "::-1", Wishes(scenes=True))
    assert [s.first for s in plan.segments] == [0, 8, 63, 113, 174, 220]
