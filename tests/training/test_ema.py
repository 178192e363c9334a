"""--ema-decay: the average against its closed form; what is measured and saved is the average, what trains is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hnerv.evaluation import eval_values, evaluate
from hnerv.runs.checkpoint import CURRENT, KEYS, load_checkpoint
from hnerv.runs.models import open_checkpoint
from hnerv.training.ema import effective_decay

DECAY = 0.3
WARM_UP = 2 / 11, 3 / 12
"""(1 + n) / (10 + n) of the first two updates; the third, 4 / 13, is above DECAY."""


def fp64(model) -> list[torch.Tensor]:
    return [p.detach().double().clone() for p in model.parameters()]


@pytest.fixture
def averaged(make, console):
    """averaged(embedding) -> a trainer after a run with the average, and its weights before and after each step."""

    def fit(**changes):
        trainer = make(epochs=3, ema_decay=DECAY, **changes)
        update, weights = trainer.training_step.update, [fp64(trainer.model)]

        def recorded(*args):
            row = update(*args)
            weights.append(fp64(trainer.model))
            return row

        trainer.training_step.update = recorded
        trainer.fit(console)
        return trainer, weights

    return fit


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_the_average_is_its_closed_form_and_that_of_torch(averaged, embedding):
    trainer, steps = averaged(embedding=embedding)
    decays = [*WARM_UP, *[DECAY] * (len(steps) - 3)]
    # a_n = sum over k of (1 - d_k) d_k+1 ... d_n w_k, with w_0 in full.
    shares = [(1 - d) * np.prod(decays[k + 1 :]) for k, d in enumerate(decays)]
    shares = [np.prod(decays), *shares]
    assert sum(shares) == pytest.approx(1)
    of_torch = [p.clone() for p in steps[0]]
    for weights, decay in zip(steps[1:], decays, strict=True):
        get_ema_multi_avg_fn(decay)(of_torch, weights, None)
    for i, found in enumerate(fp64(trainer.evaluated)):
        expected = sum(share * weights[i] for share, weights in zip(shares, steps, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found, of_torch[i], rtol=1e-5, atol=1e-7)


def test_what_an_epoch_logs(averaged):
    trainer, _ = averaged()
    logged = {tag.removeprefix("Train/EMA/"): v for tag, v in trainer.logger.values.items() if "/EMA/" in tag}
    assert logged["decay"] == {1: DECAY, 2: DECAY, 3: DECAY}
    ours, theirs = ([p.numpy() for p in fp64(model)] for model in (trainer.evaluated, trainer.model))
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b.any()]
    distances = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
    assert logged["distance"][3] == pytest.approx(np.mean(distances), rel=1e-5)
    norms = [np.linalg.norm(np.concatenate([p.ravel() for p in side])) for side in (ours, theirs)]
    assert logged["norm_ratio"][3] == pytest.approx(norms[0] / norms[1], rel=1e-5)


@pytest.mark.parametrize("updates", [1, 2, 50, 8990])
def test_the_decay_rises_to_its_limit(updates):
    assert effective_decay(0.999, updates) == (1 + updates) / (10 + updates)
    assert effective_decay(0.999, updates) <= effective_decay(0.999, 10**9) == 0.999
    assert effective_decay(0.0, updates) == 0


@pytest.mark.parametrize("embedding", ["grid", "encoder"])
def test_the_checkpoint_holds_the_average_that_was_evaluated(averaged, embedding):
    trainer, _ = averaged(embedding=embedding)
    state = load_checkpoint(trainer.folder.latest)
    assert set(state) == KEYS | {CURRENT}
    for kept, model in (("model", trainer.evaluated), (CURRENT, trainer.model)):
        assert all(torch.equal(state[kept][name], value) for name, value in model.state_dict().items())
    model = open_checkpoint(trainer.folder.latest).model.to(memory_format=torch.channels_last)
    found = eval_values(evaluate(model, trainer.store))
    assert found == pytest.approx({tag: trainer.state.evaluation[tag] for tag in found})
    assert found != pytest.approx(eval_values(evaluate(trainer.model, trainer.store)))
    if embedding == "encoder":
        stored = model.embedding.codes.clone()
        model.embedding.refresh(trainer.store.frames)
        assert torch.equal(model.embedding.codes, stored)


def test_the_average_does_not_change_what_is_trained(averaged, make, console):
    """Nor do its tensors move, which a CUDA graph would miss."""
    trainer, _ = averaged()
    plain = make(epochs=3)
    plain.fit(console)
    assert plain.average is None and plain.evaluated is plain.model
    assert set(load_checkpoint(plain.folder.latest)) == KEYS
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    tensors = [*trainer.model.parameters(), *trainer.evaluated.parameters()]
    before = [tensor.data_ptr() for tensor in tensors]
    trainer.load(trainer.checkpoint())
    trainer.begin_epoch()
    trainer.advance()
    trainer.evaluate()
    assert [tensor.data_ptr() for tensor in tensors] == before
