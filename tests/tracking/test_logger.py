"""A failing log is said once and costs nothing else; files can be cut back to a checkpoint."""

from __future__ import annotations

import json

import pytest
import torch

from hnerv.tracking import RunLogger, events_folder, metrics_file, rewind


@pytest.fixture
def warned(caplog):
    return lambda: [r.getMessage() for r in caplog.records if r.name == "hnerv"]


def test_a_writer_that_raises_warns_once(tmp_path, monkeypatch, warned):
    from torch.utils.tensorboard import SummaryWriter

    def broken(*_, **__):
        raise OSError("disk full")

    for name in ("add_scalar", "add_histogram", "add_text", "flush"):
        monkeypatch.setattr(SummaryWriter, name, broken)
    with RunLogger(tmp_path / "tensorboard", tmp_path / "metrics.jsonl", 0) as logger:
        logger.scalars({"Train/PSNR": 1.0, "Train/learning_rate": 2.0}, 1)
        logger.histogram("Eval/Histogram/train_psnr_distribution", torch.ones(3), 1)
        logger.text("Model/Info/run", "page", 0)
        logger.record("train", {"epoch": 1})
        logger.position()
    assert len(warned()) == 1 and "disk full" in warned()[0] and "the run continues" in warned()[0]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"kind": "train", "epoch": 1}


def test_a_folder_that_cannot_be_made_warns_once(tmp_path, warned):
    (tmp_path / "file").touch()
    with RunLogger(tmp_path / "file" / "tensorboard", None, 0) as logger:
        logger.scalars({"Train/PSNR": 1.0}, 1)
        assert logger.position() == {}
    assert len(warned()) == 1


def test_without_event_files_the_lines_are_still_written(tmp_path, warned):
    (tmp_path / "tensorboard").touch()
    with RunLogger(tmp_path / "tensorboard", tmp_path / "metrics.jsonl", 0) as logger:
        logger.record("train", {"epoch": 1})
        assert logger.position() == {"metrics.jsonl": len('{"kind": "train", "epoch": 1}\n')}
    assert len(warned()) == 1


def test_without_lines_the_events_are_still_written(tmp_path, warned, events_of):
    (tmp_path / "metrics.jsonl").mkdir()
    with RunLogger(tmp_path / "tensorboard", tmp_path / "metrics.jsonl", 0) as logger:
        logger.record("train", {"epoch": 1})
        logger.scalars({"Train/PSNR": 1.0}, 1)
    assert events_of(tmp_path / "tensorboard")["Train/PSNR"] == [(1, 1.0)]
    assert len(warned()) == 1


def test_a_writer_that_cannot_flush_does_not_shorten_the_lines(tmp_path, monkeypatch):
    """Else a rewind to this position would cut lines of epochs that the checkpoint has."""
    from torch.utils.tensorboard import SummaryWriter

    def broken(_):
        raise OSError("disk full")

    monkeypatch.setattr(SummaryWriter, "flush", broken)
    with RunLogger(tmp_path / "tensorboard", tmp_path / "metrics.jsonl", 0) as logger:
        logger.record("train", {"epoch": 1})
        assert logger.position()["metrics.jsonl"] > 0


def test_a_file_that_vanishes_is_no_part_of_the_position(tmp_path, monkeypatch):
    found = [tmp_path / "gone", tmp_path / "metrics.jsonl"]
    with RunLogger(tmp_path / "tensorboard", tmp_path / "metrics.jsonl", 0) as logger:
        logger.record("train", {})
        monkeypatch.setattr("hnerv.tracking.logger._log_files", lambda *_: found)
        assert list(logger.position()) == ["metrics.jsonl"]


def test_a_run_outlives_its_log(tmp_path, train, flags, monkeypatch, warned, finished):
    from torch.utils.tensorboard import SummaryWriter

    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(SummaryWriter, "add_scalar", broken)
    assert train(tmp_path, flags()) == 0
    assert len([text for text in warned() if "disk full" in text]) == 1
    ours, theirs = (torch.load(run / "checkpoints" / "latest.pt")["model"] for run in (tmp_path / "run", finished))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_metrics_that_are_not_finite_are_no_json(tmp_path):
    with RunLogger(tmp_path, tmp_path / "metrics.jsonl", 0) as logger, pytest.raises(ValueError, match="JSON"):
        logger.record("train", {"Train/PSNR": float("nan")})


def test_rewind_cuts_back_to_a_position(tmp_path, events_of):
    def log(epochs, purge_step):
        logger = RunLogger(events_folder(tmp_path), metrics_file(tmp_path), purge_step)
        positions = []
        for epoch in epochs:
            logger.scalars({"Train/PSNR": float(epoch)}, epoch)
            logger.record("train", {"epoch": epoch})
            positions.append(logger.position())
        logger.close()
        return positions

    first = log(range(1, 6), 0)
    rewind(tmp_path, first[2])
    second = log(range(4, 8), 4)
    rewind(tmp_path, second[1])
    log(range(6, 8), 6)
    assert events_of(events_folder(tmp_path))["Train/PSNR"] == [(e, float(e)) for e in range(1, 8)]
    assert [json.loads(line)["epoch"] for line in metrics_file(tmp_path).read_text().splitlines()] == list(range(1, 8))
    rewind(tmp_path, {})
    assert not metrics_file(tmp_path).exists() and not list(events_folder(tmp_path).iterdir())


def test_a_curve_keeps_its_wall_times(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLogger(tmp_path, None, 0) as logger:
        logger.curve("Train_Batch/PSNR", range(1, 4), [1.0, 2.0, 3.0], [10.0, 11.5, 12.0])
    loaded = EventAccumulator(str(tmp_path))
    loaded.Reload()
    found = [(e.wall_time, e.step, e.value) for e in loaded.Scalars("Train_Batch/PSNR")]
    assert found == [(10.0, 1, 1.0), (11.5, 2, 2.0), (12.0, 3, 3.0)]
