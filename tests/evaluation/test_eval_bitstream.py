"""eval.py on a .hnerv file: the coded model, the rate of the file, and nothing but the file and the video."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hnerv.cli import main


@pytest.fixture
def coded(finished, tmp_path, capsys) -> Path:
    """A .hnerv file in a folder of its own."""
    main(["encode", str(finished), "-o", str(tmp_path / "clip.hnerv"), "--weight-bits", "16", "--latent-bits", "16"])
    capsys.readouterr()
    return tmp_path / "clip.hnerv"


def test_the_summary_is_that_of_the_file(coded, finished, evaluate, film, targets_file, capsys):
    assert evaluate(coded, "--data", film, "--clip-targets", targets_file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    floating = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["Eval/Frame/val_psnr_frame"] == pytest.approx(floating["Eval/Frame/val_psnr_frame"], abs=0.01)
    assert found["Eval/Frame/val_clip_sim"] == pytest.approx(floating["Eval/Frame/val_clip_sim"], abs=0.001)
    assert found["file_bytes"] == coded.stat().st_size
    assert found["bpp"] == 8 * coded.stat().st_size / (12 * 32 * 64)
    assert found["epoch"] == 5 and found["same_pixels_as_trained_on"]
    assert json.loads((coded.parent / "clip_eval" / "eval" / "summary.json").read_text()) == found
    assert (coded.parent / "clip_eval" / "tensorboard" / "eval").is_dir()


def test_without_targets_the_pixels_are_measured(coded, evaluate, film, capsys):
    assert evaluate(coded, "--data", film, "--clip-targets", "none", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["targets_kind"] == "none" and not [tag for tag in found if "clip" in tag]
    assert evaluate(coded, "--data", film) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_checkpoint_too_is_measured_without_targets(finished, tmp_path, evaluate, capsys):
    shutil.copytree(finished, tmp_path / "run")
    assert evaluate(tmp_path / "run", "--clip-targets", "none", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "bpp" not in found and not [tag for tag in found if "clip_sim" in tag]


def test_refusals(coded, evaluate, film, tmp_path, capsys):
    for words, reason in (
        ((coded, "--data", film, "--unseen", "encode"), "encoder"),
        ((tmp_path / "none.hnerv",), "cannot be read"),
    ):
        assert evaluate(*words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and reason in error
    coded.write_bytes(coded.read_bytes()[:-1])
    assert evaluate(coded, "--data", film) == 2
    assert "is truncated" in capsys.readouterr().err
