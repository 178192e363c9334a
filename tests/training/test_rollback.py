"""--on-divergence: back to the last good checkpoint at half the learning rate, at most three times, all logged."""

from __future__ import annotations

import itertools
import json
import signal

import pytest

from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.folder import RunFolder
from hnerv.training import run as module
from hnerv.training.trainer import Trainer

ON = ["--on-divergence", "rollback"]
ADVANCE = Trainer.advance


def spoil(monkeypatch, number: int, column: int = 1, value: float = float("nan"), times: int = 1) -> None:
    """The step of this number (from 0) goes wrong until the run has been rolled back so many times."""

    def spoiled(self):
        ADVANCE(self)
        if self.global_step - 1 == number and self.state.lr_scale > 0.5**times:
            self.training_step.records[self.state.step_in_epoch - 1, column] = value

    monkeypatch.setattr(Trainer, "advance", spoiled)


def kinds(lines: list[dict]) -> list[tuple[str, int]]:
    return [(line["kind"], line["epoch"]) for line in lines if line["kind"] != "eval"]


@pytest.mark.parametrize(
    ("number", "back_to", "changes"),
    [
        (0, 0, {}),
        (10, 3, {"checkpoint_freq": 3, "ema_decay": 0.9}),
        (8, 0, {"checkpoint_freq": 3, "embedding": "encoder"}),
    ],
)
def test_a_run_that_diverges_once(
    tmp_path, train, flags, monkeypatch, lines_of, events_of, capsys, number, back_to, changes
):
    words, run = [*flags(**changes), *ON], tmp_path / "run"
    spoil(monkeypatch, number)
    assert train(tmp_path, words) == 0
    out, lines = capsys.readouterr().out, lines_of(run)
    after = [("train", epoch) for epoch in range(1, 6)]
    assert kinds(lines) == [*after[:back_to], ("rollback", back_to), *after[back_to:]]
    (told,) = [line for line in lines if line["kind"] == "rollback"]
    assert told["cause"] == f"Train_Batch/pixel_loss is nan at step {number + 1} (epoch {number // 3 + 1})"
    assert told["step"] == 3 * back_to and told["detail"]["lr_scale"] == 0.5
    assert f"rollback 1 of 3: {told['cause']}; back from" in out and "learning rate x 0.5" in out
    events = events_of(run / "tensorboard")
    assert [step for step, _ in events["Model/Info/rollback"]] == [3 * back_to]
    assert [step for step, _ in events["Train_Batch/PSNR"]] == list(range(1, 16))
    state = load_checkpoint(run / "checkpoints" / "latest.pt")
    assert (state["progress"]["rollbacks"], state["progress"]["lr_scale"]) == (1, 0.5)


def test_the_rate_is_half_from_there_on(make):
    trainer = make()
    rate = trainer.learning_rate(trainer.global_step)
    trainer.state.lr_scale = 0.25
    assert trainer.learning_rate(trainer.global_step) == rate / 4
    again = make()
    again.load(trainer.checkpoint())
    assert again.learning_rate(again.global_step) == rate / 4


@pytest.mark.parametrize("ema_decay", [0, 0.9])
@pytest.mark.parametrize("place", ["before reopen", "before save", "after save"])
def test_killed_while_it_rolls_back(tmp_path, train, flags, monkeypatch, assert_same, place, ema_decay):
    """An exception stands for the process's death."""
    words = [*flags(checkpoint_freq=2, ema_decay=ema_decay), *ON]
    spoil(monkeypatch, 10)
    assert train(tmp_path / "whole", words) == 0
    when, what = place.split()
    owner, name = {"reopen": (RunFolder, "reopen"), "save": (Trainer, "save")}[what]
    original, rolling = getattr(owner, name), module.roll_back

    def dying(*args):
        if when == "after":
            original(*args)
        raise MemoryError

    with monkeypatch.context() as patch:

        def roll_back(*args):
            patch.setattr(owner, name, dying)
            return rolling(*args)

        patch.setattr(module, "roll_back", roll_back)
        with pytest.raises(MemoryError):
            train(tmp_path / "stopped", words)
    assert train(tmp_path / "stopped", words) == 0
    assert_same(tmp_path / "stopped" / "run", tmp_path / "whole" / "run")


def test_three_times_and_no_more(tmp_path, train, flags, monkeypatch, lines_of, capsys):
    words, run = [*flags(), *ON], tmp_path / "run"
    spoil(monkeypatch, 4, times=9)
    for _ in range(2):
        capsys.readouterr()
        assert train(tmp_path, words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "is nan at step 5" in line and line.endswith("the run has already been rolled back 3 times")
        assert kinds(lines_of(run)) == [("train", 1)] + [("rollback", 1)] * 3
    assert [line["detail"]["lr_scale"] for line in lines_of(run) if line["kind"] == "rollback"] == [0.5, 0.25, 0.125]
    state = load_checkpoint(run / "checkpoints" / "latest.pt")
    assert state["progress"]["epoch"] == 1 and all(v.isfinite().all() for v in state["model"].values())


def test_a_run_that_stopped_may_go_on_with_rollbacks(tmp_path, train, flags, monkeypatch, lines_of, capsys):
    spoil(monkeypatch, 4)
    assert train(tmp_path, flags()) == 1
    assert "or pass --on-divergence rollback to resume this run" in capsys.readouterr().err
    assert train(tmp_path, [*flags(), *ON]) == 0
    assert ("rollback", 1) in kinds(lines_of(tmp_path / "run"))


@pytest.mark.parametrize(("fall", "rolled"), [(-50.0, 1), (9.0, 0)])
def test_a_collapse_of_the_psnr(tmp_path, train, flags, monkeypatch, lines_of, fall, rolled):
    """One of three steps falls so low that the epoch is more than 6 dB below the best, or less."""
    spoil(monkeypatch, 7, column=0, value=fall)
    assert train(tmp_path / "on", [*flags(), *ON]) == 0
    assert [kind for kind, _ in kinds(lines_of(tmp_path / "on" / "run"))].count("rollback") == rolled
    assert train(tmp_path / "off", flags()) == 0
    assert len(kinds(lines_of(tmp_path / "off" / "run"))) == 5


def test_nothing_changes_where_nothing_goes_wrong(tmp_path, train, flags, finished, timeless):
    assert train(tmp_path, [*flags(), *ON, "--report-to", "none"]) == 0
    theirs = [json.loads(line) for line in timeless(finished)]
    assert [json.loads(line) for line in timeless(tmp_path / "run")] == theirs


def test_a_signal_is_obeyed_before_a_rollback(tmp_path, train, flags, monkeypatch, capsys, lines_of):
    spoil(monkeypatch, 4)
    count, spoiled = itertools.count(), Trainer.advance

    def signalled(self):
        if next(count) == 4:
            signal.raise_signal(signal.SIGTERM)
        spoiled(self)

    monkeypatch.setattr(Trainer, "advance", signalled)
    assert train(tmp_path, [*flags(), *ON]) == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert "is nan at step 5" in line and "to resume from" in line
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "latest.pt")["progress"]["step"] == 3
    assert train(tmp_path, [*flags(), *ON]) == 0
    assert ("rollback", 1) in kinds(lines_of(tmp_path / "run"))
