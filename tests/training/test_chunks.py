"""A run in segments is runs like any other, side by side."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from hnerv.config import Config
from hnerv.data.store import load_material
from hnerv.flags import parse_train
from hnerv.model import LATENTS, build_model
from hnerv.training.run import initialise_from

SEGMENTS = ["--segment-frames", "4"]


def weights(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "latest.pt")["model"]


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_segment_is_the_run_of_its_frames(divided, tmp_path, train, flags, targets_file):
    assert sorted(p.name for p in (divided / "segments").iterdir()) == ["00000", "00001", "00002"]
    rows = f"{targets_file}@4:8"
    assert train(tmp_path, flags(data_split="2_3_4", frames="4:8", clip_targets=rows)) == 0
    assert same(weights(divided / "segments" / "00001"), weights(tmp_path / "run"))


def test_the_whole_is_measured_over_all_frames(divided, lines_of, events_of):
    parts = [lines_of(run)[-1] for run in sorted((divided / "segments").iterdir())]
    (whole,) = lines_of(divided)
    assert whole["segments"] == 3 and whole["Eval/Info/num_train_frames"] == 6
    mean = sum(p["Eval/Frame/train_psnr_frame"] for p in parts) / 3
    assert whole["Eval/Frame/train_psnr_frame"] == pytest.approx(mean)
    assert whole["Eval/PSNR_Stats/val_min"] == min(p["Eval/PSNR_Stats/val_min"] for p in parts)
    values = {tag: points[-1][1] for tag, points in events_of(divided / "tensorboard").items() if "Eval/" in tag}
    assert values == {tag: pytest.approx(whole[tag], rel=1e-6) for tag in values} and len(values) > 20


def test_the_same_command_trains_what_is_missing(divided, tmp_path, train, flags, capsys, lines_of):
    shutil.copytree(divided, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "segments" / "00001")
    kept = tmp_path / "run" / "segments" / "00002" / "checkpoints" / "latest.pt"
    before = kept.stat().st_mtime_ns
    assert train(tmp_path, [*flags(data_split="2_3_4"), *SEGMENTS]) == 0
    assert capsys.readouterr().out.count("already finished") == 2 and kept.stat().st_mtime_ns == before
    assert same(weights(tmp_path / "run/segments/00001"), weights(divided / "segments" / "00001"))
    assert lines_of(tmp_path / "run") == lines_of(divided)


def test_a_segmented_run_whose_video_moved(divided, film, make_film, tmp_path, train, flags, capsys, snapshot):
    """With another video not even a finished segment is taken."""
    run = shutil.copytree(divided, tmp_path / "run")
    shutil.rmtree(run / "segments" / "00001")
    before = snapshot(run)
    other, moved = make_film(tmp_path / "other", shift=3), shutil.copytree(film, tmp_path / "moved")
    assert train(tmp_path, [*flags(data_split="2_3_4", data=other), *SEGMENTS]) == 2
    assert f"{other} does not decode to the frames that {run / 'segments/00000'} was" in capsys.readouterr().err
    assert snapshot(run) == before
    assert train(tmp_path, [*flags(data_split="2_3_4", data=moved), *SEGMENTS]) == 0
    assert capsys.readouterr().out.count("already finished") == 2
    assert same(weights(run / "segments/00001"), weights(divided / "segments/00001"))


def test_a_segment_that_was_stopped_goes_on(divided, tmp_path, train, flags):
    words = [*flags(data_split="2_3_4"), *SEGMENTS]
    assert train(tmp_path, [*words, "--max-minutes", "0.0001"]) == 124
    runs = sorted(p.name for p in (tmp_path / "run" / "segments").iterdir())
    assert runs == ["00000"]
    assert train(tmp_path, words) == 0
    for name in ("00000", "00001", "00002"):
        assert same(weights(tmp_path / "run/segments" / name), weights(divided / "segments" / name))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--segment-frames", "6"], "(--segment-frames 4 --segment-init none --frames all; this command has --seg"),
        (["--segment-frames", "4", "--segment-scenes"], "segmented with other flags"),
        (["--segment-frames", "4", "--frames", "0:8"], "segmented with other flags"),
        (["--segment-frames", "4", "--segment-init", "previous"], "segmented with other flags"),
        (["--segment-frames", "4", "--lr", "0.5"], "another configuration (lr is 0.004, this command has 0.5)"),
        ([], "holds a segmented run: choose another --exp-id, pass its --segment-* flags"),
        (["--segment-frames", "1"], "--segment-frames 1 must be at least 3, or 0"),
        (["--segment-init", "previous"], "--segment-init needs a video in segments"),
    ],
)
def test_what_does_not_fit_is_refused(words, told, divided, train, flags, capsys):
    before = {p: p.stat().st_mtime_ns for p in divided.rglob("*") if p.is_file()}
    assert train(divided.parent, [*flags(data_split="2_3_4"), *words]) == 2
    assert told in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in divided.rglob("*") if p.is_file()}


def test_a_folder_of_another_run_is_refused(finished, train, flags, capsys):
    assert train(finished.parent, [*flags(), *SEGMENTS]) == 2
    assert "is not a segmented run" in capsys.readouterr().err


def test_overwrite_moves_the_whole_aside(divided, tmp_path, train, flags):
    shutil.copytree(divided, tmp_path / "run")
    assert train(tmp_path, [*flags(data_split="2_3_4", epochs=3), "--segment-frames", "6", "--overwrite"]) == 0
    assert (tmp_path / "run.old1" / "segments" / "00002").is_dir()
    assert sorted(p.name for p in (tmp_path / "run" / "segments").iterdir()) == ["00000", "00001"]


def test_where_nothing_can_be_trained_nothing_is_left(tmp_path, train, flags, capsys):
    assert train(tmp_path, [*flags(crop="30x60"), *SEGMENTS]) == 2
    assert "--crop" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_where_nothing_can_be_trained_the_old_run_stays(divided, tmp_path, train, flags):
    shutil.copytree(divided, tmp_path / "run")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    assert train(tmp_path, [*flags(data_split="2_3_4", crop="30x60"), *SEGMENTS, "--overwrite"]) == 2
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".segments.json.77.tmp"]])
def test_killed_before_its_plan_was_written(left, divided, tmp_path, train, flags):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("{")
    assert train(tmp_path, [*flags(data_split="2_3_4"), *SEGMENTS]) == 0
    assert same(weights(tmp_path / "run/segments/00002"), weights(divided / "segments/00002"))
    assert not list((tmp_path / "run").glob(".*"))


def test_a_video_of_another_length_is_refused(divided, tmp_path, train, flags, make_film, capsys):
    """Though the segments that are left to train would not notice."""
    film = make_film(tmp_path / "film")
    words = [*flags(data=film, data_split="2_3_4", clip_weights="none", clip_targets=None), *SEGMENTS]
    assert train(tmp_path, words) == 0
    (film / "11.png").unlink()
    assert train(tmp_path, words) == 2
    assert "was started on a video of 12 frames" in capsys.readouterr().err


def test_params_name_the_division(tmp_path, train, flags):
    words = flags(data_split="2_3_4", epochs=2)
    assert train(tmp_path, [*words, *SEGMENTS, "--output", tmp_path], exp_id="{params}") == 0
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert folder.name.endswith("segment_frames=4") or len(folder.name) > 150


def test_no_log_where_none_is_wanted(tmp_path, train, flags):
    assert train(tmp_path, [*flags(data_split="2_3_4", epochs=2), *SEGMENTS, "--report-to", "none"]) == 0
    assert not list(tmp_path.rglob("events.*")) and (tmp_path / "run" / "metrics.jsonl").is_file()


def test_the_preset_of_a_run_is_found_again(tmp_path):
    place = tmp_path / "run" / "segments" / "00000"
    place.mkdir(parents=True)
    (place / "config.json").write_text('{"preset": "bunny-3m"}')
    asked = parse_train(["--exp-id", "run", "--output", str(tmp_path), *SEGMENTS])
    assert asked.resolve(cuda=False).preset == "bunny-3m"


def test_targets_of_other_frames_are_refused(tmp_path, train, flags, targets_file, capsys):
    """Frames 4 to 11 and a file of all twelve: the first eight of it are of other frames."""
    assert train(tmp_path, [*flags(data_split="2_3_4", frames="4:12"), *SEGMENTS]) == 2
    assert "is for 12 frames, but this run has 8: select" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_wish_to_stop_in_the_last_evaluation_ends_the_whole(divided, tmp_path, train, flags, monkeypatch, capsys):
    """The segment is finished and saved, the next one is not begun."""
    from hnerv.training.trainer import Trainer

    honest = Trainer.evaluate

    def evaluate(trainer):
        honest(trainer)
        if trainer.state.epoch == trainer.config.train.epochs:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    words = [*flags(data_split="2_3_4"), *SEGMENTS]
    assert train(tmp_path, words) == 143
    assert "stopped after segment 1 of 3" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run" / "segments").iterdir()] == ["00000"]
    monkeypatch.undo()
    assert train(tmp_path, words) == 0
    assert same(weights(tmp_path / "run/segments/00001"), weights(divided / "segments/00001"))


def test_rows_of_rows(tmp_path, train, flags, targets_file):
    """A range of the video and the same range of its targets, divided."""
    words = flags(data_split="2_3_4", frames="4:12", clip_targets=f"{targets_file}@4:12", epochs=2)
    assert train(tmp_path, [*words, *SEGMENTS]) == 0
    record = json.loads((tmp_path / "run/segments/00001/config.json").read_text())
    assert record["config"]["clip"]["clip_targets"] == f"{targets_file}@8:12"


def test_weights_of_the_segment_before(divided, tmp_path, train, flags):
    """It says where it started from; the first one starts as always."""
    assert train(tmp_path, [*flags(data_split="2_3_4"), *SEGMENTS, "--segment-init", "previous"]) == 0
    ours, theirs = (path / "segments" for path in (tmp_path / "run", divided))
    assert same(weights(ours / "00000"), weights(theirs / "00000"))
    assert not same(weights(ours / "00001"), weights(theirs / "00001"))
    record = json.loads((ours / "00001" / "config.json").read_text())
    assert record["initial"]["checkpoint"] == "00000" and len(record["initial"]["sha256"]) == 64
    assert record["config"]["model"]["dec_width"] == 8


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_what_is_taken_over(embedding, tmp_path, train, flags):
    """All weights of a video of another length; the latents are those of its last moment."""
    words = flags(embedding=embedding, epochs=2, blend_freq=2 if embedding != "encoder" else 0)
    assert train(tmp_path, [*words, "--frames", "0:7", "--clip-weights", "none", "--clip-targets", ""]) == 0
    run = tmp_path / "run"
    config = Config.from_dict(json.loads((run / "config.json").read_text())["config"]).replaced({"frames": "0:12"})
    material = load_material(config, torch.device("cpu"))
    model = build_model(config.model, material.scene)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialise_from(model, run / "checkpoints" / "latest.pt")
    theirs = weights(run)
    for name, value in model.state_dict().items():
        if not LATENTS.fullmatch(name):
            assert torch.equal(value, theirs[name]), name
        else:
            assert all(torch.equal(value[k], theirs[name][-1]) for k in range(len(value))), name
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_all_segments_share_the_targets_that_the_first_found(tmp_path, train, flags, capsys, monkeypatch):
    """The hub is gone when the first begins; it would be back for the second."""
    words = [*flags(data_split="2_3_4", clip_targets=None, epochs=2), *SEGMENTS]
    assert train(tmp_path, words) == 0
    shutil.rmtree(tmp_path / "run" / "segments" / "00002")
    from hnerv.data.clip import targets

    honest = targets.identify

    def identify(weights, *rest):
        assert weights != "auto", "resolved again"
        return honest(weights, *rest)

    monkeypatch.setattr(targets, "identify", identify)
    assert train(tmp_path, words) == 0


def test_that_the_targets_are_not_clip_is_said_once(tmp_path, train, flags, evaluate, hnerv_main, caplog):
    words = flags(data_split="2_3_4", epochs=1, clip_targets=None, clip_weights="random")
    path = tmp_path / "run"
    for command in (
        lambda: train(tmp_path, [*words, *SEGMENTS]),
        lambda: evaluate(path),
        lambda: hnerv_main("encode", path, "-o", tmp_path / "run.hnerv"),
        lambda: hnerv_main("report", path),
    ):
        caplog.clear()
        assert command() == 0
        assert [record.getMessage()[:9] for record in caplog.records] == ["NOT CLIP:"]


def test_a_video_that_is_not_there_leaves_no_folder(train, flags, tmp_path):
    words = flags(data=tmp_path / "gone.mp4", clip_targets=None, clip_weights="none")
    assert train(tmp_path / "new" / "output", [*words, "--segment-frames", "6"]) == 2
    assert not list(tmp_path.iterdir())
