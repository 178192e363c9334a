"""`hnerv decode`: what another machine, which has only the file, writes to its disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.codec import Bitstream
from hnerv.data.video import load_video
from hnerv.model.predict import predict


def expected(path: Path) -> np.ndarray:
    """What an evaluation of the coded model measures: (N, H, W, 3) uint8."""
    stream = Bitstream(path)
    model = stream.model().to(memory_format=torch.channels_last)
    times = torch.arange(stream.scene.frames, dtype=torch.float32).split(4)
    rgb = torch.cat([predict(model, some).rgb for some in times])
    return (rgb.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def pictures(folder: Path) -> np.ndarray:
    if folder.suffix == ".mkv":
        return load_video(str(folder)).frames.permute(0, 2, 3, 1).numpy()
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))])


def elsewhere(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """The console script in another process, whose working directory and home are `folder`."""
    code = "from hnerv.cli import main; main()"
    given = [sys.executable, "-c", code, *words, "--threads", "1", "--device", "cpu"]
    environment = {"PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(given, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("embedding", "output"), [("grid", "out"), ("encoder", "out.mkv"), ("pe", "deep/out")])
def test_a_machine_that_has_only_the_file(coded, tmp_path, embedding, output):
    shutil.copy(coded(embedding), tmp_path / "a.hnerv")
    done = elsewhere(tmp_path, "decode", "a.hnerv", "-o", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"12 frames of 32x64 decoded and written to {output} in ")
    if output.endswith(".mkv"):
        assert load_video(str(tmp_path / output)).fps == pytest.approx(24)
    assert np.array_equal(pictures(tmp_path / output), expected(coded(embedding)))


@pytest.mark.parametrize(
    ("words", "positions"),
    [
        ("", range(40)),
        ("10:25", range(10, 25)),
        (":3", range(3)),
        ("35:", range(35, 40)),
        ("-2:", range(38, 40)),
        ("30:20:-3", range(30, 20, -3)),
        ("::-1", range(39, -1, -1)),
        ("17:18", range(17, 18)),
    ],
)
def test_images_are_those_of_the_whole_video_and_have_their_numbers(coded, hnerv_main, tmp_path, words, positions):
    assert hnerv_main("decode", coded("long"), "-o", tmp_path / "out", *([f"--frames={words}"] if words else [])) == 0
    assert np.array_equal(pictures(tmp_path / "out"), expected(coded("long"))[sorted(positions)])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{position:05d}.png" for position in sorted(positions)]


def test_a_video_has_the_frames_in_the_order_asked_for(coded, hnerv_main, tmp_path):
    assert hnerv_main("decode", coded("long"), "-o", tmp_path / "out.mkv", "--frames=30:20:-3") == 0
    assert np.array_equal(pictures(tmp_path / "out.mkv"), expected(coded("long"))[[30, 27, 24, 21]])


@pytest.mark.parametrize("name", ["out.mkv", "out"])
def test_what_is_there_is_replaced_only_when_asked(coded, hnerv_main, tmp_path, snapshot, capsys, name):
    words = ("decode", coded("grid"), "-o", tmp_path / name)
    assert hnerv_main(*words, "--frames", "0:3") == 0
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert hnerv_main(*words, "--frames", "5:6") == 2
    assert "--overwrite" in capsys.readouterr().err and snapshot(tmp_path) == before
    assert hnerv_main(*words, "--frames", "5:6", "--overwrite") == 0
    assert len(pictures(tmp_path / name)) == 1


def test_patches_get_a_folder_each_and_one_alone_the_name_itself(coded, hnerv_main, tmp_path):
    whole, grid = expected(coded("grid")), Bitstream(coded("grid")).scene.grid
    assert hnerv_main("decode", coded("grid"), "-o", tmp_path / "a", "--patch", "1,3,1", "--frames", "2:7") == 0
    assert hnerv_main("decode", coded("grid"), "-o", tmp_path / "b", "--patch", "6") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_p1", "a_p3", "b"]
    for name, patch, frames in (("a_p1", 1, range(2, 7)), ("a_p3", 3, range(2, 7)), ("b", 6, range(12))):
        (top, left), (height, width) = grid.origin_of(patch), grid.patch_size
        cut = whole[list(frames), top : top + height, left : left + width].astype(int)
        found = pictures(tmp_path / name).astype(int)
        # a convolution over fewer pixels may add up in another order, and a pixel round the other way
        assert found.shape == cut.shape and np.abs(found - cut).max() <= 1 and (found != cut).mean() < 1e-3


def test_patches_as_videos(coded, hnerv_main, tmp_path):
    assert hnerv_main("decode", coded("grid"), "-o", tmp_path / "a.mkv", "--patch", "0,7") == 0
    for patch in (0, 7):
        assert load_video(str(tmp_path / f"a_p{patch}.mkv")).frames.shape == (12, 3, 16, 16)


def test_an_mp4_is_to_look_at(coded, hnerv_main, tmp_path):
    assert hnerv_main("decode", coded("long"), "-o", tmp_path / "a.mp4") == 0
    found = load_video(str(tmp_path / "a.mp4")).frames.permute(0, 2, 3, 1).numpy().astype(int)
    assert found.shape == (40, 32, 64, 3)
    assert np.abs(found - expected(coded("long"))).mean() < 15


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--frames", "5"], "--frames '5' must be start:stop:step"),
        (["--frames", "3:9:0"], "step other than 0"),
        (["--frames", "20:"], "selects none of the 12 frames"),
        (["--frames", "9:3"], "selects none of the 12 frames"),
        (["--patch", "8"], "--patch '8' must be a list of patches from 0 to 7"),
        (["--patch", "1,,2"], "--patch '1,,2'"),
        (["--patch=-1"], "--patch '-1'"),
        (["--patch", "a"], "--patch 'a'"),
        (["--patch", "²"], "--patch"),
        (["--device", "abacus"], "--device 'abacus' is not a device"),
        (["--threads", "-1"], "--threads -1 must be at least 0"),
        (["-o", "out.avi"], ".avi is not supported"),
        (["-o", "taken"], "taken contains files other than frames"),
        (["-o", "file/out"], "is a file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(coded, tmp_path, monkeypatch, capsys, words, match):
    from hnerv.cli import main

    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    output = [] if "-o" in words else ["-o", "out"]
    with pytest.raises(SystemExit) as stop:
        main(["decode", str(coded("grid")), *output, *words])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert stop.value.code == 2 and out == "" and match in line
    assert sorted(str(path) for path in Path().rglob("*")) == ["file", "taken", "taken/notes.txt"]


def test_a_damaged_section_leaves_nothing_behind(coded, hnerv_main, tmp_path, capsys):
    data = bytearray(coded("grid").read_bytes())
    data[Bitstream(coded("grid")).container.header_bytes + 5] ^= 1
    (tmp_path / "a.hnerv").write_bytes(data)
    assert hnerv_main("decode", tmp_path / "a.hnerv", "-o", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has a damaged section 'embedding.levels.0[0:4]'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.hnerv"]
