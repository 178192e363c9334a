"""A run that was stopped ends like one that was not: weights bit for bit, metrics byte for byte, no step twice."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hnerv.data.video import open_writer, read_frames
from hnerv.timeline import Timeline
from hnerv.training.signals import StopSignals
from hnerv.training.trainer import Trainer


def stop_at(monkeypatch, step: int, number: int) -> None:
    """The signal arrives during the step of this number, counted from now."""
    count, original = itertools.count(1), Trainer.advance

    def stepping(self):
        if next(count) == step:
            signal.raise_signal(number)
        original(self)

    monkeypatch.setattr(Trainer, "advance", stepping)


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_stopped_by_signals(tmp_path, train, flags, monkeypatch, capsys, assert_same, embedding):
    """In the middle of an epoch, at its last step, in the middle of another, and then never."""
    words = flags(embedding=embedding)
    assert train(tmp_path / "whole", words) == 0
    for number, step, where in (
        (signal.SIGTERM, 2, "epoch 1, step 2 of 3"),
        (signal.SIGINT, 4, "epoch 2, step 3 of 3"),
        (signal.SIGTERM, 5, "epoch 4, step 2 of 3"),
    ):
        with monkeypatch.context() as patch:
            stop_at(patch, step, number)
            capsys.readouterr()
            assert train(tmp_path / "stopped", words) == 128 + number
        (line,) = capsys.readouterr().err.splitlines()
        assert where in line and "saved" in line and "run the same command to resume" in line
    assert train(tmp_path / "stopped", words) == 0
    assert_same(tmp_path / "stopped" / "run", tmp_path / "whole" / "run")
    starts = json.loads((tmp_path / "stopped" / "run" / "environment.json").read_text())
    assert len(starts) == 4


def test_a_stopped_run_that_was_to_overwrite_says_how_to_go_on(tmp_path, train, flags, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGTERM)
        assert train(tmp_path, [*flags(), "--overwrite"]) == 143
    assert "run the same command without --overwrite to resume" in capsys.readouterr().err


def test_a_signal_during_the_last_evaluation_lets_the_run_finish(tmp_path, train, flags, monkeypatch, capsys):
    original = Trainer.evaluate

    def signalled(self):
        if self.state.epoch == self.config.train.epochs:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    monkeypatch.setattr(Trainer, "evaluate", signalled)
    assert train(tmp_path, flags()) == 0
    assert "evaluate:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "clip_ramp_epochs": 2},
        {"epochs": 7, "embedding": "pe"},
        {"optimizer": "adam", "blend_freq": 1},
        {"decoder": "convnext", "dec_depths": "1 2 1", "expansion": 1.5, "ema_decay": 0.9},
        {"checkpoint_freq": 3, "blend_freq": 0},
        {"blend_freq": 3, "batch_size": 1, "data_split": "1_1_2"},
        {"ema_decay": 0.9, "embedding": "encoder"},
        {"rate_weight": 0.01, "rate_freq": 2, "rounding_start": 0.8},
        {"rate_weight": 0.01, "rounding_start": 0.4, "target_bpp": 0.9, "rate_ramp_epochs": 2, "optimizer": "adam"},
    ],
    ids=str,
)
def test_stopped_with_other_settings(tmp_path, train, flags, monkeypatch, assert_same, changes):
    words = flags(**changes)
    assert train(tmp_path / "whole", words) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 8, signal.SIGTERM)
        assert train(tmp_path / "stopped", words) == 143
    assert train(tmp_path / "stopped", words) == 0
    assert_same(tmp_path / "stopped" / "run", tmp_path / "whole" / "run")


@pytest.mark.parametrize("place", ["evaluate", "save", "close_epoch"])
def test_died_between_steps(tmp_path, train, flags, monkeypatch, assert_same, place):
    """An exception stands for the process's death: nothing is tidied up in between."""
    words, count, original = flags(), itertools.count(1), getattr(Trainer, place)
    assert train(tmp_path / "whole", words) == 0

    def dying(self, *args):
        result = original(self, *args)
        if next(count) == 2:
            raise MemoryError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, place, dying)
        with pytest.raises(MemoryError):
            train(tmp_path / "stopped", words)
    assert train(tmp_path / "stopped", words) == 0
    assert_same(tmp_path / "stopped" / "run", tmp_path / "whole" / "run")


def test_a_damaged_latest_can_be_replaced_by_best(tmp_path, train, flags, capsys, snapshot, timeless):
    """As the message says."""
    words = flags()
    assert train(tmp_path / "whole", words) == 0
    assert train(tmp_path / "stopped", words) == 0
    folder = tmp_path / "stopped" / "run" / "checkpoints"
    folder.joinpath("latest.pt").write_bytes(folder.joinpath("latest.pt").read_bytes()[:5000])
    before = snapshot(tmp_path / "stopped")
    capsys.readouterr()
    assert train(tmp_path / "stopped", words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is corrupt" in line and "pass best.pt" in line
    assert snapshot(tmp_path / "stopped") == before
    folder.joinpath("latest.pt").unlink()
    assert train(tmp_path / "stopped", words) == 0
    assert timeless(tmp_path / "stopped" / "run") == timeless(tmp_path / "whole" / "run")


KILLS = [
    (0, "grid", 4, 6, 0.5),
    (1, "encoder", 4, 6, 0.5),
    pytest.param(2, "grid", 100, 100, 0.02, marks=pytest.mark.campaign),
    pytest.param(3, "encoder", 100, 100, 0.02, marks=pytest.mark.campaign),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no os.fork on this system")
@pytest.mark.parametrize(("seed", "embedding", "epochs", "kills", "share"), KILLS)
def test_killed_anywhere(tmp_path, flags, assert_same, seed, embedding, epochs, kills, share):
    words = [*flags(embedding=embedding, epochs=epochs), "--exp-id", "run", "--threads", "1"]
    script = Path(__file__).with_name("kill_anywhere.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(seed), str(kills), str(share), *words],
        capture_output=True,
        text=True,
        timeout=60 + 15 * kills,
    )
    tries = [line.split() for line in done.stdout.splitlines() if line.startswith("try ")]
    statuses = [int(status) for _, status, _ in tries]
    assert done.returncode == statuses[0] == statuses[-1] == 0, done.stderr
    assert statuses.count(-signal.SIGKILL) >= kills // 2, statuses
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


@pytest.mark.parametrize("embedding", ["grid", "encoder"])
def test_the_time_is_up(tmp_path, train, flags, capsys, assert_same, embedding):
    """After the first step, after the next, and then the time suffices."""
    words = flags(embedding=embedding, epochs=2)
    assert train(tmp_path / "whole", words) == 0
    for step in (1, 2):
        capsys.readouterr()
        assert train(tmp_path / "stopped", [*words, "--max-minutes", "1e-9"]) == 124
        (line,) = capsys.readouterr().err.splitlines()
        assert "--max-minutes reached" in line and f"epoch 1, step {step} of 3; saved" in line
        assert "run the same command to resume" in line
    assert train(tmp_path / "stopped", [*words, "--max-minutes", "1e9"]) == 0
    assert_same(tmp_path / "stopped" / "run", tmp_path / "whole" / "run")


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon", ""])
def test_minutes_that_are_none(tmp_path, train, flags, capsys, text):
    assert train(tmp_path, [*flags(), f"--max-minutes={text}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--max-minutes" in line and "must be a number of minutes" in line and not list(tmp_path.iterdir())


def test_torn_logs_are_mended(tmp_path, train, flags, monkeypatch, lines_of, events_of):
    """The last record of each file lost its end, as on a full disk; the checkpoint had seen it whole."""
    words, run = flags(), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 8, signal.SIGTERM)
        assert train(tmp_path, words) == 143
    (events,) = (run / "tensorboard").glob("events.*")
    for path in (events, run / "metrics.jsonl"):
        path.write_bytes(path.read_bytes()[:-5])
    assert train(tmp_path, words) == 0
    assert [(line["kind"], line["epoch"]) for line in lines_of(run)] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("train", 4),
        ("eval", 4),
        ("train", 5),
        ("eval", 5),
    ]
    assert [step for step, _ in events_of(run / "tensorboard")["Train/PSNR"]] == [1, 2, 3, 4, 5]


def test_signals_are_wishes_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_signal_ends_the_process_at_once():
    program = (
        "import signal\n"
        "from hnerv.training.signals import StopSignals\n"
        "with StopSignals():\n"
        "    signal.raise_signal(signal.SIGTERM); print('once', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM); print('twice', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "once\n")


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_whose_files_moved_is_resumed(tmp_path, film, targets_file, train, flags, monkeypatch, checkpoint):
    """The video, named from another working folder, and the targets; also before the first checkpoint."""
    here, there, run = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    shutil.copytree(film, here / "film")
    targets = shutil.copy(targets_file, here / "t.safetensors")
    monkeypatch.chdir(here)
    assert train(tmp_path, [*flags(data="film", clip_targets=targets, epochs=2), "--max-minutes", "1e-9"]) == 124
    if not checkpoint:
        shutil.rmtree(run / "checkpoints")
    here.rename(there)
    (there / "film").rename(there / "moved")
    monkeypatch.chdir(there / "moved")
    assert train(tmp_path, flags(data="../moved", clip_targets="../t.safetensors", epochs=2)) == 0
    record = json.loads((run / "config.json").read_text())
    assert record["config"]["video"]["data"] == "../moved" and record["video"]["source"] == str(there / "moved")
    assert record["config"]["clip"]["clip_targets"] == "../t.safetensors"
    assert train(tmp_path, flags(data=there / "moved", clip_targets=there / "t.safetensors", epochs=2)) == 0
    assert len(json.loads((run / "environment.json").read_text())) == 2


@pytest.mark.parametrize("checkpoint", [True, False])
def test_another_video_under_another_path_is_refused(
    tmp_path, film, make_film, train, flags, snapshot, capsys, monkeypatch, checkpoint
):
    """Also one of the same relative path in another working folder."""
    output, other = tmp_path / "output", make_film(tmp_path / film.name, shift=3)
    monkeypatch.chdir(film.parent)
    assert train(output, [*flags(data=film.name, epochs=2), "--max-minutes", "1e-9"]) == 124
    if not checkpoint:
        shutil.rmtree(output / "run" / "checkpoints")
    before = snapshot(output)
    monkeypatch.chdir(tmp_path)
    for data in (other, film.name):
        capsys.readouterr()
        assert train(output, flags(data=data, epochs=2)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{other} does not decode to the frames that {output / 'run'} was trained on, those of {film}: " in line
        assert snapshot(output) == before


def test_a_video_that_moved_to_an_address(tmp_path, film, train, flags):
    path = tmp_path / "film.mkv"
    with open_writer(path, (32, 64), Timeline.at_rate(24)) as writer:
        for frame in read_frames(str(film), range(12)):
            writer.write(frame)
    words, address = {"epochs": 2, "clip_targets": None, "clip_weights": "none"}, path.as_uri()
    assert train(tmp_path, [*flags(data=path, **words), "--max-minutes", "1e-9"]) == 124
    assert train(tmp_path, flags(data=address, **words)) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["video"]["source"] == address


@pytest.mark.parametrize("name", ["same.safetensors@0:12", "other.safetensors"])
def test_other_targets_under_another_path_are_refused(tmp_path, targets_file, train, flags, capsys, name):
    assert train(tmp_path, flags(epochs=1)) == 0
    shutil.copy(targets_file, tmp_path / "same.safetensors")
    save_file({"embeddings": torch.ones(12, 8, 8)}, tmp_path / "other.safetensors")
    assert train(tmp_path, flags(epochs=1, clip_targets=tmp_path / name)) == 2
    assert f"clip_targets is {targets_file}, this command has" in capsys.readouterr().err
