"""A run that was stopped ends like one that was not: weights bit for bit, metrics byte for byte, no step twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from hnerv.training import Trainer
from hnerv.training.signals import StopSignals


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def timeless(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({key: value for key, value in line.items() if not of_time(key)}) for line in lines]


def of_time(key: str) -> bool:
    """What depends on the clock and on the machine's memory."""
    return key == "seconds" or key.startswith("Train/Performance/")


def without_times(events: dict[str, list]) -> dict[str, list]:
    """Of tags of time, the steps alone."""
    return {tag: [p[0] for p in points] if of_time(tag) else points for tag, points in events.items()}


def by_data_loader(folder: Path) -> dict[str, list]:
    """What the loader behind TensorBoard's page sees: every event of every file, without purges."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list] = {}
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


@pytest.fixture
def assert_same(events_of):
    def check(stopped: Path, whole: Path) -> None:
        for name in ("latest.pt", "best.pt"):
            ours, theirs = (torch.load(run / "checkpoints" / name) for run in (stopped, whole))
            for key in ("run", "model", "optimizer", "evaluation"):
                assert equal(ours[key], theirs[key]), (name, key)
            for key in ("epoch", "step", "step_in_epoch", "best"):
                assert ours["progress"][key] == theirs["progress"][key]
        assert timeless(stopped) == timeless(whole)
        assert (stopped / "config.json").read_bytes() == (whole / "config.json").read_bytes()
        ours, theirs = (without_times(events_of(run / "tensorboard")) for run in (stopped, whole))
        assert ours == theirs
        steps = by_data_loader(stopped / "tensorboard")
        assert steps == by_data_loader(whole / "tensorboard")
        assert max(max(Counter(found).values()) for found in steps.values()) == 1
        assert not list(stopped.rglob(".*"))

    return check


def stop_at(monkeypatch, step: int, number: int) -> None:
    """The signal arrives during the step of this number, counted from now."""
    count, original = itertools.count(1), Trainer.step

    def stepping(self, batch):
        if next(count) == step:
            signal.raise_signal(number)
        return original(self, batch)

    monkeypatch.setattr(Trainer, "step", stepping)


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
        assert where in line and "saved" in line and "the same command goes on" in line
    assert train(tmp_path / "stopped", words) == 0
    assert_same(tmp_path / "stopped" / "run", tmp_path / "whole" / "run")
    starts = json.loads((tmp_path / "stopped" / "run" / "environment.json").read_text())
    assert len(starts) == 4


def test_a_stopped_run_that_was_to_overwrite_says_how_to_go_on(tmp_path, train, flags, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGTERM)
        assert train(tmp_path, [*flags(), "--overwrite"]) == 143
    assert "the same command without --overwrite goes on" in capsys.readouterr().err


def test_a_signal_during_the_last_evaluation_lets_the_run_finish(tmp_path, train, flags, monkeypatch, capsys):
    original = Trainer.evaluate

    def signalled(self):
        if self.epoch == self.config.train.epochs:
            signal.raise_signal(signal.SIGTERM)
        original(self)

    monkeypatch.setattr(Trainer, "evaluate", signalled)
    assert train(tmp_path, flags()) == 0
    assert "evaluate:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "clip_ramp_epochs": 2},
        {"optimizer": "soap", "epochs": 7, "embedding": "pe"},
        {"optimizer": "adam", "blend_freq": 1},
        {"checkpoint_freq": 3, "blend_freq": 0},
        {"blend_freq": 3, "batch_size": 1, "data_split": "1_1_2"},
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


def test_a_damaged_latest_can_be_replaced_by_best(tmp_path, train, flags, capsys, snapshot, assert_same):
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
    assert "is corrupt" in line and "give best.pt" in line
    assert snapshot(tmp_path / "stopped") == before
    folder.joinpath("latest.pt").unlink()
    assert train(tmp_path / "stopped", words) == 0
    assert timeless(tmp_path / "stopped" / "run") == timeless(tmp_path / "whole" / "run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no os.fork on this system")
@pytest.mark.parametrize(("seed", "embedding"), [(0, "grid"), (1, "encoder")])
def test_killed_anywhere(tmp_path, flags, assert_same, seed, embedding):
    words = [*flags(embedding=embedding, epochs=4), "--exp-id", "run", "--threads", "1"]
    script = Path(__file__).with_name("kill_anywhere.py")
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent.parent)}
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(seed), "6", *words],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    tries = [line.split() for line in done.stdout.splitlines() if line.count(" ") == 1 and line[-1].isdigit()]
    statuses = [int(status) for status, _ in tries if status.lstrip("-").isdigit()]
    assert statuses[0] == statuses[-1] == 0, done.stderr
    assert statuses.count(-signal.SIGKILL) >= 3, statuses
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


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
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "once\n")
