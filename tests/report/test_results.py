"""A run folder as numbers: complete, half written, damaged, in chunks."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from hnerv.errors import UserError
from hnerv.report.results import is_current, read_curves, read_run


def change_summary(run, **changes):
    path = run / "eval" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_run_without_eval(finished, lines_of):
    data, lines = read_run(finished), lines_of(finished)
    assert data.epoch == data.epochs == data.values_epoch == 5 and data.name == "run"
    assert [e for e, _ in data.curves["Train/PSNR"]] == [1, 2, 3, 4, 5]
    assert data.values == {tag: value for tag, value in lines[-1].items() if tag.startswith("Eval/")}
    assert data.frames == data.patches == [] and data.summary == {} and data.baselines == ()
    assert data.environment["commit"] == json.loads((finished / "environment.json").read_text())[-1]["commit"]
    assert data.targets.startswith("file targets.safetensors")
    (chunk,) = data.chunks
    assert chunk.curves == data.curves and chunk.first == 0


def test_after_eval(evaluated):
    data = read_run(evaluated)
    assert len(data.frames) == 10 and len(data.patches) == 80
    assert [row.frame for row in data.frames if not row.seen] == [5, 11]
    assert {row.patch for row in data.frames} == {-1} and {row.patch for row in data.patches} == set(range(8))
    mean = sum(row.values["psnr"] for row in data.frames if row.seen) / 8
    assert data.values["Eval/Frame/train_psnr"] == pytest.approx(mean, abs=1e-5)
    assert [row.name for row in data.baselines] == ["CLIP head", "mean", "neighbours", "PCA table"]
    head = data.baselines[0]
    assert head.splits["val"]["centred"] == pytest.approx(data.values["Eval/Frame/val_clip_sim_centred"], abs=1e-6)
    assert head.unseen == head.splits["val"] and head.texts == {}


@pytest.mark.parametrize("semantics", [7, {}, {"rows": 7}, {"rows": [{}]}, {"rows": [{"name": "a", "bytes": "b"}]}])
def test_damaged_baselines_are_named(evaluated, semantics):
    change_summary(evaluated, semantics=semantics)
    with pytest.raises(UserError, match="is damaged at 'semantics': delete it"):
        read_run(evaluated)


@pytest.mark.parametrize("text", ["frame,split,psnr\n1,train,high\n", "frame,psnr\n1,2\n", "frame,split,psnr\n1\n"])
def test_damaged_tables_are_named(evaluated, text):
    (evaluated / "eval" / "per_frame.csv").write_text(text)
    with pytest.raises(UserError, match=r"per_frame\.csv is damaged .*: delete it and run eval\.py again"):
        read_run(evaluated)


def test_the_later_evaluation_counts(evaluated):
    for epoch in 3, 5:
        change_summary(evaluated, epoch=epoch, **{"Eval/Frame/val_psnr": 99.0})
        assert (read_run(evaluated).values["Eval/Frame/val_psnr"] == 99.0) == (epoch == 5)


def test_whether_eval_is_current(run, evaluated):
    assert not is_current(run, 5, run / "checkpoints" / "latest.pt")
    latest, table = evaluated / "checkpoints" / "latest.pt", evaluated / "eval" / "per_patch.csv"
    os.utime(evaluated / "eval" / "summary.json")
    assert is_current(evaluated, 5, latest)
    assert not is_current(evaluated, 6, latest) and not is_current(evaluated, 5, evaluated / "checkpoints" / "best.pt")
    table.rename(evaluated / "kept")
    assert not is_current(evaluated, 5, latest)
    (evaluated / "kept").rename(table)
    stamp = (evaluated / "eval" / "summary.json").stat().st_mtime + 5
    os.utime(latest, (stamp, stamp))
    assert not is_current(evaluated, 5, latest)


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


def test_a_video_in_chunks_is_one_run(divided, tmp_path):
    run = read_run(divided)
    assert [(chunk.first, chunk.name) for chunk in run.chunks] == [(0, "00000"), (4, "00001"), (8, "00002")]
    assert run.record.scene.frames == 12 and run.epoch == 5
    assert run.record.parameters == sum(chunk.record.parameters for chunk in run.chunks)
    ends = [chunk.curves["Train/PSNR"][-1][1] for chunk in run.chunks]
    assert run.curves["Train/PSNR"][-1][1] == pytest.approx(sum(ends) / 3)
    folder = shutil.copytree(divided, tmp_path / "run")
    for name in ("00001", "00000", "00002"):
        started = [chunk.name for chunk in read_run(folder).chunks]
        assert name in started
        shutil.rmtree(folder / "segments" / name)
    with pytest.raises(UserError, match="no segment of .* has been started"):
        read_run(folder)
