"""Frames from the middle of a file are those that decoding from its start gives, whatever the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnerv.errors import UserError
from hnerv.timeline import Timeline
from hnerv.data.video import frame_count, load_video, read_frames, sources as loading
from hnerv.data.video.container import InputSpec as Medium
from hnerv.data.video.probe import probe_video
from hnerv.data.video.readers import SeekFailed, read_pyav

CLOSED = {"x264-params": "keyint=6:min-keyint=6:bframes=3"}
OPEN = {"x264-params": "open-gop=1:keyint=6:min-keyint=6:bframes=3"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=6:bframes=0"}
X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1:keyint=5:min-keyint=5:bframes=4:open-gop=1"}
KINDS: dict[str, dict] = {
    "closed.mp4": {"options": CLOSED},
    "closed.mkv": {"options": CLOSED},
    "open.mp4": {"options": OPEN},
    "open.mkv": {"options": OPEN},
    "refresh.mp4": {"options": INTRA_REFRESH},
    "hevc.mkv": {"codec": "libx265", "options": X265},
    "hevc.mp4": {"codec": "libx265", "options": X265},
    "late.mkv": {"options": CLOSED, "first": 7},
    "edit-list.mov": {"options": CLOSED, "first": -4},
    "stream.ts": {"options": CLOSED},
    "open.ts": {"options": OPEN},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime", "g": "6"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"svtav1-params": "lp=1:keyint=8"}},
    "all-intra.mov": {"codec": "png", "pix_fmt": "rgb24"},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
}


@pytest.mark.parametrize("name", KINDS)
def test_from_anywhere(name: str, write, monkeypatch) -> None:
    path = write(name, count=40, **KINDS[name])
    whole = load_video(str(path)).frames
    monkeypatch.setattr(loading, "SEEK_FROM", 1)
    for start in range(1, len(whole)):
        stop = min(start + 5, len(whole))
        assert load_video(str(path), frames=f"{start}:{stop}").frames.equal(whole[start:stop]), start
    assert load_video(str(path), frames="-9::4").frames.equal(whole[-9::4])


@pytest.mark.parametrize("name", ["closed.mp4", "open.mkv", "hevc.mp4", "vp9.webm"])
def test_it_does_seek(name: str, write) -> None:
    """What the test above could not tell: less is decoded than from the start."""
    probe = probe_video(Medium(write(name, count=40, **KINDS[name])))
    assert len(probe.times.stamps) == 40 and len(probe.keys) > 3
    key = probe.keys_before(30)[0]
    assert 0 < probe.times.stamps.index(key) <= 25
    assert probe.keys_before(3) is None


@pytest.mark.parametrize("name", ["stream.ts", "edit-list.mov", "motion.avi"])
def test_where_seeking_is_not_sure_it_is_not_tried(name: str, write) -> None:
    assert probe_video(Medium(write(name, count=40, **KINDS[name]))).keys == ()


def with_stamps(probe, *stamps):
    return probe._replace(count=len(stamps), times=Timeline(probe.times.tick, stamps))


def test_a_time_stamp_that_does_not_come(write) -> None:
    probe = probe_video(Medium(write("plain.mp4", count=30, options=CLOSED)))
    stamps = probe.times.stamps
    wrong = with_stamps(probe, *stamps[:20], stamps[20] + 1, *stamps[21:])
    with pytest.raises(SeekFailed, match="frame 20 has another time stamp"):
        list(read_pyav(wrong, 15))
    longer = with_stamps(probe, *stamps, stamps[-1] + 512)
    with pytest.raises(SeekFailed, match="1 frames are missing at the end"):
        list(read_pyav(longer, 15))


def test_where_seeking_fails_the_file_is_read_from_its_start(write, monkeypatch) -> None:
    path = write("plain.mp4", count=30, options=CLOSED)
    whole = load_video(str(path)).frames
    monkeypatch.setattr(loading, "SEEK_FROM", 1)

    def fails(probe, start):
        if start:
            raise SeekFailed("so it is")
        yield from read_pyav(probe)

    monkeypatch.setattr(loading, "read_pyav", fails)
    assert load_video(str(path), frames="20:25").frames.equal(whole[20:25])


def test_damage_behind_the_start_is_named(write, monkeypatch) -> None:
    path = write("plain.mp4", count=60, options=CLOSED)
    data = bytearray(path.read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    monkeypatch.setattr(loading, "SEEK_FROM", 1)
    with pytest.raises(UserError, match="frame [45][0-9] cannot be decoded .*pass --frames 30:[345]"):
        load_video(str(path), frames="30:60")


def test_a_frame_at_a_time(write, tmp_path: Path, monkeypatch) -> None:
    path = write("plain.mp4", count=30, options=CLOSED)
    whole = load_video(str(path)).frames
    assert frame_count(str(path)) == 30
    for seek_from in (1, 1000):
        monkeypatch.setattr(loading, "SEEK_FROM", seek_from)
        for chosen in (range(30), range(20, 29, 3), range(5, 6)):
            found = list(read_frames(str(path), chosen))
            assert len(found) == len(chosen)
            assert all((whole[k].permute(1, 2, 0).numpy() == f).all() for k, f in zip(chosen, found, strict=True))
