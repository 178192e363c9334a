"""`hnerv semantics` of a run, a checkpoint and a file."""

from __future__ import annotations

import json

import pytest

from hnerv.codec import open_single_chunk


@pytest.fixture
def asked(hnerv_main, capsys):
    """asked(*words) -> (exit status, stdout, stderr)."""

    def call(*words):
        capsys.readouterr()
        return hnerv_main("semantics", *words), *capsys.readouterr()

    return call


def test_a_table_per_split(asked, finished):
    status, out, _ = asked(finished)
    assert status == 0
    blocks = out.split("\n\n")
    assert blocks[0].startswith("training frames ") and blocks[1].startswith("unseen frames ")
    names = [[line[:20].strip() for line in block.splitlines()[1:]] for block in blocks[:2]]
    assert names == [["CLIP head", "mean", "PCA table"], ["CLIP head", "mean", "neighbours", "PCA table"]]
    assert "the targets come from a file" in blocks[2] and "\ntargets: file" in blocks[2]
    assert asked(finished / "checkpoints" / "latest.pt")[1] == out


def test_json_has_the_bytes_of_the_file(asked, coded, film, targets_file):
    path = coded("grid")
    status, out, _ = asked(path, "--data", film, "--clip-targets", targets_file, "--json")
    found = json.loads(out)
    (section,) = [part.size for part in open_single_chunk(path).parts() if part.name == "clip_head"]
    assert status == 0 and found["rows"][0]["bytes"] == section and found["head_bytes_are"] == "measured"
    assert set(found["rows"][0]["splits"]["val"]) == {
        "cosine", "centred", "recall@1", "recall@5", "recall@10", "overlap@10", "Spearman"
    }  # fmt: skip
    assert set(found["rows"][1]["splits"]["val"]) == {"cosine", "centred"}


def test_random_targets_are_warned_of_once(asked, tmp_path, train, flags, caplog):
    assert train(tmp_path, flags(clip_targets=None, clip_weights="random", epochs=1)) == 0
    caplog.clear()
    assert asked(tmp_path / "run")[0] == 0
    assert [record.getMessage()[:9] for record in caplog.records] == ["NOT CLIP:"]


@pytest.mark.parametrize("case", ["none", "gone", "long"])
def test_what_cannot_be_compared_ends_in_one_line(asked, finished, coded, long_film, tmp_path, case):
    words = {
        "none": (finished, "--clip-targets", "none"),
        "gone": (tmp_path / "gone.hnerv",),
        "long": (coded("long"), "--data", long_film),
    }[case]
    status, out, err = asked(*words)
    assert status == 2 and out == ""
    (line,) = err.splitlines()
    assert line.startswith("hnerv semantics: ") and ": " in line[17:]
