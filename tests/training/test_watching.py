"""What is logged may be chosen anew at each start, is shown in one run, and costs the run nothing when it fails."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from hnerv.config import LogConfig
from hnerv.runs.record import TargetsRecord, read_record
from hnerv.tracking import NullLogger, tags
from hnerv.training import trainer as trainer_module
from hnerv.training.pages import command_line, compared_tags, settings_of, targets_page
from hnerv.training.trainer import Trainer
from hnerv.viz.image import gif

IMAGES = {name for name, tag in tags().items() if tag.kind == "image"}


def weights(run):
    return torch.load(run / "checkpoints" / "latest.pt")["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stop_after_epoch(monkeypatch, epoch):
    original = Trainer.save

    def saving(self):
        original(self)
        if self.state.epoch == epoch:
            raise MemoryError

    monkeypatch.setattr(Trainer, "save", saving)


@pytest.mark.parametrize("words", [["--report-to", "none"], ["--images-freq", "0", "--no-projector"]])
def test_less_is_shown_and_the_same_is_learnt(tmp_path, train, flags, events_of, finished, lines_of, words):
    assert train(tmp_path, [*flags(), *words]) == 0
    run = tmp_path / "run"
    assert equal(weights(run), weights(finished))
    assert [set(line) for line in lines_of(run)] == [set(line) for line in lines_of(finished)]
    assert (run / "config.json").read_bytes() == (finished / "config.json").read_bytes()
    if "none" in words:
        assert not (run / "tensorboard").exists()
    else:
        assert not IMAGES & set(events_of(run / "tensorboard"))
        assert not (run / "tensorboard" / "projector").exists()


@pytest.mark.parametrize(
    ("freq", "evaluations", "expected"),
    [(1, [2, 4, 5], [2, 4, 5]), (2, [2, 4, 5], [4, 5]), (3, [2, 4, 5], [5]), (0, [2, 4, 5], [])],
)
def test_pictures_at_every_so_many_evaluations(make, monkeypatch, freq, evaluations, expected):
    """--eval-freq 2 of 5 epochs."""
    trainer, drawn, points = make(log=LogConfig(images_freq=freq)), [], []
    monkeypatch.setattr(trainer_module, "log_pictures", lambda *values: drawn.append(values[-1]))
    monkeypatch.setattr(trainer_module, "log_projector", lambda *_: points.append(trainer.state.epoch))
    for trainer.state.epoch in evaluations:
        trainer._log_pictures(None)
    assert drawn == expected and points == [5]


def test_another_choice_at_each_start(tmp_path, train, flags, monkeypatch, events_of, finished):
    """Nothing, then everything, then nothing: no refusal, no tag twice, the same weights, and what was shown stays."""
    for epoch, words in ((2, ["--report-to", "none"]), (4, ["--histogram-freq", "1"]), (9, ["--report-to", "none"])):
        with monkeypatch.context() as patch:
            stop_after_epoch(patch, epoch)
            if epoch < 5:
                with pytest.raises(MemoryError):
                    train(tmp_path, [*flags(), *words])
            else:
                assert train(tmp_path, [*flags(), *words]) == 0
    events = events_of(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in events["Train/PSNR"]] == [3, 4]
    assert [step for step, _ in events["Model/Info/run"]] == [0]
    assert max(max(Counter(step for step, _ in points).values()) for points in events.values()) == 1
    assert equal(weights(tmp_path / "run"), weights(finished))


def test_hyperparameters_and_graph_are_in_the_run_itself(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(finished.glob("tensorboard/**/events.*"))) == 1
    loaded = EventAccumulator(str(finished / "tensorboard"))
    loaded.Reload()
    assert loaded.Tags()["graph"] is True
    assert any("decoder" in node.name for node in loaded.Graph().node)
    content = loaded.PluginTagToContent("hparams")
    assert set(content) == {f"_hparams_/{part}" for part in ("experiment", "session_start_info", "session_end_info")}
    record = read_record(finished / "config.json")
    for tag in compared_tags(record):
        assert tag.encode() in content["_hparams_/experiment"] and loaded.Scalars(tag)
    for name in settings_of(record):
        assert name.encode() in content["_hparams_/session_start_info"]


@pytest.mark.parametrize(
    ("val", "targets", "expected"),
    [
        ([3], {"kind": "clip"}, 8),
        ([], {"kind": "clip"}, 4),
        ([3], None, 6),
    ],
)
def test_runs_are_compared_by_what_they_will_have(val, targets, expected):
    found = compared_tags(SimpleNamespace(scene=SimpleNamespace(val=val), targets=targets))
    assert len(found) == expected and set(found) <= set(tags())
    assert any("val_" in tag for tag in found) == bool(val)
    assert any("clip" in tag for tag in found) == bool(targets)


def test_pages_of_text(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = EventAccumulator(str(finished / "tensorboard"))
    loaded.Reload()

    def page(name):
        (event,) = loaded.Tensors(f"Model/Info/{name}/text_summary")
        return event.tensor_proto.string_val[0].decode()

    assert "| lr | 0.004 |" in page("run") and "### train" in page("run")
    assert "train_patch_dual.py --output" in page("environment") and f"| torch | {metadata.version('torch')} |" in page(
        "environment"
    )
    assert "| commit |" in page("environment") and "| kind | file |" in page("targets")


def test_random_weights_are_said_to_be_so():
    def page(targets: TargetsRecord | None) -> str:
        return targets_page(SimpleNamespace(targets=targets))

    targets = TargetsRecord("RANDOM encoder", "random", "random:0")
    assert page(targets).startswith("**NOT CLIP**")
    assert "NOT CLIP" not in page(dataclasses.replace(targets, kind="clip"))
    assert "No CLIP head" in page(None)


WRITING = ("add_scalar", "add_histogram", "add_text", "add_custom_scalars", "add_graph", "flush", "close")


@pytest.mark.parametrize("broken", ["the writer", "files of the projector", "hyperparameters"])
def test_what_fails_is_said_once_and_the_run_goes_on(tmp_path, train, flags, monkeypatch, caplog, finished, broken):
    from torch.utils.tensorboard import SummaryWriter, summary

    def fail(*_, **__):
        raise OSError("disk full")

    if broken == "the writer":
        for method in WRITING:
            monkeypatch.setattr(SummaryWriter, method, fail)
    elif broken == "hyperparameters":
        monkeypatch.setattr(summary, "hparams", fail)
    else:
        monkeypatch.setattr("hnerv.tracking.logger.write_points", fail)
    assert train(tmp_path, [*flags(), "--graph", "--histogram-freq", "4"]) == 0
    assert caplog.text.count("disk full") == 1
    assert equal(weights(tmp_path / "run"), weights(finished))


def test_an_image_is_written_as_it_is(tmp_path, events_of):
    import numpy as np

    from hnerv.tracking import RunLogger

    film = gif([np.full((8, 8, 3), value, np.uint8) for value in (0, 99)], 5)
    with RunLogger(tmp_path, None, 0) as logger:
        logger.image("Eval/Images/reconstruction", film, 4)
        with pytest.raises(KeyError):
            logger.image("Train/PSNR", film, 4)
    assert events_of(tmp_path) == {"Eval/Images/reconstruction": [(4, film.data)]}
    assert film.data.startswith(b"GIF8")


def test_the_null_logger_has_the_whole_contract():
    from hnerv.tracking import RunLogger

    methods = {name for name in vars(RunLogger) if not name.startswith("_")}
    assert methods <= set(vars(NullLogger)) | {"events", "metrics"}
    assert not NullLogger.shows and NullLogger.fresh


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["eval.py", "a b", "--data", ""], "python eval.py 'a b' --data ''"),
        (["hnerv", "fleet", "x", "--exp-id", "it's"], """hnerv fleet x --exp-id 'it'"'"'s'"""),
        ([], ""),
    ],
)
def test_a_command_can_be_pasted_into_a_shell(words, line):
    assert command_line(words) == line and shlex.split(line)[-len(words) or None :] == words


def test_a_run_that_is_all_warm_up_says_so(train, flags, tmp_path, capsys):
    for warmup, said in ((1, False), (2, True)):
        assert train(tmp_path / str(warmup), flags(epochs=2, pixel_loss_warmup_epochs=warmup)) == 0
        assert ("all 2 epochs: the CLIP head is not trained" in capsys.readouterr().out) == said
