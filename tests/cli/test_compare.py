"""`hnerv compare`: its flags, and what is refused before anything is measured."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hnerv.cli import compare
from hnerv.codec.comparison.codecs import CODECS
from hnerv.flags import Parser


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="hnerv compare")
    compare.add_arguments(parser)
    return parser


def test_flags(parser, capsys):
    args = parser.parse_args(["a.hnerv"])
    assert args.files == [Path("a.hnerv")]
    assert (args.data, args.output, args.device, args.json) == ("", None, "auto", False)
    assert args.against == "x264,x265,svt-av1"
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([])
    assert stop.value.code == 2 and "FILE.hnerv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["here.hnerv", "--against", "x266"], "is not a known codec"),
        (["here.hnerv", "--against", "x264:quick"], "has an unknown preset of x264"),
        (["gone.hnerv"], "gone.hnerv is not a file"),
        (["here.hnerv", "gone.hnerv"], "gone.hnerv is not a file"),
        (["here.hnerv", "-o", "here.hnerv"], "is a file: pass a folder"),
        (["here.hnerv", "--device", "abacus"], "'abacus' is not a device"),
    ],
)
def test_bad_flags_are_refused_at_once(parser, tmp_path, monkeypatch, words, match):
    from hnerv.errors import UserError

    monkeypatch.chdir(tmp_path)
    Path("here.hnerv").write_bytes(b"not looked at")
    with pytest.raises(UserError, match=match):
        compare.run(parser.parse_args(words))
    assert [path.name for path in tmp_path.iterdir()] == ["here.hnerv"]


@pytest.fixture
def compared(yuv_run, yuv_clip, tmp_path, hnerv_main, capsys):
    """compared(*words) -> comparison.json of a file of `yuv_run`."""

    def call(*words: object) -> dict:
        path = tmp_path / "clip.hnerv"
        assert hnerv_main("encode", yuv_run, "-o", path, "--no-measure") == 0
        assert hnerv_main("compare", path, "--against", "x264:ultrafast", "-o", tmp_path / "out", *words) == 0
        return json.loads((tmp_path / "out" / "comparison.json").read_text())

    return call


def test_codecs_code_the_planes_of_the_source(compared, yuv_clip, tmp_path, monkeypatch, capsys, evaluate):
    """Lossless coding leaves no error at all; a file has the PSNR that eval.py gives it."""
    setup = CODECS["x264"]
    monkeypatch.setitem(CODECS, "x264", setup._replace(options={"qp": "{crf}"}, ladder=(0, 30)))
    found = compared("--data", yuv_clip)
    ours, lossless, lossy = found["points"]
    assert lossless["psnr_yuv"] == lossless["psnr_frame"] == 100 and 20 < lossy["psnr_yuv"] < 60
    assert 40 < found["conversion_psnr_yuv"] < 60 and found["conversion_psnr"] is None and not found["no_psnr_yuv"]
    out = capsys.readouterr().out
    assert "YUV, dB" in out and "in dB" in out and "VMAF" not in out
    assert f"has {found['conversion_psnr_yuv']:.2f} dB" in out
    assert evaluate(tmp_path / "clip.hnerv", "--data", yuv_clip, "--clip-targets", "none") == 0
    with (tmp_path / "clip_eval" / "eval" / "per_frame.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and found["clip"]["frames"] == 12, "compare measures the frames of no split as well"
    assert ours["psnr_yuv"] == pytest.approx(sum(float(row["psnr_yuv"]) for row in rows) / 10, abs=0.5)


def test_vmaf_of_codecs_and_files(compared, yuv_clip, monkeypatch, capsys, vmaf_stand_in):
    setup = CODECS["x264"]
    monkeypatch.setitem(CODECS, "x264", setup._replace(options={"qp": "{crf}"}, ladder=(0, 30)))
    vmaf_stand_in()
    ours, lossless, lossy = compared("--data", yuv_clip, "--vmaf")["points"]
    assert lossless["vmaf"] == 100 and 50 < lossy["vmaf"] < 100 and 0 < ours["vmaf"] < 100
    assert "VMAF" in capsys.readouterr().out


def test_without_ffmpeg_vmaf_is_left_out(compared, yuv_clip, monkeypatch, capsys, vmaf_stand_in):
    monkeypatch.setitem(CODECS, "x264", CODECS["x264"]._replace(ladder=(30,)))
    vmaf_stand_in(filters="psnr")
    found = compared("--data", yuv_clip, "--vmaf")
    assert all(point["vmaf"] is None for point in found["points"])
    assert any(note.endswith("VMAF is left out.") for note in found["notes"])


def test_images_are_converted(finished, film, tmp_path, hnerv_main, monkeypatch, capsys):
    monkeypatch.setitem(CODECS, "x264", CODECS["x264"]._replace(ladder=(30,)))
    path = tmp_path / "clip.hnerv"
    assert hnerv_main("encode", finished, "-o", path, "--no-measure") == 0
    assert hnerv_main("compare", path, "--data", film, "--against", "x264:ultrafast") == 0
    text = capsys.readouterr().out
    assert "PSNR in YUV was not measured: the source is not YUV video." in text and "YUV, dB" not in text
