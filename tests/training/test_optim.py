"""Optimisers by name, their groups, and gradient norms."""

from __future__ import annotations

import copy

import pytest
import timm.optim
import torch
from torch import nn

from hnerv.config import TrainConfig
from hnerv.errors import UserError
from hnerv.training.optim import check_optimizer, clip_gradients, set_learning_rate


@pytest.mark.parametrize("name", ["adam", "AdamW", "adan", "nadamw", "muon", "lion", "sgd", "adopt", "lamb"])
def test_an_optimizer_trains_and_comes_back_bit_for_bit(make, name):
    first = make(optimizer=name, lr=0.001)
    batches = list(first.remaining_batches())
    losses = [first.step(batch)[1].item() for batch in batches]
    state = copy.deepcopy(first.state())
    for _ in range(10):
        losses.append(first.step(batches[0])[1].item())
    assert losses[-1] < losses[0]
    second = make(optimizer=name, lr=0.001)
    second.load_state(state)
    for _ in range(10):
        second.step(batches[0])
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_codes_of_a_grid_have_their_own_rate(make):
    trainer = make(embed_lr_factor=3)
    network, codes = trainer.optimizer.param_groups
    assert {id(p) for p in codes["params"]} == {id(p) for p in trainer.model.embedding.levels}
    assert len(network["params"]) + len(codes["params"]) == len(list(trainer.model.parameters()))
    set_learning_rate(trainer.optimizer, 0.5)
    assert (network["lr"], codes["lr"]) == (0.5, 1.5)


@pytest.mark.parametrize("embedding", ["encoder", "pe"])
def test_a_network_has_one_rate(make, embedding):
    (group,) = make(embedding=embedding).optimizer.param_groups
    assert group["lr_factor"] == 1


@pytest.mark.parametrize("name", ["adamm", "", "adahessian", "sgd "])
def test_an_unknown_name_lists_what_there_is(name):
    with pytest.raises(UserError) as error:
        check_optimizer(TrainConfig(optimizer=name))
    assert repr(name) in str(error.value) and "adan" in str(error.value) and "\n" not in str(error.value)


def test_one_that_does_not_work_here_says_so(monkeypatch):
    def broken(*_, **__):
        raise AssertionError("CUDA required")

    monkeypatch.setattr(timm.optim, "create_optimizer_v2", broken)
    with pytest.raises(UserError, match="'lion' does not work here .CUDA required.: choose another"):
        check_optimizer(TrainConfig(optimizer="lion"))


@pytest.mark.parametrize("largest", [0.0, 0.5, 1e6])
def test_norms_and_clipping_against_torch(largest):
    draw = torch.Generator().manual_seed(0)
    parts, twins = {}, []
    for part, shapes in {"a": [(3, 4), (5,)], "b": [], "c": [(2, 2, 3)], "d": [(4,)]}.items():
        parts[part] = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    for name in "ac":
        for p in parts[name]:
            p.grad = torch.randn(p.shape, generator=draw)
            twins.append(nn.Parameter(p.detach().clone()))
            twins[-1].grad = p.grad.clone()
    expected = [torch.nn.utils.get_total_norm([p.grad for p in parts[name]]) if name in "ac" else 0.0 for name in parts]
    norms = clip_gradients(parts, largest)
    total = torch.nn.utils.clip_grad_norm_(twins, largest or float("inf"))
    torch.testing.assert_close(norms, torch.tensor([total, *expected]))
    for p, twin in zip([*parts["a"], *parts["c"]], twins, strict=True):
        torch.testing.assert_close(p.grad, twin.grad, rtol=1e-5, atol=1e-6)
    assert norms[2] == norms[4] == 0
