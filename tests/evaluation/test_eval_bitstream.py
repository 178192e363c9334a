"""eval.py on a .hnerv file: the coded model, the rate of the file, and nothing but the file and the video."""

from __future__ import annotations

import json
import shutil

import pytest

from hnerv.codec import open_single_chunk


@pytest.fixture
def file(coded, tmp_path):
    """A .hnerv file in a folder of its own."""
    return shutil.copy(coded("grid"), tmp_path / "clip.hnerv")


@pytest.mark.parametrize("targets", ["file", "none"])
def test_the_summary_is_that_of_the_file(file, finished, evaluate, film, targets_file, capsys, targets):
    words = (file, "--data", film, "--clip-targets", targets_file if targets == "file" else "none")
    assert evaluate(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    floating = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["Eval/Frame/val_psnr_frame"] == pytest.approx(floating["Eval/Frame/val_psnr_frame"], abs=0.02)
    assert found["file_bytes"] == file.stat().st_size and found["bpp"] == 8 * file.stat().st_size / (12 * 32 * 64)
    assert found["epoch"] == 5 and found["same_pixels_as_trained_on"] and found["targets_kind"] == targets
    assert sum(found["coded_parameters"].values()) == sum(part.parameters for part in open_single_chunk(file).parts())
    assert json.loads((file.parent / "clip_eval" / "eval" / "summary.json").read_text()) == found
    assert (file.parent / "clip_eval" / "tensorboard" / "eval").is_dir()
    if targets == "none":
        assert not [tag for tag in found if "clip" in tag]
    else:
        assert found["Eval/Frame/val_clip_sim"] == pytest.approx(floating["Eval/Frame/val_clip_sim"], abs=0.02)


def test_refusals(file, evaluate, film, tmp_path, capsys):
    for words, reason in (
        ((file, "--data", film), "no such file"),
        ((file, "--data", film, "--unseen", "encode"), "encoder"),
        ((tmp_path / "none.hnerv",), "cannot be read"),
    ):
        assert evaluate(*words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and reason in error
    file.write_bytes(file.read_bytes()[:-1])
    assert evaluate(file, "--data", film) == 2
    assert "is truncated" in capsys.readouterr().err
