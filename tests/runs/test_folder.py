"""Where a run is, whom it lets in, what it records."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.presets import Choice
from hnerv.runs.folder import RunFolder, environment, params_name
from hnerv.training.trainer import Trainer
from hnerv.training.values import Objective


def at(output, exp_id, config=None, overwrite=False, preset="", base=None):
    return RunFolder.at(output, exp_id, Choice(preset, base or Config(), config or Config()), overwrite)


@pytest.mark.parametrize("exp_id", ["demo", "patch_dual/bunny/a", "a b", "ünï"])
def test_a_name_is_a_folder_inside(tmp_path, exp_id):
    assert at(tmp_path, exp_id).path == tmp_path / exp_id
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exp_id", ["", " ", ".", "..", "../x", "a/../../x", "/abs", "a/..", "x" * 256, "a\0b"])
def test_a_name_that_leaves_the_folder_or_is_none_is_refused(tmp_path, exp_id):
    with pytest.raises(UserError, match="--exp-id"):
        at(tmp_path, exp_id)


def test_params_name_what_differs():
    config = Config().replaced({"lr": 0.01, "dec_strides": (2, 5, 2), "clip_site": 1})
    assert params_name(Choice("", Config(), config)) == "clip_site=1,dec_strides=2-5-2,lr=0.01"
    assert params_name(Choice("demo", Config(), Config())) == "demo"
    assert params_name(Choice("", Config(), Config())) == "default"
    long, longer = (params_name(Choice("", Config(), Config().replaced({"data": "/x/" * n}))) for n in (300, 301))
    assert len(long) <= 200 and long != longer
    assert "/" not in long


def test_params_in_a_name(tmp_path):
    config = Config().replaced({"epochs": 7})
    assert at(tmp_path, "bunny/{params}", config).path == tmp_path / "bunny" / "epochs=7"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine" / "tensorboard").mkdir(parents=True)
    (tmp_path / "mine" / "tensorboard" / "events.out.tfevents.1.x").write_text("precious")
    with pytest.raises(UserError, match="holds 'tensorboard' but no config.json of a run: .*--overwrite"):
        at(tmp_path, "mine")
    assert at(tmp_path, "mine", overwrite=True).known() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {}}', '{"config": 3, "targets": null}'])
def test_a_broken_config_json_is_one_line(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        at(tmp_path, "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("video", None),
        ("video", {"source": 3, "digest": "", "crop": [0] * 6}),
        ("scene", {"frames": 12}),
        ("model", {"width": "8"}),
        ("model", {"width": -1}),
        ("targets", "none"),
        ("targets", {"kind": 1}),
        ("preset", 3),
        ("config", {"model": {}}),
    ],
    ids=str,
)
def test_a_damaged_record_is_one_line_for_the_command(tmp_path, finished, train, flags, capsys, snapshot, part, value):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    before = snapshot(tmp_path)
    assert train(tmp_path, flags()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line or "is damaged" in line or "does not fit this version" in line, line
    assert snapshot(tmp_path) == before


def test_a_finished_run_started_again_changes_nothing_and_prints_its_table(
    tmp_path, train, flags, snapshot, capsys, lines_of
):
    assert train(tmp_path, flags()) == 0
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert train(tmp_path, flags()) == 0
    out = capsys.readouterr().out
    assert snapshot(tmp_path) == before
    assert f"{lines_of(tmp_path / 'run')[-1]['Eval/Frame/train_psnr']:.3f}" in out and "eval.py" in out
    assert "epoch " not in out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lr": 0.25}, f"(lr is {Config().train.lr}, this command has 0.25)"),
        ({"epochs": 9}, "(epochs is 5, this command has 9)"),
        ({"clip_site": 2}, "(clip_site is 1, this command has 2)"),
        ({"optimizer": "adamw"}, f"(optimizer is {Config().train.optimizer}, this command has adamw)"),
        ({"blend_freq": 1}, "(blend_freq is 2, this command has 1)"),
    ],
)
def test_another_configuration_is_refused_and_nothing_changes(tmp_path, train, flags, snapshot, capsys, change, told):
    assert train(tmp_path, flags()) == 0
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert train(tmp_path, flags(**change)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and "--exp-id" in line and "--overwrite" in line
    assert snapshot(tmp_path) == before


def test_other_frames_under_the_same_path_are_refused(tmp_path, train, flags, make_film, snapshot, capsys):
    film = make_film(tmp_path / "film")
    output = tmp_path / "output"
    assert train(output, flags(data=film)) == 0
    before = snapshot(output)
    film.rename(tmp_path / "old")
    make_film(tmp_path / "film", shift=3)
    capsys.readouterr()
    assert train(output, flags(data=film)) == 2
    assert "no longer decodes to the frames that" in capsys.readouterr().err
    assert snapshot(output) == before


def test_other_targets_under_the_same_path_are_refused(tmp_path, train, flags, snapshot, capsys):
    import torch
    from safetensors.torch import save_file

    targets, output = tmp_path / "t.safetensors", tmp_path / "output"
    save_file({"embeddings": torch.eye(12 * 8, 8).add(0.1).view(12, 8, 8)}, targets)
    assert train(output, flags(clip_targets=targets)) == 0
    before = snapshot(output)
    save_file({"embeddings": torch.eye(12 * 8, 8).add(0.2).view(12, 8, 8)}, targets)
    capsys.readouterr()
    assert train(output, flags(clip_targets=targets)) == 2
    assert "was trained on the targets" in capsys.readouterr().err
    assert snapshot(output) == before


def test_a_checkpoint_of_another_width_is_refused(tmp_path, train, flags, snapshot, capsys):
    import torch

    assert train(tmp_path, flags(epochs=2)) == 0
    path = tmp_path / "run" / "checkpoints" / "latest.pt"
    state = torch.load(path)
    state["run"]["model"]["width"] = 9
    torch.save(state, path)
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert train(tmp_path, flags(epochs=2)) == 2
    assert "another version of hnerv" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_overwrite_moves_aside_and_never_deletes(tmp_path, train, flags, snapshot):
    assert train(tmp_path, flags(epochs=2)) == 0
    first = snapshot(tmp_path / "run")
    for _ in range(2):
        assert train(tmp_path, [*flags(epochs=3), "--overwrite"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.old1", "run.old2"]
    assert snapshot(tmp_path / "run.old1") == first


def test_overwrite_of_nothing_is_a_fresh_run(tmp_path, train, flags):
    assert train(tmp_path, [*flags(epochs=1), "--overwrite"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_half_written_files_of_a_killed_run_go(tmp_path, train, flags):
    assert train(tmp_path, flags(epochs=2)) == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("latest.pt", "best.pt"):
        checkpoints.joinpath(name).unlink()
    checkpoints.joinpath(".latest.pt.123.tmp").write_bytes(b"half")
    assert train(tmp_path, flags(epochs=2)) == 0
    assert sorted(p.name for p in checkpoints.iterdir()) == ["best.pt", "latest.pt"]


def test_a_run_without_latest_goes_on_from_best(tmp_path, train, flags, monkeypatch, caplog):
    words = flags(epochs=4, eval_freq=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer, "objective", property(lambda self: Objective(0.0, False) if self.state.epoch < 2 else _die())
        )
        with pytest.raises(MemoryError):
            train(tmp_path, words)
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    latest.unlink()
    assert train(tmp_path, words) == 0
    assert "is missing; resuming from best.pt" in caplog.text
    assert torch.load(latest)["progress"]["epoch"] == 4
    starts = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert starts == [1, 1, 2, 2, 3, 3, 4, 4]


def _die():
    raise MemoryError


def test_records(finished, settings):
    record = json.loads((finished / "config.json").read_text())
    config = Config.from_dict(record["config"])
    assert config.train.epochs == settings["epochs"] and record["scene"]["val"] == [5, 11]
    assert record["targets"]["kind"] == "file" and record["model"]["width"] == 8
    (start,) = json.loads((finished / "environment.json").read_text())
    assert start["command"][0] == "train_patch_dual.py" and start["torch"] and "commit" in start
    assert (start["device"], start["precision"], start["tf32"]) == ("cpu", "fp32", False)
    assert [start[key] for key in ("cuda", "cuda_version", "cudnn_version", "driver_version")] == [None] * 4


DRIVERS = {"echo 550.54.15; echo 550.54.15": "550.54.15", "echo; exit 9": None, "exit 0": None}


@pytest.mark.parametrize("script", DRIVERS)
def test_the_environment_of_a_gpu(tmp_path, monkeypatch, script):
    """Of the second one, though the first is the current one, by a stand-in and an nvidia-smi of our own."""
    monkeypatch.setattr(torch.cuda, "get_device_name", ("H100", "H200").__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = environment(torch.device("cuda:1"), "bf16")
    assert (found["device"], found["cuda"], found["precision"]) == ("cuda:1", "H200", "bf16")
    assert (found["cuda_version"], found["cudnn_version"]) == (torch.version.cuda, 91002)
    assert found["driver_version"] == DRIVERS[script]
    assert environment(torch.device("cuda"))["device"] == "cuda:0"


def test_resuming_in_another_precision_is_announced(tmp_path, train, flags, capsys):
    words, path = flags(precision="auto"), tmp_path / "run" / "environment.json"
    assert train(tmp_path, [*words, "--max-minutes", "1e-9"]) == 124
    assert train(tmp_path, [*words, "--max-minutes", "1e-9"]) == 124
    assert "resumed  in" not in capsys.readouterr().out
    first, second = json.loads(path.read_text())
    path.write_text(json.dumps([first, second | {"device": "cuda:0", "precision": "bf16"}]))
    assert train(tmp_path, [*words, "--max-minutes", "1e-9"]) == 124
    line = "resumed  in fp32, previously bf16: --precision auto follows the device"
    assert capsys.readouterr().out.splitlines().count(line) == 1
    del first["precision"]
    path.write_text(json.dumps([first]))  # of an older version
    assert train(tmp_path, words) == 0
    assert "resumed  in" not in capsys.readouterr().out


def test_auto_targets_are_resolved_once(tmp_path, train, flags, monkeypatch):
    """A run that began with the random encoder goes on with it, though CLIP could be had now."""
    from hnerv.data.clip import targets as module

    asked = []
    identify = module.identify

    def spy(weights, *rest):
        asked.append(weights)
        return identify(weights, *rest)

    monkeypatch.setattr(module, "identify", spy)
    words = flags(clip_targets=None, clip_weights="auto", epochs=2)
    assert train(tmp_path, words) == 0
    (tmp_path / "run" / "checkpoints" / "latest.pt").unlink()
    assert train(tmp_path, words) == 0
    assert asked == ["auto", "random"]
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["targets"]["kind"] == "random" and record["config"]["clip"]["clip_weights"] == "auto"


def test_a_name_may_hold_the_preset(tmp_path):
    config = replace(Config())
    assert at(tmp_path, "{params}", config, preset="demo").path == Path(tmp_path) / "demo"


def test_a_run_of_another_version_says_so(finished, tmp_path, train, flags, capsys):
    """Of a version whose configuration lacked a setting: which file, and what reads it."""
    run = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    del record["config"]["model"]["width_multiple"]
    (run / "config.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert train(tmp_path, flags()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run / 'config.json'}: " in line and "missing width_multiple" in line and "environment.json" in line
