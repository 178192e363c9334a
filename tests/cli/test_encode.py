"""`hnerv encode`: from the folder of a run to a file, and the numbers that it prints."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch

from hnerv.cli.encode import psnr_change
from hnerv.codec import open_single_chunk, play
from hnerv.evaluation import evaluate, open_run


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_the_printed_numbers_are_those_of_the_file(run_of, hnerv_main, tmp_path, capsys, kind):
    path = tmp_path / "deep" / "a.hnerv"
    assert hnerv_main("encode", run_of(kind), "-o", path, "--weight-bits", "5", "--latent-bits", "4") == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    opened = open_run(run_of(kind), torch.device("cpu"))
    before, after = evaluate(opened.model, opened.store), evaluate(open_single_chunk(path).model(), opened.store)
    lost = re.search(r"^full-frame PSNR relative to the float model: training (\S+) dB, unseen (\S+) dB$", out, re.M)
    for printed, split in zip(lost.groups(), ("train", "val"), strict=True):
        a, b = (getattr(report, split).psnr_frame.mean().item() for report in (after, before))
        assert float(printed) == pytest.approx(a - b, abs=2e-3)
    assert f"{path.stat().st_size:,}" in out
    assert f"play it:   hnerv decode {path} -o {path.with_name('a_decoded.mp4')}" in out
    assert open_single_chunk(path).encoder["epoch"] > 0


def test_a_change_that_rounds_to_zero_has_no_minus():
    tag = "Eval/Frame/train_psnr_frame"
    for after, expected in ((29.9996, "+0.000 dB"), (29.9994, "-0.001 dB")):
        assert expected in psnr_change({tag: 30.0}, {tag: after})


def test_a_checkpoint_and_its_folder_give_the_same_file_every_time(finished, hnerv_main, tmp_path, snapshot):
    before = snapshot(finished)
    places = [finished, finished / "checkpoints" / "latest.pt", finished]
    for number, place in enumerate(places):
        assert hnerv_main("encode", place, "-o", tmp_path / f"{number}.hnerv", "--no-measure") == 0
    assert len({(tmp_path / f"{number}.hnerv").read_bytes() for number in range(3)}) == 1
    assert snapshot(finished) == before


def test_without_measuring_the_video_is_not_needed(train, flags, make_film, hnerv_main, tmp_path, capsys):
    film = make_film(tmp_path / "film")
    assert train(tmp_path, flags(data=film, epochs=1, clip_targets=None, clip_weights="none")) == 0
    shutil.rmtree(film)
    capsys.readouterr()
    run, path = tmp_path / "run", tmp_path / "a.hnerv"
    for words in ([], ["--finetune-epochs", "1", "--no-measure"]):
        assert hnerv_main("encode", run, "-o", path, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "film" in line and not path.exists()
    assert hnerv_main("encode", run, "-o", path, "--no-measure") == 0
    assert "from the file" not in capsys.readouterr().out
    assert len(list(play(open_single_chunk(path).model(), range(12)))) == 12
    moved = make_film(tmp_path / "moved")
    assert hnerv_main("encode", run, "-o", path, "--data", moved, "--finetune-epochs", "1", "--overwrite") == 0
    assert open_single_chunk(path).encoder["finetune_epochs"] == 1


def test_all_options_reach_the_file(finished, hnerv_main, tmp_path):
    path = tmp_path / "a.hnerv"
    options = {"weight_bits": 6, "latent_bits": 5, "steps": "symmetric", "prune": 0.1, "finetune_epochs": 1}
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    words += ["--per-channel", "--finetune-lr", 1e-3, "--no-measure"]
    assert hnerv_main("encode", finished, "-o", path, *words) == 0
    note = open_single_chunk(path).encoder
    assert note.items() >= (options | {"per_channel": True}).items()


def test_a_target_rate(finished, hnerv_main, tmp_path):
    path = tmp_path / "a.hnerv"
    assert hnerv_main("encode", finished, "-o", path, "--target-bpp", 1.5, "--no-measure") == 0
    assert 0.95 * 1.5 <= 8 * path.stat().st_size / (12 * 32 * 64) <= 1.5


def test_an_older_file_is_replaced_and_kept_when_encoding_fails(finished, hnerv_main, tmp_path):
    path = tmp_path / "a.hnerv"
    path.write_bytes(b"older")
    assert hnerv_main("encode", finished, "-o", path, "--target-bpp", 0.001, "--no-measure", "--overwrite") == 2
    assert path.read_bytes() == b"older"
    assert hnerv_main("encode", finished, "-o", path, "--no-measure") == 2, "only with --overwrite"
    assert path.read_bytes() == b"older"
    assert hnerv_main("encode", finished, "-o", path, "--no-measure", "--overwrite") == 0
    assert np.stack(list(play(open_single_chunk(path).model(), range(2)))).shape == (2, 32, 64, 3)
    assert [found.name for found in tmp_path.iterdir()] == ["a.hnerv"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--weight-bits", "1"], "--weight-bits 1 must be 2 to 8, or 16"),
        (["--per-channel"], "--per-channel applies only to --steps"),
        (["--prune", "nan"], "--prune nan"),
        (["--target-bpp", "0.001", "--no-measure"], "the lowest rate of this model: raise it"),
        (["--finetune-epochs", "-1"], "--finetune-epochs -1 must be finite"),
        (["--device", "abacus"], "'abacus' is not a device"),
        (["--threads", "-3"], "--threads -3 must be at least 0"),
        (["--data", "gone.mp4"], "gone.mp4"),
        (["--clip-targets", "gone.safetensors"], "gone.safetensors"),
        (["-o", "a.mp4"], "-o a.mp4 does not end in .hnerv"),
        (["-o", "folder.hnerv"], "is a folder"),
        (["-o", "file/a.hnerv"], "is a file"),
    ],
)
def test_bad_flags_end_in_one_line_and_write_nothing(finished, tmp_path, monkeypatch, capsys, words, match):
    from hnerv.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.hnerv").mkdir()
    (tmp_path / "file").write_text("mine")
    output = [] if "-o" in words else ["-o", "a.hnerv"]
    with pytest.raises(SystemExit) as stop:
        main(["encode", str(finished), *output, *words])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert stop.value.code == 2 and out == "" and line.startswith("hnerv encode: ") and match in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.hnerv"]


@pytest.mark.parametrize("run", ["gone", "gone.pt", "empty", "text.pt"])
def test_bad_runs_end_in_one_line(tmp_path, hnerv_main, capsys, run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no checkpoint")
    for words in ([], ["--no-measure"]):
        assert hnerv_main("encode", tmp_path / run, "-o", tmp_path / "a.hnerv", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert run in line and not (tmp_path / "a.hnerv").exists()
