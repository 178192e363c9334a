"""Steps as CUDA graphs, on any machine: a recording of the operators of a step stands in for the graph.

A graph runs the same operators on the same memory again. So does `Recording`: what a step took from Python (a number
that changes, a tensor made anew on the host, a choice by a value) is frozen in it, and the weights come out different.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnerv.training import step as capture
from hnerv.training.optim import OPTIMIZERS
from hnerv.training.step import Schedule

READS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"}
"""Operators by which the host reads a value: a graph cannot hold them."""


class Recording(TorchDispatchMode):
    """Stands in for torch.cuda.CUDAGraph: records operators while entered, runs them again in `replay`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in READS, func
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, found in self.calls:
                if func.is_view:
                    continue  # its memory is that of an argument
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Stream:
    device = None

    def wait_stream(self, other) -> None: ...


@pytest.fixture
def stand_ins(monkeypatch) -> None:
    """Lets `Graphs` run on the CPU. A recording runs what it records, as a capture does not: that step is undone."""

    @contextlib.contextmanager
    def graph(recording, pool, stream):
        with recording:
            yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", graph)


def capturing(trainer):
    """The trainer, whose steps are captured from the third of a kind on; `kinds` counts replays."""
    trainer.captures, trainer.kinds = True, Counter()
    original = capture.Graphs._capture

    def undone(graphs, kind):
        step = trainer.training_step
        memory = [p.data for group in trainer.optimizer.param_groups for p in group["params"]]
        memory += [v for state in trainer.optimizer.state.values() for v in state.values()]
        memory += [step.records, step.number, *(step.average.averages if step.average else ())]
        before = [value.clone() for value in memory]
        found = original(graphs, kind)
        for value, old in zip(memory, before, strict=True):
            value.copy_(old)
        return found

    original_call = capture.Graphs.__call__

    def counted(graphs, kind):
        replayed = original_call(graphs, kind)
        trainer.kinds[kind] += replayed
        return replayed

    return trainer, undone, counted


SETTINGS = {
    "all of it": {"clip_loss": "motion", "blend_freq": 2, "clip_ramp_epochs": 3, "weight_decay": 0.01},
    "bf16": {"precision": "bf16"},
    "pe": {"embedding": "pe"},
    "no clipping, frequency loss": {"grad_clip": 0, "pixel_loss": "Fusion10_freq"},
    "encoder": {"embedding": "encoder"},
    "convnext": {"decoder": "convnext", "dec_strides": "2 3 2", "precision": "bf16"},
    "average": {"ema_decay": 0.6},
    "rate": {"rate_weight": 1e-3, "rate_freq": 2, "rate_ramp_epochs": 3, "rounding_start": 0.5, "epochs": 12},
    **{name: {"optimizer": name, "lr_type": "cosine_0.3_1_0.1"} for name in OPTIMIZERS},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_captured_steps_give_the_weights_of_eager_ones(make, console, monkeypatch, stand_ins, name):
    """Bit for bit, over the end of the warm-up, a schedule, a ramp of lambda, and a last step of fewer frames."""
    settings = {"epochs": 6, "blend_freq": 1, "eval_freq": 0} | SETTINGS[name]
    eager = make(**settings)
    eager.fit(console)
    captured, undone, counted = capturing(make(**settings))
    monkeypatch.setattr(capture.Graphs, "_capture", undone)
    monkeypatch.setattr(capture.Graphs, "__call__", counted)
    captured.fit(console)
    assert len(captured.kinds) >= 4 and sum(captured.kinds.values()) >= 6  # of 18 steps
    ours, theirs = captured.checkpoint(), eager.checkpoint()
    for key, value in theirs["model"].items():
        assert torch.equal(ours["model"][key], value), key
    assert torch.equal(ours["progress"]["records"], theirs["progress"]["records"])
    for tag in ("Train/PSNR", "Train/Loss/total_loss", "Train/learning_rate", "Train_Batch/PSNR"):
        assert captured.logger.values[tag] == eager.logger.values[tag]


def test_the_gradients_are_those_of_the_last_step(make, console, monkeypatch, stand_ins):
    """For histograms: of whichever kind it was."""
    settings = {"epochs": 6, "blend_freq": 1, "eval_freq": 0, "pixel_loss_warmup_epochs": 0}
    eager = make(**settings)
    eager.fit(console)
    captured, undone, _ = capturing(make(**settings))
    monkeypatch.setattr(capture.Graphs, "_capture", undone)
    captured.fit(console)
    for ours, theirs in zip(captured.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


COLUMNS = {
    "learning rate": lambda row: row.learning_rates,
    "lambda": lambda row: row.clip_weight,
    "decay": lambda row: row.share,
    "weight of the rate": lambda row: row.rate_weight,
    "number of the step": lambda row: row.number,
}


@pytest.mark.parametrize("what", [*COLUMNS, "position"])
def test_a_number_from_python_would_be_noticed(make, console, monkeypatch, stand_ins, what):
    """The recording does fail a step that is not made of tensors alone."""
    settings = {"epochs": 8, "lr_type": "cosine_0.3_1_0.1", "clip_ramp_epochs": 9, "clip_loss_weight": 0.5}
    settings |= {"ema_decay": 0.99} if what == "decay" else {}
    with_rate = what in ("weight of the rate", "number of the step")
    settings |= {"rate_weight": 0.1, "rate_freq": 1, "rate_ramp_epochs": 9} if with_rate else {}
    eager = make(**settings, eval_freq=0)
    eager.fit(console)
    captured, undone, _ = capturing(make(**settings, eval_freq=0))
    monkeypatch.setattr(capture.Graphs, "_capture", undone)
    step = captured.training_step
    update, batch = step.update, step.batches.batch

    def from_python(rows, times, counts, clip=True):
        row = step.plan.rows[captured.state.step_in_epoch]
        return batch(row, times, counts, clip) if what == "position" else batch(rows, times, counts, clip)

    def with_numbers(given, schedule, clip):
        schedule = schedule.clone()
        now = captured.schedule(range(captured.global_step, captured.global_step + 1))[0]
        if what in COLUMNS:
            COLUMNS[what](Schedule.of(schedule)).copy_(COLUMNS[what](Schedule.of(now)))
        return update(given, schedule, clip)

    monkeypatch.setattr(step, "update", with_numbers)
    monkeypatch.setattr(step.batches, "batch", from_python)
    captured.fit(console)
    ours, theirs = (copy.deepcopy(trainer.checkpoint()["model"]) for trainer in (captured, eager))
    assert not all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_rollback_captures_again(make, console, monkeypatch, stand_ins):
    """The graphs hold the addresses of the state that was replaced."""
    captured, undone, _ = capturing(make(epochs=4, eval_freq=0, pixel_loss_warmup_epochs=0))
    monkeypatch.setattr(capture.Graphs, "_capture", undone)
    captured.fit(console)
    assert captured.graphs.captured
    captured.load(captured.checkpoint())
    assert captured.graphs is None
