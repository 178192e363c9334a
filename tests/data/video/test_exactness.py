"""Packets that promise what decoding does not give: frames, times and rate are those of the decoded frames."""

from __future__ import annotations

import math
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from hnerv.codec import open_film
from hnerv.errors import UserError
from hnerv.runs import ChunkOptions, plan_video
from hnerv.data.video import frame_count, load_video, loading
from hnerv.data.video.raw import geometry_of

INTRA = {"g": "8", "bf": "0", "sc_threshold": "0"}
UNEVEN = [*range(14), 20, 21, 22, 30, 40, 50]
"""Ticks of 1/25 s."""


@pytest.fixture(autouse=True)
def _seek_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SEEK_FROM", 1)


def check_slices(path: Path, count: int) -> None:
    """Any slice has the pixels, the rate and the times that it has in the entire file, and segments cover it."""
    whole = load_video(str(path))
    assert len(whole.frames) == count == frame_count(str(path))
    for start in range(0, count, 5):
        part = load_video(str(path), frames=f"{start}:{start + 5}")
        assert part.frames.equal(whole.frames[start : start + 5]) and part.fps == whole.fps
        seconds = [t.seconds(k) if t else k / whole.fps for t, k in ((part.times, 0), (whole.times, start))]
        assert seconds[0] == pytest.approx(seconds[1])
    assert load_video(str(path), frames="-3:").frames.equal(whole.frames[-3:])
    assert plan_video(str(path), "", ChunkOptions(8)).count == count


def _not_coded(data: bytes) -> bytes:
    """An MPEG-4 P-VOP at 25 frames a second, cut off behind its vop_coded bit, cleared (ISO/IEC 14496-2, 6.2.5)."""
    place = data.index(b"\0\0\1\xb6") + 4
    bits = f"{int.from_bytes(data[place : place + 4], 'big'):032b}"
    end = bits.index("0", 2) + 2 + 5  # coding type, modulo_time_base, marker, time increment of 5 bits
    bits = bits[:end] + "1" + "0"  # marker, vop_coded
    bits += "1" * (-len(bits) % 8)
    return data[:place] + int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_mpeg4_packets_that_repeat_a_frame(name: str, encode, remux, tmp_path: Path) -> None:
    source = encode(f"source-{name}", 40, codec="mpeg4", options={"g": "8", "bf": "0"})
    path = remux(source, tmp_path / name, lambda k, data: _not_coded(data) if k in (10, 21) else data)
    check_slices(path, 38)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_variable_rate_from_inside_a_group_of_pictures(name: str, encode, remux, tmp_path: Path) -> None:
    source = encode(f"source-{name}", stamps=UNEVEN, options=INTRA)
    path = remux(source, tmp_path / name, lambda k, data: data if k >= 4 else None)
    check_slices(path, 12)
    times = load_video(str(path)).times
    assert [times.seconds(k) for k in range(12)] == pytest.approx([(t - 8) / 25 for t in UNEVEN[8:]])


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_codecs_that_fail_before_the_first_key_frame(codec: str, encode, remux, tmp_path: Path) -> None:
    source, name = encode("source.webm", 24, codec=codec, options={"g": "8", "cpu-used": "8"}), "a.webm"
    path = remux(source, tmp_path / name, lambda k, data: data if k >= 3 else None)
    check_slices(path, 16)


def test_variable_rate_cut_short_in_segments(encode, train, flags, hnerv_main, tmp_path: Path) -> None:
    path = encode("a.mkv", stamps=UNEVEN, options=INTRA, size=(32, 64))
    path.write_bytes(path.read_bytes()[: int(0.93 * path.stat().st_size)])
    with pytest.raises(UserError, match=r"pass --frames 0:\d+") as caught:
        load_video(str(path))
    count = int(str(caught.value).split("0:")[1].split(",")[0])
    assert count > 10
    parts = [load_video(str(path), frames=f"{k}:{k + 5}") for k in range(0, count - 5, 5)]
    assert len({part.fps for part in parts}) == 1
    words = ["--frames", f"0:{count}", "--segment-frames", "5"]
    assert train(tmp_path, [*flags(data=path, epochs=1, clip_targets=None, clip_weights="none"), *words]) == 0
    assert hnerv_main("encode", tmp_path / "run", "-o", tmp_path / "a.hnerv", "--no-measure") == 0
    film = open_film(tmp_path / "a.hnerv")
    assert film.frames == count and film.fps == pytest.approx(parts[0].fps)


def test_recordings_behind_each_other(encode, tmp_path: Path) -> None:
    """Each half has a clock of its own, which tells nothing of the other's."""
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(encode(f"{k}.ts", 20, options=INTRA).read_bytes() for k in range(2)))
    video = load_video(str(path))
    assert (len(video.frames), video.fps, video.times) == (40, 25, None)


def test_frames_predicted_from_damage_before_the_first_one_wanted(encode, remux, tmp_path: Path) -> None:
    source = encode("source.mkv", 60, options=INTRA)
    noise = np.random.default_rng(0).bytes(400)
    path = remux(source, tmp_path / "a.mkv", lambda k, data: data[:20] + noise + data[420:] if k == 41 else data)
    with pytest.raises(UserError, match="frame 4[01] cannot be decoded"):
        load_video(str(path), frames="43:47")
    assert load_video(str(path), frames="58:60").frames.equal(load_video(str(source), frames="58:60").frames)


def test_damage_where_the_frames_have_to_be_counted(encode, remux, tmp_path: Path) -> None:
    """The advised range can be read, nothing beyond it, and segments are not planned as if the video ended there."""
    source = encode("source.mkv", 40, codec="mpeg4", options={"g": "8", "bf": "0"})
    noise = np.random.default_rng(0).bytes(4000)
    path = remux(source, tmp_path / "a.mkv", lambda k, data: data[:20] + noise[20 : len(data)] if k == 24 else data)
    with pytest.raises(UserError, match=r"frame \d+ cannot be decoded .* pass --frames 0:\d+") as caught:
        load_video(str(path))
    advised = str(caught.value).split("--frames ")[1].split(",")[0]
    intact = load_video(str(path), frames=advised).frames
    assert len(intact) > 15 and intact.equal(load_video(str(source), frames=advised).frames)
    for beyond in ("0:30", "::2", "-1:"):
        with pytest.raises(UserError, match=r"frame \d+ cannot be decoded"):
            load_video(str(path), frames=beyond)
    with pytest.raises(UserError, match=r"frame \d+ cannot be decoded"):
        plan_video(str(path), "", ChunkOptions(8))


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", bytes(4), None])
def test_avi_whose_length_is_not_known_or_counts_its_own_header(size: bytes | None, encode) -> None:
    path = encode("a.avi", 20, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", len(data)) if size is None else size
    path.write_bytes(data)
    assert len(load_video(str(path)).frames) == 20


@pytest.mark.parametrize("size", [math.nan, math.inf, -1.0])
def test_flv_whose_length_is_no_number(size: float, encode) -> None:
    path = encode("a.flv", 20, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    place = data.index(b"filesize\0") + 9
    data[place : place + 8] = struct.pack(">d", size)
    path.write_bytes(data)
    assert len(load_video(str(path)).frames) == 20


def test_a_part_of_a_playlist_that_is_missing(encode, tmp_path: Path) -> None:
    path = encode("list.m3u8", 40, container="hls", muxer={"hls_time": "0.3", "hls_list_size": "0"}, options=INTRA)
    assert len(load_video(str(path)).frames) == 40
    sorted(tmp_path.glob("*.ts"))[1].unlink()
    loading._probe.cache_clear()
    with pytest.raises(UserError, match="list1.ts, which is missing"):
        load_video(str(path))


def test_a_playlist_that_may_grow(encode) -> None:
    path = encode("list.m3u8", 40, container="hls", muxer={"hls_time": "0.3", "hls_list_size": "0"}, options=INTRA)
    path.write_text(path.read_text().replace("#EXT-X-ENDLIST", ""))
    with pytest.raises(UserError, match="add the line #EXT-X-ENDLIST"):
        load_video(str(path))
    (path.parent / "main.m3u8").write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\nlist.m3u8\n")
    with pytest.raises(UserError, match="list.m3u8 is a playlist without an end"):
        load_video(str(path.parent / "main.m3u8"))


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="is not a file, a folder"):
        load_video(str(tmp_path / "pipe.mp4"))


def test_a_pixel_that_is_thin_beyond_belief(encode) -> None:
    def setup(stream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(1, 200)

    display = load_video(str(encode("a.mp4", setup=setup)), crop="64x96", resize="2x96").display
    assert display.wide > 0 and display.high > 0


def test_an_elementary_stream_of_made_up_times_takes_a_rate(encode) -> None:
    path = encode("a.m2v", codec="mpeg2video", container="mpeg2video", options={"bf": "0"})
    video = load_video(str(path), fps=50)
    assert (len(video.frames), video.fps, video.times) == (12, 50, None)


def test_stamps_that_were_rounded_before_they_were_copied(encode, tmp_path: Path) -> None:
    """Milliseconds of Matroska in the finer ticks of MP4."""
    source = encode("a.mkv", 48, tick=Fraction(1, 30), options={"bf": "0"})
    with av.open(str(source)) as old, av.open(str(tmp_path / "a.mp4"), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.size:
                packet.stream = copy
                new.mux(packet)
    video = load_video(str(tmp_path / "a.mp4"))
    assert (video.fps, video.times) == (30, None)


@pytest.mark.parametrize(
    ("name", "geometry"),
    [
        ("a_96x64_yuv420p10.yuv", "96x64:yuv420p10le"),
        ("a_96x64_10-bit_420.yuv", "96x64:yuv420p10le"),
        ("a_96x64_yuv444_8bit.yuv", "96x64:yuv444p"),
        ("a_96x64_yuv422_10bit_25fps.yuv", "96x64:yuv422p10le:25"),
        ("a_96x64_P422.yuv", "96x64:yuv422p"),
        ("a_96x64_420p10.yuv", "96x64:yuv420p10le"),
        ("a_96x64_i420.yuv", "96x64:yuv420p"),
        ("akiyo_4cif_30.yuv", "704x576:yuv420p:30"),
        *(
            (f"a_96x64_{word}.yuv", "")
            for word in ("nv12", "yv12", "uyvy", "yuyv422", "p010", "p010le", "v210", "rgb24")
        ),
        ("a_96x64_yuv420p10be.yuv", ""),
        ("a_96x64_16bpp.yuv", ""),
        ("a_4qcif.yuv", ""),
    ],
)
def test_words_of_raw_names(name: str, geometry: str) -> None:
    assert geometry_of(name) == geometry


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    planes = np.random.default_rng(0).integers(0, 256, 12 * 32 * 64 * 3 // 2, dtype=np.uint8)
    (tmp_path / "noise_64x32_50fps.yuv").write_bytes(planes.tobytes())
    return tmp_path


def test_raw_video_that_was_renamed(raw: Path, train, flags, evaluate, capsys) -> None:
    stopped = [*flags(data="noise_64x32_50fps.yuv", epochs=2), "--max-minutes", "1e-9"]
    assert train(raw, stopped) == 124
    (raw / "noise_64x32_50fps.yuv").rename("renamed.yuv")
    resume = flags(data="renamed.yuv", epochs=2)
    assert train(raw, resume) == 2 and "pass --raw-video" in capsys.readouterr().err
    assert train(raw, [*resume, "--raw-video", "64x32:yuv420p:50"]) == 0
    (raw / "renamed.yuv").rename("again.yuv")
    assert evaluate(raw / "run", "--data", "again.yuv") == 0, capsys.readouterr().err


@pytest.mark.parametrize("data", ["bunny", "."])
def test_raw_video_is_for_files(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--raw-video|is not a file|has no PNG"):
        load_video(data, raw_video="64x32:yuv420p")
