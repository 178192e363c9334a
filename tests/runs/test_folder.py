"""The folder of a run: its name, whom it lets in, what it records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import OtherRun, UserError
from hnerv.presets import Choice
from hnerv.runs.folder import RunFolder
from hnerv.runs.names import params_name
from hnerv.training.trainer import Trainer
from hnerv.training.values import Objective


def at(output, exp_id, config=None, overwrite=False, preset="", base=None):
    return RunFolder.at(output, exp_id, Choice(preset, base or Config(), config or Config()), overwrite)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run, which `train(tmp_path, flags())` finds."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def refused(tmp_path, train, snapshot, capsys):
    """refused(words) -> the one line of a command that ends with status 2 and changes nothing."""

    def call(words: list, output: Path = tmp_path) -> str:
        before = snapshot(output)
        capsys.readouterr()
        assert train(output, words) == 2
        assert snapshot(output) == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


@pytest.mark.parametrize("exp_id", ["demo", "patch_dual/bunny/a", "a b", "ünï"])
def test_a_name_is_a_folder_inside(tmp_path, exp_id):
    assert at(tmp_path, exp_id).path == tmp_path / exp_id
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exp_id", ["", " ", ".", "..", "../x", "a/../../x", "/abs", "a/..", "x" * 256, "a\0b"])
def test_a_name_outside_the_folder_is_refused(tmp_path, exp_id):
    with pytest.raises(UserError, match="--exp-id"):
        at(tmp_path, exp_id)


def test_params_name_what_differs(tmp_path):
    config = Config().replaced({"lr": 0.01, "dec_strides": (2, 5, 2), "clip_site": 1})
    assert params_name(Choice("", Config(), config)) == "clip_site=1,dec_strides=2-5-2,lr=0.01"
    assert params_name(Choice("demo", Config(), Config())) == "demo"
    assert params_name(Choice("", Config(), Config())) == "default"
    long, longer = (params_name(Choice("", Config(), Config().replaced({"data": "/x/" * n}))) for n in (300, 301))
    assert len(long) <= 200 and long != longer
    assert "/" not in long
    seven = Config().replaced({"epochs": 7})
    assert at(tmp_path, "bunny/{params}", seven, preset="demo").path == tmp_path / "bunny" / "demo,epochs=7"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine" / "tensorboard").mkdir(parents=True)
    (tmp_path / "mine" / "tensorboard" / "events.out.tfevents.1.x").write_text("precious")
    with pytest.raises(UserError, match="holds 'tensorboard' but no config.json of a run: .*--overwrite") as error:
        at(tmp_path, "mine")
    assert error.value.cause == f"{tmp_path / 'mine'} holds 'tensorboard' but no config.json of a run"
    assert at(tmp_path, "mine", overwrite=True).known() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": {}}', '{"config": 3, "targets": null}'])
def test_a_damaged_config_json_is_one_line(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        at(tmp_path, "run")
    assert "\n" not in str(error.value)


def test_a_record_of_another_version_is_one_line_for_the_command(run, refused, flags):
    record = json.loads((run / "config.json").read_text())
    del record["config"]["model"]["width_multiple"]
    (run / "config.json").write_text(json.dumps(record))
    line = refused(flags())
    assert f"{run / 'config.json'}: " in line and "missing width_multiple" in line and "environment.json" in line


def test_a_finished_run_started_again_changes_nothing_and_prints_its_table(
    run, tmp_path, train, flags, snapshot, capsys, lines_of
):
    before = snapshot(tmp_path)
    assert train(tmp_path, flags()) == 0
    out = capsys.readouterr().out
    assert snapshot(tmp_path) == before
    assert f"{lines_of(run)[-1]['Eval/Frame/train_psnr']:.3f}" in out and "eval.py" in out
    assert "epoch " not in out


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"lr": 0.25}, f"(lr is {Config().train.lr}, this command has 0.25)"),
        ({"epochs": 9}, "(epochs is 5, this command has 9)"),
        ({"clip_site": 2}, "(clip_site is 1, this command has 2)"),
        ({"optimizer": "adamw"}, f"(optimizer is {Config().train.optimizer}, this command has adamw)"),
    ],
)
def test_another_configuration_is_refused(run, refused, flags, change, difference):
    line = refused(flags(**change))
    assert difference in line and "--exp-id" in line and "--overwrite" in line
    with pytest.raises(OtherRun) as error:
        at(run.parent, "run")
    assert error.value.cause in str(error.value) and "--exp-id" not in error.value.cause


def test_other_frames_under_the_same_path_are_refused(tmp_path, train, refused, flags, make_film):
    film, output = make_film(tmp_path / "film"), tmp_path / "output"
    assert train(output, flags(data=film, epochs=1)) == 0
    film.rename(tmp_path / "old")
    make_film(tmp_path / "film", shift=3)
    assert "no longer decodes to the frames that" in refused(flags(data=film, epochs=1), output)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", "width", 9, "another version of hnerv"),
        ("video", "source", "/gone.mp4", "does not decode to the frames"),
        ("targets", "weights", "t.safetensors sha256:0", "was trained on the targets"),
    ],
)
def test_a_checkpoint_of_another_record_is_refused(run, refused, flags, part, key, value, message):
    path = run / "checkpoints" / "latest.pt"
    state = torch.load(path)
    state["run"][part][key] = value
    state["run"]["video"]["digest"] = "0" if part == "video" else state["run"]["video"]["digest"]
    torch.save(state, path)
    assert message in refused(flags())


def test_overwrite_moves_aside_and_never_deletes(tmp_path, train, flags, snapshot):
    words = [*flags(epochs=1), "--overwrite"]
    assert train(tmp_path, words) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    first = snapshot(tmp_path / "run")
    for _ in range(2):
        assert train(tmp_path, words) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.old1", "run.old2"]
    assert snapshot(tmp_path / "run.old1") == first


def test_half_written_files_of_a_killed_run_are_removed(run, tmp_path, train, flags):
    for name in ("latest.pt", "best.pt"):
        (run / "checkpoints" / name).unlink()
    for half_written in (run / ".config.json.123.tmp", run / "checkpoints" / ".latest.pt.123.tmp"):
        half_written.write_bytes(b"half")
    assert train(tmp_path, flags()) == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.pt", "latest.pt"]
    assert not list(run.rglob("*.tmp"))


def test_a_run_without_latest_resumes_from_best(tmp_path, train, flags, monkeypatch, caplog):
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


@pytest.mark.parametrize(("native", "machine"), [(False, "x86_64"), (True, "x86_64"), (False, "arm64")])
def test_emulated_bf16_is_announced(tmp_path, train, flags, capsys, monkeypatch, native, machine):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert train(tmp_path, flags(epochs=1, precision="bf16")) == 0
    emulated = not native and machine == "x86_64"
    assert capsys.readouterr().out.count("pass --precision fp32") == emulated


def test_resuming_in_another_precision_is_announced(tmp_path, train, flags, capsys):
    words, path = [*flags(precision="auto"), "--max-minutes", "1e-9"], tmp_path / "run" / "environment.json"
    assert train(tmp_path, words) == 124
    assert train(tmp_path, words) == 124
    assert "resumed  in" not in capsys.readouterr().out
    first, second = json.loads(path.read_text())
    path.write_text(json.dumps([first, second | {"device": "cuda:0", "precision": "bf16"}]))
    assert train(tmp_path, words) == 124
    line = "resumed  in fp32, previously bf16: --precision auto follows the device"
    assert capsys.readouterr().out.splitlines().count(line) == 1


def test_auto_targets_are_resolved_once(tmp_path, train, flags, monkeypatch):
    """A run that started with the random encoder keeps it when CLIP becomes available."""
    from hnerv.data.clip import targets as module

    calls = []
    identify = module.identify

    def spy(weights, *rest):
        calls.append(weights)
        return identify(weights, *rest)

    monkeypatch.setattr(module, "identify", spy)
    words = flags(clip_targets=None, clip_weights="auto", epochs=1)
    assert train(tmp_path, words) == 0
    (tmp_path / "run" / "checkpoints" / "latest.pt").unlink()
    assert train(tmp_path, words) == 0
    assert calls == ["auto", "random"]
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["targets"]["kind"] == "random" and record["config"]["clip"]["clip_weights"] == "auto"
