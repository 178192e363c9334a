"""A failing log costs one warning and nothing else; logs can be cut back to a checkpoint; W&B copies the events."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from hnerv.files import write_json
from hnerv.tracking import NullLogger, RunLogger, events_folder, metrics_file, rewind


@pytest.fixture
def warned(caplog):
    return lambda: [r.getMessage() for r in caplog.records if r.name == "hnerv"]


def fail(*_, **__):
    raise OSError("disk full")


def log(run, epochs, purge_step=0, report_to="tensorboard"):
    """-> the position after each epoch."""
    with RunLogger(events_folder(run), metrics_file(run), purge_step, report_to) as logger:
        positions = []
        for epoch in epochs:
            logger.scalars({"Train/PSNR": float(epoch)}, epoch)
            logger.record("train", {"epoch": epoch})
            positions.append(logger.position())
    return positions


def epochs_of(run):
    return [json.loads(line)["epoch"] for line in metrics_file(run).read_text().splitlines()]


def test_a_writer_that_raises_warns_once_and_lines_are_still_written(tmp_path, monkeypatch, warned):
    for name in ("add_scalar", "add_histogram", "add_text", "flush"):
        monkeypatch.setattr(SummaryWriter, name, fail)
    with RunLogger(events_folder(tmp_path), metrics_file(tmp_path), 0) as logger:
        logger.scalars({"Train/PSNR": 1.0, "Train/learning_rate": 2.0}, 1)
        logger.histogram("Eval/Histogram/train_psnr_distribution", torch.ones(3), 1)
        logger.text("Model/Info/run", "page", 0)
        logger.record("train", {"epoch": 1})
        # a shorter position would make a rewind cut lines of epochs that the checkpoint has
        assert logger.position()["metrics.jsonl"] == len('{"kind": "train", "epoch": 1}\n')
    assert len(warned()) == 1 and "disk full" in warned()[0] and "the run continues" in warned()[0]


@pytest.mark.parametrize(("events", "lines"), [(False, True), (True, False), (False, False)])
def test_what_cannot_be_opened_warns_once_and_the_other_is_written(tmp_path, warned, events_of, events, lines):
    if not events:
        events_folder(tmp_path).touch()
    if not lines:
        metrics_file(tmp_path).mkdir()
    assert log(tmp_path, [1])[0].keys() >= ({"metrics.jsonl"} if lines else set())
    assert len(warned()) == 1
    if events:
        assert events_of(events_folder(tmp_path))["Train/PSNR"] == [(1, 1.0)]
    if lines:
        assert epochs_of(tmp_path) == [1]


def test_a_file_that_vanishes_is_not_in_the_position(tmp_path, monkeypatch):
    found = [tmp_path / "gone", metrics_file(tmp_path)]
    monkeypatch.setattr("hnerv.tracking.logger._log_files", lambda *_: found)
    assert list(log(tmp_path, [1])[0]) == ["metrics.jsonl"]


def test_a_run_outlives_its_log(tmp_path, train, flags, monkeypatch, warned, finished):
    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    assert train(tmp_path, flags()) == 0
    assert len([text for text in warned() if "disk full" in text]) == 1
    ours, theirs = (torch.load(run / "checkpoints" / "latest.pt")["model"] for run in (tmp_path / "run", finished))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_unknown_tags_and_values_that_are_no_json_raise(tmp_path):
    with RunLogger(tmp_path, metrics_file(tmp_path), 0) as logger:
        with pytest.raises(KeyError):
            logger.scalars({"Train/accuracy": 1.0}, 1)
        with pytest.raises(KeyError):
            logger.curve("Train/accuracy", [1], [1.0], [0.0])
        with pytest.raises(ValueError, match="JSON"):
            logger.record("train", {"Train/PSNR": float("nan")})
    with NullLogger() as logger:
        logger.scalars({"anything": 1.0}, 1)
        assert logger.position() == {}


def test_rewind_cuts_back_to_a_position(tmp_path, events_of):
    first = log(tmp_path, range(1, 6))
    rewind(tmp_path, first[2])
    second = log(tmp_path, range(4, 8), 4)
    rewind(tmp_path, second[1])
    log(tmp_path, range(6, 8), 6)
    assert events_of(events_folder(tmp_path))["Train/PSNR"] == [(e, float(e)) for e in range(1, 8)]
    assert epochs_of(tmp_path) == list(range(1, 8))
    rewind(tmp_path, {})
    assert not metrics_file(tmp_path).exists() and not list(events_folder(tmp_path).iterdir())


def test_files_shorter_than_the_checkpoint_knew_them(tmp_path, events_of):
    """A machine lost the end of both: half a line is cut, and readers of events stop at half a record by themselves."""
    position = log(tmp_path, range(1, 9))[-1]
    for path in (*events_folder(tmp_path).iterdir(), metrics_file(tmp_path)):
        path.write_bytes(path.read_bytes()[:-5])
    rewind(tmp_path, position)
    log(tmp_path, [9], 9)
    assert epochs_of(tmp_path) == [*range(1, 8), 9]
    assert [step for step, _ in events_of(events_folder(tmp_path))["Train/PSNR"]] == [*range(1, 8), 9]


def test_a_curve_keeps_its_wall_times(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLogger(tmp_path, None, 0) as logger:
        logger.curve("Train_Batch/PSNR", range(1, 4), [1.0, 2.0, 3.0], [10.0, 11.5, 12.0])
    loaded = EventAccumulator(str(tmp_path))
    loaded.Reload()
    found = [(e.wall_time, e.step, e.value) for e in loaded.Scalars("Train_Batch/PSNR")]
    assert found == [(10.0, 1, 1.0), (11.5, 2, 2.0), (12.0, 3, 3.0)]


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: `calls` are the settings of each init, `config` and `finished` come later."""
    found = ModuleType("wandb")
    found.__spec__ = ModuleSpec("wandb", None)
    found.calls, found.config, found.finished = [], {}, []

    def init(**settings):
        assert settings["sync_tensorboard"] and settings["resume"] == "allow"
        known = list(Path(settings["dir"], "tensorboard").glob("events.*"))
        found.calls.append(settings | {"known": len(known)})
        update = lambda values, allow_val_change: found.config.update(values)  # noqa: E731
        return SimpleNamespace(config=SimpleNamespace(update=update), finish=lambda: found.finished.append(1))

    found.init = init
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def test_wandb_is_started_before_the_writer_and_copies_what_a_run_logs(tmp_path, wandb, train, flags, finished):
    assert train(tmp_path, [*flags(), "--histogram-freq", "2", "--graph", "--report-to", "wandb"]) == 0
    (call,) = wandb.calls
    assert (call["project"], call["name"], call["known"], len(wandb.finished)) == ("hnerv", "run", 0, 1)
    assert wandb.config["epochs"] == 5 and wandb.config["lr"] > 0
    kept = [sum(1 for _ in events_folder(run).glob("events.*")) for run in (tmp_path / "run", finished)]
    assert kept[0] == kept[1]


def test_a_wandb_run_is_resumed_with_its_run_and_no_other(tmp_path, wandb):
    for folder, started in (("a", "1"), ("a", "1"), ("a", "2"), ("b", "1")):
        write_json(tmp_path / folder / "run" / "environment.json", [{"started": started}, {"started": "later"}])
        log(tmp_path / folder / "run", [], report_to="wandb")
    ids = [call["id"] for call in wandb.calls]
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_a_wandb_that_fails_warns_once_and_the_events_are_kept(tmp_path, wandb, monkeypatch, warned, events_of):
    monkeypatch.setattr(wandb, "init", fail)
    log(tmp_path, [1, 2], report_to="wandb")
    assert len(warned()) == 1 and epochs_of(tmp_path) == [1, 2]
    assert len(events_of(events_folder(tmp_path))["Train/PSNR"]) == 2


def test_without_wandb_one_sentence_and_status_2(tmp_path, train, flags, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert train(tmp_path, [*flags(), "--report-to", "wandb"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--report-to wandb needs wandb, which is not installed: pip install wandb" in line
    assert not list(tmp_path.iterdir())
