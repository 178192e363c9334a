"""What is said of a video when it is read is what its file says, and what is written when it is decoded."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from hnerv.codec import BitstreamFile
from hnerv.data.video import load_video

SIZE = {"size": (32, 64)}
JITTER = [0, 40, 80, 120, 160, 1160, 2160, 2200, 2240, 2280, 3280, 3320]
"""Milliseconds."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def coded(place: Path, train, flags, hnerv_main):
    """coded(video, *words) -> path of the .hnerv file of a short run."""

    def make(video: Path | str, *words: str) -> Path:
        (place / "a.hnerv").unlink(missing_ok=True)
        assert train(place, [*flags(data=video, epochs=1), *words]) == 0
        assert hnerv_main("encode", place / "run", "-o", place / "a.hnerv", "--no-measure") == 0
        return place / "a.hnerv"

    return make


def _tags(stream) -> None:
    context = stream.codec_context
    context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 16, 9, 1
    context.sample_aspect_ratio = Fraction(4, 3)


@pytest.mark.parametrize("segments", [(), ("--segment-frames", "5")])
def test_colour_tags_and_the_shape_of_a_pixel_travel(coded, encode, hnerv_main, place, segments, caplog) -> None:
    video = encode("hdr.mp4", pix_fmt="yuv420p10le", setup=_tags, **SIZE)
    path = coded(video, *segments)
    assert caplog.text.count("is HDR (PQ, as in HDR10)") == 1
    assert BitstreamFile(path).display == (9, 16, 9, 1, 4, 3)
    for name, matrix_and_range in (("a.mp4", (9, 1)), ("a.mkv", (0, 2))):
        assert hnerv_main("decode", path, "-o", place / name) == 0
        with av.open(str(place / name)) as container:
            frame = next(container.decode(video=0))
            assert (frame.color_primaries, frame.color_trc) == (9, 16)
            assert (frame.colorspace, frame.color_range) == matrix_and_range
            assert name == "a.mkv" or container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)


def test_ffv1_has_the_shape_of_a_pixel_in_its_frames(coded, encode, hnerv_main, place) -> None:
    """Where PyAV does not show it, but FFmpeg's showinfo."""
    path = coded(encode("wide.mp4", setup=_tags, **SIZE))
    assert hnerv_main("decode", path, "-o", place / "a.mkv") == 0
    with av.open(str(place / "a.mkv")) as container:
        frame = next(container.decode(video=0))
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        info = av.filter.Graph()
        source = info.add("buffer", f"video_size=64x32:pix_fmt={frame.format.name}:time_base=1/25:pixel_aspect=1/1")
        info.link_nodes(source, info.add("showinfo"), info.add("buffersink")).configure()
        with av.logging.Capture(local=False) as lines:
            info.push(frame)
            info.pull()
    finally:
        av.logging.set_level(level)
    assert any("sar:4/3" in text for _, _, text in lines)


@pytest.mark.parametrize("segments", [(), ("--segment-frames", "5")])
@pytest.mark.parametrize("name", ["a.mp4", "b.webm"])
def test_times_of_a_variable_rate_travel(
    coded, encode, hnerv_main, place, name, segments, capsys, targets_file
) -> None:
    codec = {"codec": "libvpx", "options": {"cpu-used": "8"}} if name == "b.webm" else {}
    path = coded(encode(name, stamps=JITTER, tick=Fraction(1, 1000), rate=25, last=40, **codec, **SIZE), *segments)
    assert hnerv_main("decode", path, "-o", place / "c.mkv") == 0
    again = load_video(str(place / "c.mkv"))
    assert [again.times.seconds(k) for k in range(12)] == pytest.approx([t / 1000 for t in JITTER])
    assert again.fps == pytest.approx(12 / 3.36)
    assert hnerv_main("decode", path, "-o", place / "d.mkv", "--frames", "4:11:3") == 0
    some = load_video(str(place / "d.mkv")).times
    assert [some.seconds(k) for k in range(3)] == pytest.approx([0, 2.04, 3.12])
    assert hnerv_main("embed", path, "-o", place / "e.safetensors") == 0
    from safetensors.torch import load_file

    assert load_file(place / "e.safetensors")["time"].tolist() == pytest.approx([t / 1000 for t in JITTER])
    capsys.readouterr()
    assert hnerv_main("search", path, "--embedding", f"{targets_file}:5,3", "--top", "3", "--json") == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits and all(hit["seconds"] == pytest.approx(JITTER[hit["frame"]] / 1000) for hit in hits)


def test_times_count_from_the_start_of_the_source(coded, encode, hnerv_main, place, capsys, targets_file) -> None:
    video = encode("a.mp4", 40, options={"g": "10"}, **SIZE)
    path = coded(video, "--frames", "10:34:2")
    capsys.readouterr()
    assert hnerv_main("search", path, "--embedding", f"{targets_file}:5,3", "--top", "2", "--json") == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert hits and all(hit["seconds"] == pytest.approx((10 + 2 * hit["frame"]) / 25) for hit in hits)
    assert hnerv_main("decode", path, "-o", place / "b.mkv") == 0
    assert load_video(str(place / "b.mkv")).fps == 12.5


def test_a_recording_that_begins_inside_a_group_of_pictures_in_segments(coded, encode, remux, place) -> None:
    """16 packets, of which the 4 before the key frame cannot be decoded."""
    whole = encode("whole.ts", 20, options={"g": "8", "bf": "0", "sc_threshold": "0"}, **SIZE)
    cut = remux(whole, place / "cut.ts", lambda k, data: data if k >= 4 else None)
    film = BitstreamFile(coded(cut, "--segment-frames", "5"))
    assert film.frames == 12 and [chunk.frames for chunk in film.chunks] == [4, 4, 4]


def test_a_name_that_is_not_utf8(coded, encode, evaluate, hnerv_main, place, capsys, caplog) -> None:
    os.replace(encode("a.mp4", **SIZE), b"caf\xe9.mp4")
    path = coded(os.fsdecode(b"caf\xe9.mp4"))
    assert "failed" not in caplog.text
    for command in (
        lambda: evaluate(place / "run"),
        lambda: hnerv_main("info", path),
        lambda: hnerv_main("report", place / "run", "-o", place / "a.html"),
        lambda: hnerv_main("decode", path, "-o", os.fsdecode(b"d\xe9.mkv")),
    ):
        assert command() == 0, capsys.readouterr().err
    assert len(load_video(os.fsdecode(b"d\xe9.mkv")).frames) == 12


def test_raw_video_and_a_rate_from_the_command_line(coded, hnerv_main, place, train, flags, capsys) -> None:
    planes = np.random.default_rng(0).integers(0, 256, 12 * 32 * 64 * 3 // 2, dtype=np.uint8)
    (place / "noise_64x32_50fps_420_8bit.yuv").write_bytes(planes.tobytes())
    assert BitstreamFile(coded("noise_64x32_50fps_420_8bit.yuv")).fps == 50
    (place / "noise.bin").write_bytes(planes.tobytes())
    words = ("--raw-video", "64x32:yuv420p:30", "--fps", "15", "--overwrite", "--segment-frames", "5")
    film = BitstreamFile(coded("noise.bin", *words))
    assert (film.fps, film.frames, len(film.chunks)) == (15, 12, 3)
    assert train(place, [*flags(data="noise.bin"), "--overwrite"]) == 2
    assert "noise.bin is not a video" in capsys.readouterr().err
