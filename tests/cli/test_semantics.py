"""`hnerv semantics` of a run, a checkpoint and a file."""

from __future__ import annotations

import json

import pytest

from hnerv.codec import open_single_chunk


@pytest.fixture
def semantics(hnerv_main, capsys):
    """semantics(*words) -> (exit status, stdout, stderr)."""

    def call(*words):
        capsys.readouterr()
        return hnerv_main("semantics", *words), *capsys.readouterr()

    return call


def test_a_table_per_split(semantics, finished):
    status, out, _ = semantics(finished)
    assert status == 0
    train, val, notes = out.split("\n\n")
    assert train.startswith("training frames ") and val.startswith("unseen frames ")
    names = [[line[:20].strip() for line in block.splitlines()[1:]] for block in (train, val)]
    assert names == [["CLIP head", "mean", "PCA table"], ["CLIP head", "mean", "neighbours", "PCA table"]]
    assert "the targets come from a file" in notes and "\ntargets: file" in notes
    assert semantics(finished / "checkpoints" / "latest.pt")[1] == out


def test_json_has_the_bytes_of_the_file(semantics, coded, film, targets_file):
    path = coded("grid")
    status, out, _ = semantics(path, "--data", film, "--clip-targets", targets_file, "--json")
    found = json.loads(out)
    (section,) = [part.size for part in open_single_chunk(path).parts() if part.name == "clip_head"]
    assert status == 0 and found["rows"][0]["bytes"] == section and found["head_bytes_are"] == "measured"
    names = ["cosine", "centred", "recall@1", "exact@1", "recall@5", "recall@10", "overlap@10", "Spearman"]
    assert [list(row["splits"]["val"]) for row in found["rows"][:2]] == [names, names[:2]]


def test_random_targets_are_warned_of_once(semantics, tmp_path, train, flags, caplog):
    assert train(tmp_path, flags(clip_targets=None, clip_weights="random", epochs=1)) == 0
    caplog.clear()
    assert semantics(tmp_path / "run")[0] == 0
    assert [record.getMessage()[:9] for record in caplog.records] == ["NOT CLIP:"]


def test_errors_are_one_line(semantics, finished, film, tmp_path, train, flags, hnerv_main):
    pixels = tmp_path / "pixels.hnerv"
    assert train(tmp_path, flags(clip_targets=None, clip_weights="none", epochs=1)) == 0
    assert hnerv_main("encode", tmp_path / "run", "-o", pixels, "--no-measure") == 0
    for words, reason in (
        ((finished, "--clip-targets", "none"), "leaves out the CLIP head"),
        ((tmp_path / "gone.hnerv",), "gone.hnerv"),
        ((pixels, "--data", film), "has no CLIP head"),
    ):
        status, out, err = semantics(*words)
        assert status == 2 and out == ""
        (line,) = err.splitlines()
        assert line.startswith("hnerv semantics: ") and reason in line
