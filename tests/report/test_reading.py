"""A run folder as numbers: whole, half written, damaged."""

from __future__ import annotations

import json
import os

import pytest

from hnerv.errors import UserError
from hnerv.report.reading import is_current, read_curves, read_run


def test_a_finished_run_without_eval(run, lines_of):
    data = read_run(run)
    lines = lines_of(run)
    assert data.epoch == data.epochs == data.values_epoch == 5 and data.name == "run"
    assert [e for e, _ in data.curves["Train/PSNR"]] == [1, 2, 3, 4, 5]
    assert data.values == {tag: value for tag, value in lines[-1].items() if tag.startswith("Eval/")}
    assert data.frames == data.patches == [] and data.summary == {}
    assert data.environment["commit"] == json.loads((run / "environment.json").read_text())[-1]["commit"]
    assert data.targets.startswith("file targets.safetensors")


def test_after_eval(run, evaluate):
    assert evaluate(run) == 0
    data = read_run(run)
    assert len(data.frames) == 10 and len(data.patches) == 80
    assert [row.frame for row in data.frames if not row.seen] == [5, 11]
    assert {row.patch for row in data.frames} == {-1} and {row.patch for row in data.patches} == set(range(8))
    mean = sum(row.values["psnr"] for row in data.frames if row.seen) / 8
    assert data.values["Eval/Frame/train_psnr"] == pytest.approx(mean, abs=1e-5)


def test_the_baselines_of_an_evaluation(run, evaluate):
    assert read_run(run).beside == () and evaluate(run) == 0
    data = read_run(run)
    assert [row.name for row in data.beside] == ["CLIP head", "mean", "neighbours", "PCA table"]
    head = data.beside[0]
    assert head.splits["val"]["centred"] == pytest.approx(data.values["Eval/Frame/val_clip_sim_centred"], abs=1e-6)
    assert head.unseen == head.splits["val"] and head.texts == {}


@pytest.mark.parametrize("found", [7, {}, {"rows": 7}, {"rows": [{}]}, {"rows": [{"name": "a", "bytes": "b"}]}])
def test_damaged_baselines_are_named(run, evaluate, found):
    assert evaluate(run) == 0
    path = run / "eval" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"semantics": found}))
    with pytest.raises(UserError, match="is damaged at 'semantics': delete it"):
        read_run(run)


def test_the_later_evaluation_counts(run, evaluate):
    assert evaluate(run) == 0
    path = run / "eval" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epoch": 3, "Eval/Frame/val_psnr": 99.0}))
    assert read_run(run).values["Eval/Frame/val_psnr"] != 99.0
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epoch": 5}))
    assert read_run(run).values["Eval/Frame/val_psnr"] == 99.0


def test_whether_eval_is_current(run, evaluate):
    latest = run / "checkpoints" / "latest.pt"
    assert not is_current(run, 5, latest)
    assert evaluate(run) == 0
    assert is_current(run, 5, latest)
    assert not is_current(run, 6, latest) and not is_current(run, 5, run / "checkpoints" / "best.pt")
    (run / "eval" / "per_patch.csv").rename(run / "kept")
    assert not is_current(run, 5, latest)
    (run / "kept").rename(run / "eval" / "per_patch.csv")
    stamp = (run / "eval" / "summary.json").stat().st_mtime + 5
    os.utime(latest, (stamp, stamp))
    assert not is_current(run, 5, latest)


def test_curves_of_a_run_that_is_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_curves(path) == {}
    path.write_text('{"kind": "train", "epoch": 1, "step": 4, "Train/PSNR": 20.0, "seconds": 1}\n{"kind": "tr')
    assert read_curves(path) == {"Train/PSNR": [(1, 20.0)], "seconds": [(1, 1.0)]}


@pytest.mark.parametrize("line", ["{", "[1]", '{"kind": "train"}', ""])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 2}}\n')
    with pytest.raises(UserError, match="is damaged at line 2: delete that line"):
        read_curves(path)


def test_no_run(tmp_path, run):
    with pytest.raises(UserError, match=r"is not a run folder \(it has no config\.json\)"):
        read_run(tmp_path)
    (run / "config.json").write_text('{"config": {}}')
    with pytest.raises(UserError, match="is not a run record"):
        read_run(run)


@pytest.mark.parametrize("text", ["frame,split,psnr\n1,train,high\n", "frame,psnr\n1,2\n", "frame,split,psnr\n1\n"])
def test_damaged_tables_are_named(run, evaluate, text):
    assert evaluate(run) == 0
    (run / "eval" / "per_frame.csv").write_text(text)
    with pytest.raises(UserError, match=r"per_frame\.csv is damaged .*: delete it and run eval\.py again"):
        read_run(run)
