"""What a report does with a run folder: evaluates when that is due, says what it could not have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hnerv.errors import UserError
from hnerv.report.making import Wishes, tell
from hnerv.report.page import render
from hnerv.report.wholes import read_any

WISHES = Wishes(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("evaluate")  # which measures speed for a moment only


def test_a_run_that_was_not_evaluated(run, evaluate):
    (story,) = tell([run], WISHES)
    assert story.missing == [] and len(story.shown) == 10
    assert story.run.values_epoch == 5 and len(story.run.frames) == 10
    summary = (run / "eval" / "summary.json").read_text()
    assert evaluate(run) == 0
    again = json.loads((run / "eval" / "summary.json").read_text())
    assert {k: v for k, v in json.loads(summary).items() if k != "decode_fps"} == {
        k: v for k, v in again.items() if k != "decode_fps"
    }


def test_an_evaluation_that_is_current_is_kept(run, evaluate, snapshot):
    assert evaluate(run) == 0
    before = snapshot(run)
    assert tell([run], WISHES)[0].shown
    assert snapshot(run) == before


def test_an_evaluation_without_baselines_is_completed(run, evaluate):
    assert evaluate(run) == 0
    path = run / "eval" / "summary.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in whole.items() if name != "semantics"}))
    (story,) = tell([run], WISHES)
    assert [row.name for row in story.run.beside] == ["CLIP head", "mean", "neighbours", "PCA table"]
    assert json.loads(path.read_text()) == whole


def test_an_old_evaluation_is_made_anew(run, evaluate):
    assert evaluate(run / "checkpoints" / "best.pt") == 0
    tell([run], WISHES)
    assert json.loads((run / "eval" / "summary.json").read_text())["checkpoint"].endswith("latest.pt")


@pytest.fixture
def homeless(tmp_path, train, flags, make_film) -> Path:
    """A finished run whose video is gone."""
    film = make_film(tmp_path / "film")
    assert train(tmp_path, flags(data=film, epochs=1)) == 0
    film.rename(tmp_path / "moved")
    return tmp_path / "run"


def test_a_video_that_is_gone(homeless, tmp_path):
    (story,) = tell([homeless], WISHES)
    (sentence,) = story.missing
    assert "no frames to show and no results per frame and patch" in sentence and "--data" in sentence
    assert story.shown == [] and story.run.values["Eval/Frame/val_psnr"] > 0
    assert not (homeless / "eval").exists()
    (story,) = tell([homeless], WISHES._replace(data=str(tmp_path / "moved")))
    assert story.missing == [] and story.shown


def test_a_video_that_is_gone_after_the_evaluation(homeless, evaluate, tmp_path):
    assert evaluate(homeless, "--data", tmp_path / "moved") == 0
    (story,) = tell([homeless], WISHES)
    assert len(story.run.frames) == 10 and "no frames to show. The model" in story.missing[0]
    path = homeless / "eval" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epoch": 0}))
    (story,) = tell([homeless], WISHES)
    assert "those of epoch 0" in story.missing[0]


def test_a_run_without_a_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    (story,) = tell([run], WISHES)
    assert "latest.pt is missing: " in story.missing[0] and story.run.values


def test_several_runs_show_the_same_frames_and_have_names_of_their_own(run, tmp_path):
    twin = Path(shutil.copytree(run, tmp_path / "deep" / "run"))
    stories = tell([run, twin], WISHES._replace(frames=5))
    assert [story.run.name for story in stories] == [str(run), str(twin)]
    assert stories[0].frames_shown == stories[1].frames_shown and len(stories[0].shown) == 5


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        tell([tmp_path], WISHES)


def test_a_run_in_segments_is_one_story(divided, tmp_path):
    """Evaluated segment by segment; frames, curves and numbers are those of the whole."""
    shutil.copytree(divided, tmp_path / "run")
    (story,) = tell([tmp_path / "run"], Wishes(torch.device("cpu")))
    run = story.run
    assert [segment.first for segment in story.segments] == [0, 4, 8] and not story.missing
    assert [row.frame for row in run.frames] == [0, 1, 3, 4, 5, 7, 8, 9, 11] and len(run.patches) == 72
    assert {shot.row.frame for shot in story.shown} == {row.frame for row in run.frames}
    assert run.record.scene.frames == 12 and run.epoch == 5
    seen = [row.values["psnr_frame"] for row in run.frames if row.seen]
    assert run.values["Eval/Frame/train_psnr_frame"] == pytest.approx(sum(seen) / len(seen), abs=1e-5)
    parts = [read_any(path) for path in sorted((tmp_path / "run" / "segments").iterdir())]
    assert run.curves["Train/PSNR"][-1][1] == pytest.approx(sum(p.curves["Train/PSNR"][-1][1] for p in parts) / 3)
    text = render([story])
    assert text.count('<th scope="row">0000') == 3 and "Segments" in text


def test_a_run_in_segments_without_its_video(divided, tmp_path):
    shutil.copytree(divided, tmp_path / "run")
    (story,) = tell([tmp_path / "run"], Wishes(torch.device("cpu"), data=str(tmp_path / "gone.mp4")))
    assert len(story.missing) == 3 and not story.shown and len(story.segments) == 3
    assert "could not be opened" in story.missing[0]


def test_segments_that_are_not_trained_yet(divided, tmp_path):
    shutil.copytree(divided, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "segments" / "00001")
    (story,) = tell([tmp_path / "run"], Wishes(torch.device("cpu")))
    assert [row.frame for row in story.run.frames] == [0, 1, 3, 8, 9, 11]
    for name in ("00000", "00002"):
        shutil.rmtree(tmp_path / "run" / "segments" / name)
    with pytest.raises(UserError, match="no segment of .* has been started"):
        tell([tmp_path / "run"], Wishes(torch.device("cpu")))
