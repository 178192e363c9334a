"""What the page shows of a run folder: evaluates when that is due, picks and draws frames, reports what is missing."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hnerv.errors import UserError
from hnerv.evaluation import cost, open_run
from hnerv.report import contents
from hnerv.report.contents import ReportOptions, collect, draw_frames, pick_frames
from hnerv.report.page import render_report
from hnerv.report.results import read_run

OPTIONS = ReportOptions(torch.device("cpu"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(cost, "decode_fps", lambda model: 100.0)


def summary_of(run: Path) -> dict:
    return json.loads((run / "eval" / "summary.json").read_text())


def test_a_run_is_evaluated_as_eval_does_it(run, evaluated):
    (report,) = collect([run], OPTIONS)
    assert report.missing == [] and len(report.shown) == 10
    assert report.run.values_epoch == 5 and len(report.run.frames) == 10
    same = {key: value for key, value in summary_of(evaluated).items() if key != "checkpoint"}
    assert {key: value for key, value in summary_of(run).items() if key != "checkpoint"} == same


def test_a_current_evaluation_is_kept_and_an_older_one_replaced(evaluated, snapshot):
    os.utime(evaluated / "eval" / "summary.json")
    before = snapshot(evaluated)
    assert collect([evaluated], OPTIONS)[0].shown and snapshot(evaluated) == before
    path, complete = evaluated / "eval" / "summary.json", summary_of(evaluated)
    path.write_text(json.dumps({name: value for name, value in complete.items() if name != "semantics"}))
    (report,) = collect([evaluated], OPTIONS)
    assert [row.name for row in report.run.baselines] == ["CLIP head", "mean", "neighbours", "PCA table"]
    assert summary_of(evaluated) == complete, "only the baselines were measured"
    path.write_text(json.dumps(complete | {"checkpoint": "best.pt", "epoch": 3}))
    collect([evaluated], OPTIONS)
    assert summary_of(evaluated)["epoch"] == 5


def test_a_video_that_moved(tmp_path, train, flags, make_film):
    film = make_film(tmp_path / "film")
    assert train(tmp_path, flags(data=film, epochs=1)) == 0
    film.rename(tmp_path / "moved")
    run = tmp_path / "run"
    (report,) = collect([run], OPTIONS)
    (sentence,) = report.missing
    assert "no frames to show and no results per frame and patch" in sentence and "--data" in sentence
    assert report.shown == [] and report.run.values["Eval/Frame/val_psnr"] > 0 and not (run / "eval").exists()
    (report,) = collect([run], OPTIONS._replace(data=str(tmp_path / "moved")))
    assert report.missing == [] and report.shown
    (report,) = collect([run], OPTIONS)
    assert len(report.run.frames) == 10 and "no frames to show. The model" in report.missing[0]
    (run / "eval" / "summary.json").write_text(json.dumps(summary_of(run) | {"epoch": 0}))
    assert "those of epoch 0" in collect([run], OPTIONS)[0].missing[0]


def test_a_run_without_a_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    (report,) = collect([run], OPTIONS)
    assert "latest.pt is missing: " in report.missing[0] and report.run.values


def test_several_runs_show_the_same_frames_and_have_distinct_names(evaluated, run, tmp_path):
    twin, other = Path(shutil.copytree(evaluated, tmp_path / "deep" / "evaluated")), run
    reports = collect([evaluated, twin, other], OPTIONS._replace(frames=5))
    assert [report.run.name for report in reports] == [str(evaluated), str(twin), "run"]
    frames = [[frame.row.frame for frame in report.shown] for report in reports]
    assert frames[0] == frames[1] == frames[2] and len(frames[0]) == 5


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        collect([tmp_path], OPTIONS)


def test_a_video_in_chunks_is_one_report(divided, tmp_path):
    folder = Path(shutil.copytree(divided, tmp_path / "run"))
    (report,) = collect([folder], OPTIONS._replace(data=str(tmp_path / "gone.mp4")))
    assert len(report.missing) == 3 and not report.shown and "could not be opened" in report.missing[0]
    (report,) = collect([folder], OPTIONS)
    run = report.run
    assert [row.frame for row in run.frames] == [0, 1, 3, 4, 5, 7, 8, 9, 11] and len(run.patches) == 72
    assert not report.missing and [frame.row.frame for frame in report.shown] == [row.frame for row in run.frames]
    seen = [row.values["psnr_frame"] for row in run.frames if row.seen]
    assert run.values["Eval/Frame/train_psnr_frame"] == pytest.approx(sum(seen) / len(seen), abs=1e-5)
    text = render_report([report._replace(shown=[])])
    assert text.count('<th scope="row">0000') == 3 and "Segments" in text
    shutil.rmtree(folder / "segments" / "00001")
    (report,) = collect([folder], OPTIONS)
    assert report.missing == ["1 of 3 segments not started: run the training command again."]
    assert [row.frame for row in report.run.frames] == [0, 1, 3, 8, 9, 11]


def test_the_ends_of_both_splits_are_among_the_chosen(rows):
    chosen = pick_frames(rows(120), 12)
    assert len(chosen) == 12 and list(chosen) == sorted(chosen)
    reasons = {0: "worst training frame", 5: "worst unseen frame", 118: "best training frame", 119: "best unseen frame"}
    assert {frame: reason for frame, reason in chosen.items() if reason} == reasons
    assert sum(frame % 6 == 5 for frame in chosen) == 5


@given(st.integers(6, 60), st.integers(1, 80), st.booleans())
def test_as_many_frames_as_there_is_room_for(rows, count, most, only_seen):
    measured = [row for row in rows(count) if row.seen or not only_seen]
    chosen = pick_frames(measured, most)
    assert set(chosen) <= {row.frame for row in measured} and list(chosen) == sorted(chosen)
    ends = sum(bool(reason) for reason in chosen.values())
    assert ends <= 4 and len(chosen) == min(max(most, ends), len(measured))


def test_the_frames_of_another_run(rows):
    assert pick_frames(rows(12), 4, [0, 3, 5]) == {0: "worst training frame", 3: "", 5: "worst unseen frame"}
    assert pick_frames(rows(12), 4, [0, 99]) == pick_frames(rows(12), 4)


def pixels(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(float)


def test_the_pictures_are_the_frames(finished, rows, monkeypatch):
    opened = open_run(finished, torch.device("cpu"))
    reasons = {0: "", 5: "why", 11: ""}
    chosen = [row for row in rows() if row.frame in reasons]
    shown = draw_frames(opened, chosen, reasons, budget=10**9)
    assert [(frame.row.frame, frame.reason) for frame in shown] == [(0, ""), (5, "why"), (11, "")]
    for frame in shown:
        where = torch.tensor([frame.row.frame])
        truth = opened.store.frames(where)[0].permute(1, 2, 0).numpy() * 255
        with torch.no_grad():
            rgb = opened.model(where.float()).rgb[0].permute(1, 2, 0).numpy() * 255
        assert pixels(frame.truth).shape == (32, 64, 3)
        assert np.abs(pixels(frame.truth) - truth).mean() < 8
        assert np.abs(pixels(frame.reconstruction) - rgb).mean() < 8
    small = draw_frames(opened, chosen, reasons, budget=1)
    assert sum(len(frame.truth) for frame in small) < sum(len(frame.truth) for frame in shown)
    monkeypatch.setattr(contents, "WIDEST", 16)
    (frame,) = draw_frames(opened, rows()[3:4], {3: ""}, 10**9)
    assert {pixels(uri).shape for uri in (frame.truth, frame.reconstruction, frame.error)} == {(8, 16, 3)}


def test_unseen_frames_that_the_encoder_saw_are_drawn_so(tmp_path, train, flags):
    assert train(tmp_path, flags(embedding="encoder", unseen="encode", epochs=1, pixel_loss_warmup_epochs=0)) == 0
    collect([tmp_path / "run"], OPTIONS)
    rows = read_run(tmp_path / "run").frames
    assert {row.split for row in rows} == {"train", "val-encoded"}
    opened = open_run(tmp_path / "run", torch.device("cpu"))
    (shown,) = draw_frames(opened, [row for row in rows if row.frame == 5], {5: ""}, 10**9)
    with torch.no_grad():
        frames = opened.store.frames(torch.tensor([5]))
        seen, unseen = (
            (opened.model(torch.tensor([5.0]), given).rgb[0].permute(1, 2, 0) * 255).numpy() for given in (frames, None)
        )
    away = seen - unseen  # far less than what the compression of the picture loses, but in a direction of its own
    assert 0.5 < ((pixels(shown.reconstruction) - unseen) * away).sum() / np.square(away).sum() < 1.5
