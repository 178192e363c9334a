"""`hnerv decode`: from a file alone to videos and folders of images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.codec import open_single_chunk
from hnerv.data.video import load_video
from hnerv.model.predict import predict


def expected(path: Path) -> np.ndarray:
    """The frames that an evaluation of the decoded model measures: (N, H, W, 3) uint8."""
    chunk = open_single_chunk(path)
    model = chunk.model().to(memory_format=torch.channels_last)
    times = torch.arange(chunk.scene.frames, dtype=torch.float32).split(4)
    rgb = torch.cat([predict(model, some).rgb for some in times])
    return (rgb.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def pictures(folder: Path) -> np.ndarray:
    if folder.suffix:
        return load_video(str(folder)).frames.permute(0, 2, 3, 1).numpy()
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize(("name", "threads"), [("encoder", "1"), ("rated", "2")])
def test_a_machine_that_has_only_the_file(coded, tmp_path, name, threads):
    """Another process and number of threads, with this folder as working directory and home."""
    shutil.copy(coded(name), tmp_path / "a.hnerv")
    words = ["decode", "a.hnerv", "-o", "deep/out.mkv", "--threads", threads, "--device", "cpu"]
    code = "from hnerv.cli import main; main()"
    environment = {"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ["PYTHONPATH"]}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 frames of 32x64 decoded and written to deep/out.mkv in ")
    assert load_video(str(tmp_path / "deep/out.mkv")).fps == pytest.approx(24)
    assert np.array_equal(pictures(tmp_path / "deep/out.mkv"), expected(coded(name)))


@pytest.mark.parametrize(
    ("name", "words", "positions"),
    [
        ("grid", "", range(12)),
        ("pe", "", range(12)),
        ("long", "10:25", range(10, 25)),
        ("long", "35:", range(35, 40)),
        ("long", "-2:", range(38, 40)),
        ("long", "30:20:-3", range(30, 20, -3)),
        ("long", "17:18", range(17, 18)),
    ],
)
def test_images_are_numbered_as_in_the_video_and_videos_keep_the_order(
    coded, hnerv_main, tmp_path, name, words, positions
):
    frames, chosen = expected(coded(name)), [f"--frames={words}"] if words else []
    assert hnerv_main("decode", coded(name), "-o", tmp_path / "out", *chosen) == 0
    assert np.array_equal(pictures(tmp_path / "out"), frames[sorted(positions)])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{position:05d}.png" for position in sorted(positions)]
    if positions.step != 1:
        assert hnerv_main("decode", coded(name), "-o", tmp_path / "out.mkv", *chosen) == 0
        assert np.array_equal(pictures(tmp_path / "out.mkv"), frames[list(positions)])


@pytest.mark.parametrize("name", ["out.mkv", "out"])
def test_output_is_replaced_only_with_overwrite(coded, hnerv_main, tmp_path, snapshot, capsys, name):
    words = ("decode", coded("grid"), "-o", tmp_path / name)
    assert hnerv_main(*words, "--frames", "0:3") == 0
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert hnerv_main(*words, "--frames", "5:6") == 2
    assert "--overwrite" in capsys.readouterr().err and snapshot(tmp_path) == before
    assert hnerv_main(*words, "--frames", "5:6", "--overwrite") == 0
    assert len(pictures(tmp_path / name)) == 1


def test_several_patches_get_an_output_each_and_one_the_name_itself(coded, hnerv_main, tmp_path):
    full, grid = expected(coded("grid")), open_single_chunk(coded("grid")).scene.grid
    assert hnerv_main("decode", coded("grid"), "-o", tmp_path / "a.mkv", "--patch", "1,3,1", "--frames", "2:7") == 0
    assert hnerv_main("decode", coded("grid"), "-o", tmp_path / "b", "--patch", "6") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_p1.mkv", "a_p3.mkv", "b"]
    for name, patch, frames in (("a_p1.mkv", 1, range(2, 7)), ("a_p3.mkv", 3, range(2, 7)), ("b", 6, range(12))):
        (top, left), (height, width) = grid.origin_of(patch), grid.patch_size
        cut = full[list(frames), top : top + height, left : left + width].astype(int)
        found = pictures(tmp_path / name).astype(int)
        # a convolution over fewer pixels may add up in another order, and a pixel round the other way
        assert found.shape == cut.shape and np.abs(found - cut).max() <= 1 and (found != cut).mean() < 1e-3


def test_an_mp4_is_for_viewing(coded, hnerv_main, tmp_path):
    assert hnerv_main("decode", coded("grid"), "-o", tmp_path / "a.mp4") == 0
    found = pictures(tmp_path / "a.mp4").astype(int)
    assert found.shape == (12, 32, 64, 3) and np.abs(found - expected(coded("grid"))).mean() < 15


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--frames", "5"], "--frames '5' must be start:stop:step"),
        (["--frames", "3:9:0"], "step other than 0"),
        (["--frames", "20:"], "selects none of the 12 frames"),
        (["--patch", "8"], "--patch '8' must be a list of patches from 0 to 7"),
        (["--patch", "1,,2"], "--patch '1,,2'"),
        (["--patch", "²"], "--patch"),
        (["--device", "abacus"], "--device 'abacus' is not a device"),
        (["--threads", "-1"], "--threads -1 must be at least 0"),
        (["-o", "out.avi"], ".avi is not supported"),
        (["-o", "taken"], "taken contains files other than frames"),
        (["-o", "file/out"], "is a file"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(coded, tmp_path, monkeypatch, capsys, words, match):
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
    entry = open_single_chunk(coded("grid")).entry
    data[entry.offset + entry.header_bytes + 5] ^= 1
    (tmp_path / "a.hnerv").write_bytes(data)
    assert hnerv_main("decode", tmp_path / "a.hnerv", "-o", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has a damaged section 'embedding.levels.0[0:4]'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.hnerv"]
