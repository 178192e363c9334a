"""Weights & Biases behind the logger, with a stand-in for the package."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from hnerv.config import Config, LogConfig
from hnerv.errors import UserError
from hnerv.files import write_json
from hnerv.tracking import Points, RunLogger
from hnerv.training import check_settings
from hnerv.training.report import log_start
from hnerv.viz.image import gif, png


@pytest.fixture
def wandb(monkeypatch):
    """The package: what it was given is in `init`, `rows`, `metrics`, `settings`, `finished`."""
    found = ModuleType("wandb")
    found.__spec__ = ModuleSpec("wandb", None)
    found.rows, found.metrics, found.settings, found.finished = [], {}, {}, 0

    def finish():
        found.finished += 1

    def init(**settings):
        found.init = settings
        return SimpleNamespace(
            define_metric=lambda name, **rules: found.metrics.update({name: rules}),
            log=found.rows.append,
            config=SimpleNamespace(update=lambda values, allow_val_change: found.settings.update(values)),
            finish=finish,
        )

    found.__dict__["init"] = init
    for kind in ("Histogram", "Image", "Video", "Html"):
        setattr(found, kind, lambda *values, kind=kind, **_: (kind, *values))
    found.Table = lambda columns, data: ("Table", columns, data)
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def test_the_same_tags_and_values(tmp_path, wandb):
    picture = np.zeros((4, 6, 3), np.uint8)
    with RunLogger(tmp_path / "run" / "tensorboard", tmp_path / "run.jsonl", 0, "wandb") as logger:
        logger.scalars({"Train/PSNR": 30.0}, 3)
        logger.curve("Train_Batch/PSNR", [7, 8], [1.0, 2.0], [0.0, 0.1])
        logger.histogram("Eval/Histogram/val_psnr_distribution", torch.ones(3), 3)
        logger.image("Eval/Images/seams", png(picture), 3)
        logger.image("Eval/Images/reconstruction", gif([picture], 5), 3)
        logger.text("Model/Info/run", "a < b", 0)
        logger.projector(Points(np.zeros((1, 2)), {"frame": [4]}, picture[None]))
        logger.hparams({"lr": 0.1}, ["Eval/Frame/val_psnr"])
        with pytest.raises(KeyError):
            logger.scalars({"Train/accuracy": 1.0}, 1)
    assert wandb.rows[:3] == [
        {"Train/PSNR": 30.0, "epoch": 3},
        {"Train_Batch/PSNR": 1.0, "step": 7},
        {"Train_Batch/PSNR": 2.0, "step": 8},
    ]
    shown = [next(iter(row.values()))[0] for row in wandb.rows[3:]]
    assert shown == ["Histogram", "Image", "Video", "Html", "Table"]
    assert "a &lt; b" in wandb.rows[6]["Model/Info/run"][1]
    assert wandb.rows[7]["embeddings"][1] == ["frame", "picture", "embedding"]
    assert wandb.metrics["Train_Batch/*"] == {"step_metric": "step"} and wandb.metrics["*"] == {"step_metric": "epoch"}
    assert wandb.settings == {"lr": 0.1} and wandb.finished == 1
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_run_is_known_again_and_no_other_for_it(tmp_path, wandb):
    seen, begin = [], wandb.init
    for place, started in (("a", "1"), ("a", "1"), ("a", "2"), ("b", "1")):
        write_json(tmp_path / place / "run" / "environment.json", [{"started": started}, {"started": "later"}])
        wandb.init = begin  # the stand-in keeps there what it was called with
        with RunLogger(tmp_path / place / "run" / "tensorboard", None, 0, "wandb"):
            pass
        seen.append(wandb.init["id"])
        assert (wandb.init["resume"], wandb.init["name"]) == ("allow", "run")
    assert seen[0] == seen[1] and len(set(seen)) == 3


def test_a_whole_run(tmp_path, wandb, train, flags, lines_of):
    (tmp_path / "run").mkdir()
    assert train(tmp_path, [*flags(epochs=3), "--report-to", "wandb", "--overwrite"]) == 0
    tags = {tag for row in wandb.rows for tag in row}
    assert {"Train/PSNR", "Eval/Images/val_worst", "embeddings", "Model/Info/targets"} <= tags
    assert lines_of(tmp_path / "run")[-1]["kind"] == "eval"
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_service_that_fails_warns_once(tmp_path, wandb, monkeypatch, caplog):
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(OSError("no network")))
    with RunLogger(tmp_path / "run" / "tensorboard", tmp_path / "run.jsonl", 0, "wandb") as logger:
        logger.scalars({"Train/PSNR": 30.0}, 3)
        logger.record("train", {"epoch": 1})
    assert caplog.text.count("no network") == 1 and (tmp_path / "run.jsonl").read_text()


def test_without_the_package_it_is_refused_in_words(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--report-to wandb needs wandb, which is not installed: pip install wandb"):
        check_settings(Config(), LogConfig("wandb"))
    check_settings(Config(), LogConfig("tensorboard"))


def test_the_start_of_a_run(tmp_path, wandb, finished):
    from hnerv.runs.record import read_record

    record = read_record(finished / "config.json")
    with RunLogger(tmp_path / "tensorboard", None, 0, "wandb") as logger:
        log_start(logger, None, record, finished, graph=False)
    assert wandb.settings["lr"] == record.config.train.lr
    assert [next(iter(row)) for row in wandb.rows] == [f"Model/Info/{p}" for p in ("run", "targets", "environment")]
