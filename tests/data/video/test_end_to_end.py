"""Times, colour tags, names and geometry of a video, from its file through training and coding to the decoded file."""

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
from hnerv.data.video.loader import _warn_hdr

SMALL = {"size": (32, 64)}
JITTER = [0, 40, 80, 120, 160, 1160, 2160, 2200, 2240, 2280, 3280, 3320]
"""Milliseconds."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def coded(folder: Path, train, flags, hnerv_main):
    """coded(video, *words) -> path of the .hnerv file of a short run."""

    def make(video: Path | str, *words: str) -> Path:
        (folder / "a.hnerv").unlink(missing_ok=True)
        assert train(folder, [*flags(data=video, epochs=1), *words]) == 0
        assert hnerv_main("encode", folder / "run", "-o", folder / "a.hnerv", "--no-measure") == 0
        return folder / "a.hnerv"

    return make


@pytest.fixture
def hits_of(targets_file, hnerv_main, capsys):
    """hits_of(path, top) -> the hits of a search."""

    def search(path: Path, top: int) -> list[dict]:
        capsys.readouterr()
        assert hnerv_main("search", path, "--embedding", f"{targets_file}:5,3", "--top", top, "--json") == 0
        return json.loads(capsys.readouterr().out)["hits"]

    return search


def showinfo(frame: av.VideoFrame) -> str:
    """What FFmpeg's showinfo filter logs about a frame."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        graph = av.filter.Graph()
        source = graph.add("buffer", f"video_size=64x32:pix_fmt={frame.format.name}:time_base=1/25:pixel_aspect=1/1")
        graph.link_nodes(source, graph.add("showinfo"), graph.add("buffersink")).configure()
        with av.logging.Capture(local=False) as lines:
            graph.push(frame)
            graph.pull()
    finally:
        av.logging.set_level(level)
    return "".join(text for _, _, text in lines)


@pytest.mark.parametrize("segments", [(), ("--segment-frames", "5")])
def test_colour_tags_and_pixel_aspect(coded, encode, hnerv_main, folder, segments, caplog) -> None:
    def tag(stream) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 16, 9, 1
        context.sample_aspect_ratio = Fraction(4, 3)

    _warn_hdr.cache_clear()  # one warning for each path, and temporary folders may take the name of an earlier one
    path = coded(encode("hdr.mp4", pix_fmt="yuv420p10le", setup=tag, **SMALL), *segments)
    assert caplog.text.count("is HDR (PQ, as in HDR10)") == 1
    assert BitstreamFile(path).display == (9, 16, 9, 1, 4, 3)
    for name, matrix_and_range in (("a.mp4", (9, 1)), ("a.mkv", (0, 2))):
        assert hnerv_main("decode", path, "-o", folder / name) == 0
        with av.open(str(folder / name)) as container:
            frame = next(container.decode(video=0))
            assert (frame.color_primaries, frame.color_trc) == (9, 16)
            assert (frame.colorspace, frame.color_range) == matrix_and_range
            if name == "a.mp4":
                assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
            else:  # in the frames of FFV1, where PyAV does not show it
                assert "sar:4/3" in showinfo(frame)


@pytest.mark.parametrize(
    ("name", "options", "segments"),
    [("a.mp4", {}, ()), ("b.webm", {"codec": "libvpx", "options": {"cpu-used": "8"}}, ("--segment-frames", "5"))],
)
def test_times_of_a_variable_rate(coded, encode, hnerv_main, folder, name, options, segments, hits_of) -> None:
    from safetensors.torch import load_file

    seconds = [stamp / 1000 for stamp in JITTER]
    path = coded(encode(name, stamps=JITTER, tick=Fraction(1, 1000), rate=25, last=40, **options, **SMALL), *segments)
    assert hnerv_main("decode", path, "-o", folder / "c.mkv") == 0
    again = load_video(str(folder / "c.mkv"))
    assert [again.times.seconds(k) for k in range(12)] == pytest.approx(seconds)
    assert again.fps == pytest.approx(12 / 3.36)
    assert hnerv_main("decode", path, "-o", folder / "d.mkv", "--frames", "4:11:3") == 0
    some = load_video(str(folder / "d.mkv")).times
    assert [some.seconds(k) for k in range(3)] == pytest.approx([0, 2.04, 3.12])
    assert hnerv_main("embed", path, "-o", folder / "e.safetensors") == 0
    assert load_file(folder / "e.safetensors")["time"].tolist() == pytest.approx(seconds)
    hits = hits_of(path, 3)
    assert hits and all(hit["seconds"] == pytest.approx(seconds[hit["frame"]]) for hit in hits)


def test_times_count_from_the_start_of_the_source(coded, encode, hnerv_main, folder, hits_of) -> None:
    path = coded(encode("a.mp4", 40, options={"g": "10"}, **SMALL), "--frames", "10:34:2")
    hits = hits_of(path, 2)
    assert hits and all(hit["seconds"] == pytest.approx((10 + 2 * hit["frame"]) / 25) for hit in hits)
    assert hnerv_main("decode", path, "-o", folder / "b.mkv") == 0
    assert load_video(str(folder / "b.mkv")).fps == 12.5


def test_name_that_is_not_utf8(coded, encode, evaluate, hnerv_main, folder, capsys, caplog) -> None:
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(encode("a.mp4", **SMALL).read_bytes())
    path = coded(os.fsdecode(b"caf\xe9.mp4"))
    assert "failed" not in caplog.text
    for command in (
        lambda: evaluate(folder / "run"),
        lambda: hnerv_main("info", path),
        lambda: hnerv_main("report", folder / "run", "-o", folder / "a.html"),
        lambda: hnerv_main("decode", path, "-o", os.fsdecode(b"d\xe9.mkv")),
    ):
        assert command() == 0, capsys.readouterr().err
    assert len(load_video(os.fsdecode(b"d\xe9.mkv")).frames) == 12


def test_raw_video_and_a_rate_from_the_command_line(coded, folder, train, flags, capsys) -> None:
    planes = np.random.default_rng(0).integers(0, 256, 12 * 32 * 64 * 3 // 2, dtype=np.uint8)
    (folder / "noise_64x32_50fps_420_8bit.yuv").write_bytes(planes.tobytes())
    assert BitstreamFile(coded("noise_64x32_50fps_420_8bit.yuv")).fps == 50
    (folder / "noise.bin").write_bytes(planes.tobytes())
    words = ("--raw-video", "64x32:yuv420p:30", "--fps", "15", "--overwrite", "--segment-frames", "5")
    film = BitstreamFile(coded("noise.bin", *words))
    assert (film.fps, film.frames, len(film.chunks)) == (15, 12, 3)
    assert train(folder, [*flags(data="noise.bin"), "--overwrite"]) == 2
    assert "noise.bin is not a video" in capsys.readouterr().err
