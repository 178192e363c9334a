"""`hnerv rate-distortion`: a curve in miniature, stopped and resumed, its ladder, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
import signal
from pathlib import Path

import pytest
from PIL import Image

from hnerv.cli.rate_distortion import curve_choice, ladder
from hnerv.codec.comparison.codecs import CODECS
from hnerv.config import Config
from hnerv.presets import PRESETS
from hnerv.runs.models import open_checkpoint
from hnerv.training.trainer import Trainer

NAMES = ["0.006m", "0.024m"]


@pytest.fixture
def words(flags, monkeypatch) -> list[object]:
    """The curve in miniature: two points of two epochs of 4 steps, and two points of x264."""
    monkeypatch.setitem(CODECS, "x264", CODECS["x264"]._replace(ladder=(20, 40)))
    changes = {"dec_width": None, "data_split": None, "modelsize": 0.012, "resize": "", "batch_size": 3, "epochs": 2}
    return [*flags(**changes), "--dec-depths", 1, "--points", 2, "--against", "x264"]


@pytest.fixture
def curve(words, hnerv_main, tmp_path):
    """curve(*words) -> exit status; the folder is `curve`."""
    return lambda *more: hnerv_main("rate-distortion", "-o", tmp_path / "curve", *words, *more)


def stop_in(monkeypatch, method: str, number: int) -> None:
    """Ctrl-C during the call of this number, counted from now."""
    count, original = itertools.count(1), getattr(Trainer, method)

    def stopped(self):
        if next(count) == number:
            signal.raise_signal(signal.SIGINT)
        original(self)

    monkeypatch.setattr(Trainer, method, stopped)


def test_a_curve_is_trained_resumed_and_compared(curve, tmp_path, film, snapshot, monkeypatch, capsys):
    """Stopped in the second step of the second point, then in its last evaluation."""
    folder = tmp_path / "curve"
    with monkeypatch.context() as patch:
        stop_in(patch, "advance", 10)
        assert curve() == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "hnerv rate-distortion: stopped at epoch 1, step 2 of 4" in line and "run the same command to resume" in line
    first = {name: data for name, data in snapshot(folder).items() if name.startswith("0.006m")}
    assert "0.006m.hnerv" in first and not (folder / "0.024m.hnerv").exists()
    with monkeypatch.context() as patch:
        stop_in(patch, "evaluate", 1)
        assert curve() == 130
    assert "stopped after training" in capsys.readouterr().err and not (folder / "0.024m.hnerv").exists()
    assert curve() == 0
    out = capsys.readouterr().out
    assert snapshot(folder).items() >= first.items(), "a finished point is not trained or encoded again"
    assert out.count("already trained") == 2 and out.count("already encoded") == 1
    for name in NAMES:
        assert f"{folder / name}.hnerv (" in out
    assert out.count("x264 medium needs") + out.count("x264 medium was measured only") == 2
    table = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [row["codec"] for row in table] == ["hnerv", "hnerv", "x264 medium", "x264 medium"]
    assert [int(row["bytes"]) for row in table[:2]] == [(folder / f"{name}.hnerv").stat().st_size for name in NAMES]
    assert json.loads((folder / "comparison.json").read_text())["clip"]["frames"] == len(list(film.iterdir()))
    with Image.open(folder / "comparison.png") as plot:
        assert plot.size[0] > 500
    small, large = (open_checkpoint(folder / name).record for name in NAMES)
    assert sum(small.coded_parameters.values()) <= 6000 < sum(large.coded_parameters.values()) <= 24000
    assert len(small.scene.train) == small.scene.frames == 12, "all frames are trained on"

    finished = snapshot(folder)
    assert curve("--epochs", 3) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / NAMES[0]} holds a run with another configuration (epochs is 2, this command has 3)" in line
    assert "choose another -o, pass its settings to resume it, or --overwrite" in line and snapshot(folder) == finished


def test_a_file_older_than_its_run_is_written_again(curve, tmp_path, capsys):
    """As it is where the training of a point has just ended, in the folder of an earlier curve."""
    file = tmp_path / "curve" / "0.006m.hnerv"
    file.parent.mkdir()
    file.write_bytes(b"of an earlier curve")
    assert curve() == 0 and len(file.read_bytes()) > 1000
    before = file.stat().st_mtime_ns
    capsys.readouterr()
    assert curve("--overwrite") == 0 and "already" not in capsys.readouterr().out
    assert file.stat().st_mtime_ns > before and (file.parent / "0.006m.old1").is_dir()


def test_a_limit_of_time_ends_the_curve(curve, tmp_path, capsys):
    assert curve("--max-minutes", "0.0001") == 124
    (line,) = capsys.readouterr().err.splitlines()
    assert "--max-minutes reached" in line and [path.name for path in (tmp_path / "curve").iterdir()] == ["0.006m"]


def test_the_ladder():
    """Sizes in equal ratios from half to twice; w falls to a factor 2^-1.5 per doubling of the size."""
    choice = curve_choice("", {"rate_weight": 0.01})
    points = ladder(choice, 5)
    assert [point.name for point in points] == ["0.12m", "0.17m", "0.24m", "0.339m", "0.48m"]
    weights = [point.choice.config.loss.rate_weight for point in points]
    assert weights == pytest.approx([0.01 * 2**1.5, 0.01 * 2**0.75, 0.01, 0.01 * 2**-0.75, 0.01 * 2**-1.5], rel=0.005)
    assert points[2].choice.config == choice.config
    without = ladder(curve_choice("", {"rate_weight": 0.0}), 4)
    assert {point.choice.config.loss.rate_weight for point in without} == {0.0}
    assert len({point.name for point in ladder(choice, 64)}) == 64


def test_the_settings_of_a_curve():
    """The default preset on all frames; the crop of its clip is not that of another video."""
    preset = Config().flat() | PRESETS["demo-codec"]
    assert curve_choice("", {}).config.flat() == preset
    assert curve_choice("", {"data": "a.mp4"}).config.flat() == preset | {"data": "a.mp4", "crop": ""}
    given = {"data": "a.mp4", "data_split": "9_9_10"}
    assert curve_choice("bunny-3m", given).config.flat() == Config().flat() | PRESETS["bunny-3m"] | given


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--points", 1], "--points 1 must be at least 2"),
        (["--points", 1 << 40], "and at most 64"),
        (["-o", "file"], "--output file is a file: pass a folder"),
        (["-o", "file/curve"], "choose another --output"),
        (["--data", "gone.mp4"], "gone.mp4"),
        (["--against", "x266"], "is not a known codec"),
        (["--preset", "huge"], "--preset 'huge' does not exist"),
        (["--modelsize", 0.002], "below the"),
        (["--modelsize", -1], "--modelsize -1.0 must be above 0"),
        (["--dec-width", 8], "is not a flag of hnerv rate-distortion: set --modelsize"),
        (["--exp-id", "a"], "each point is named after its size"),
        (["--target-bpp", 0.1], "set --rate-weight, from which that of each point follows"),
        (["--segment-frames", 4], "the comparison reads files with one network"),
        (["--device", "abacus"], "'abacus' is not a device"),
    ],
)
def test_bad_flags_end_in_one_line_and_write_nothing(curve, tmp_path, monkeypatch, capsys, more, match):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert curve(*more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hnerv rate-distortion: ") and match in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_the_codecs_cannot_code_is_not_trained(curve, tmp_path, monkeypatch, capsys):
    odd = ["--crop", "31x63", "--grid", "1x1", "--dec-strides", 1, "--enc-strides", 1, "--modelsize", 1]
    assert curve(*odd, "--clip-targets", "", "--clip-weights", "none") == 2
    assert "even frame sizes, not 31x63" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr("av.codec.codecs_available", set())
    assert curve() == 2 and "no encoder for x264" in capsys.readouterr().err
