"""Every optimiser of the table trains and comes back from a file; what Muon leaves to Adam."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from hnerv.runs.checkpoint import load_checkpoint, save_checkpoint
from hnerv.training.optim import OPTIMIZERS, clip_gradients

CONSTANT = {"lr": 0.001, "lr_type": "constant"}


def run(trainer, first: int, last: int) -> list[float]:
    """Steps first to last - 1 over the batches of epoch 0; the CLIP head joins at step 8. Returns the pixel losses."""
    trainer.state.epoch = trainer.state.step_in_epoch = 0
    batches = itertools.cycle(list(trainer.remaining_batches()))
    losses = []
    for number, batch in zip(range(last), batches, strict=False):
        if number >= first:
            trainer.state.epoch = 0 if number < 8 else 2
            losses.append(trainer.step(batch)[1].item())
    return losses


def assert_equal(a: object, b: object) -> None:
    """Of the same types, keys and lengths, and bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("name", "embedding"), [("muon", "grid"), ("muon", "encoder"), ("adam", "grid"), ("adamw", "pe")]
)
def test_an_optimizer_trains_and_comes_back_bit_for_bit(make, name, embedding, tmp_path):
    """Through a file, saved after the CLIP head has joined, and written again as it was read."""
    first, second = (make(optimizer=name, embedding=embedding, **CONSTANT) for _ in range(2))
    losses = run(first, 0, 13)
    save_checkpoint(tmp_path / "first.pt", first.checkpoint())
    second.load(load_checkpoint(tmp_path / "first.pt"))
    save_checkpoint(tmp_path / "second.pt", second.checkpoint())
    assert_equal(*(load_checkpoint(tmp_path / f"{which}.pt")["optimizer"] for which in ("first", "second")))
    losses += run(first, 13, 24)
    assert losses[-1] < losses[0] and run(second, 13, 24) == losses[13:]
    assert_equal(first.model.state_dict(), second.model.state_dict())
    assert_equal(first.optimizer.state_dict(), second.optimizer.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_clip_head_learns_at_its_first_step_however_late_it_comes(make, name):
    """And no faster than the others, though the averages of its gradients begin when theirs are old."""
    trainer = make(optimizer=name, weight_decay=0, **CONSTANT)
    run(trainer, 0, 8)
    before = [p.detach().clone() for p in trainer.model.clip_head.parameters()]
    run(trainer, 8, 9)
    for old, new in zip(before, trainer.model.clip_head.parameters(), strict=True):
        assert 0 < (new - old).abs().max() < 5 * CONSTANT["lr"]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_every_parameter_is_in_one_group_and_codes_of_a_grid_have_their_own_rate(make, embedding, name):
    settings = {"embed_lr_factor": 3, "lr": 0.5, "lr_type": "constant", "weight_decay": 0.25}
    trainer = make(optimizer=name, embedding=embedding, **settings)
    trainer.step(next(trainer.remaining_batches()))
    groups = trainer.optimizer.param_groups
    rates = {id(p): (group["lr"].item(), group["lr_factor"]) for group in groups for p in group["params"]}
    codes = {id(p) for p in trainer.model.embedding.levels} if embedding == "grid" else set()
    assert len(rates) == sum(len(group["params"]) for group in groups)
    assert rates == {id(p): (1.5, 3) if id(p) in codes else (0.5, 1) for p in trainer.model.parameters()}
    assert all(group["weight_decay"] == 0.25 for group in groups)


@pytest.mark.parametrize("decoder", ["hnerv", "convnext"])
def test_muon_moves_matrices_of_the_network_and_neither_codes_nor_depthwise_kernels(make, decoder):
    trainer = make(optimizer="muon", decoder=decoder)
    run(trainer, 0, 9)
    for name, p in trainer.model.named_parameters():
        matrix = p.dim() > 1 and "embedding" not in name and "depthwise" not in name
        assert set(trainer.optimizer.state[p]) == ({"momentum"} if matrix else {"step", "mean", "square"}), name


def follow(trainer, parameters: list[nn.Parameter], reference: type, **settings) -> None:
    """Asserts that `trainer` moves `parameters` as `reference` does from its gradients.

    With an epsilon of next to nothing, which every library adds at another place.
    """
    for group in trainer.optimizer.param_groups:
        group["eps"] = 1e-20
    twins = [nn.Parameter(p.detach().clone()) for p in parameters]
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    groups = [{"params": [twin], "lr": rates[id(p)]} for p, twin in zip(parameters, twins, strict=True)]
    optimizer = reference(groups, foreach=False, eps=1e-20, **settings)
    before = [twin.detach().clone() for twin in twins]
    for number in range(8):
        run(trainer, number, number + 1)
        for p, twin in zip(parameters, twins, strict=True):
            twin.grad = p.grad
        optimizer.step()
    for p, twin, start in zip(parameters, twins, before, strict=True):
        assert (twin - start).abs().max() > 0
        torch.testing.assert_close(p - start, twin - start, rtol=1e-4, atol=1e-3 * rates[id(p)])


@pytest.mark.parametrize("decoder", ["hnerv", "convnext"])
def test_muon_moves_codes_biases_and_depthwise_kernels_as_adam_does(make, decoder):
    trainer = make(optimizer="muon", weight_decay=0, decoder=decoder, **CONSTANT)
    named = trainer.model.decoder.named_parameters()
    vectors = [p for name, p in named if name.endswith("bias") or "depthwise" in name]
    assert len(vectors) == (4 if decoder == "hnerv" else 3 + 3 * 2)
    betas = trainer.optimizer.param_groups[0]["betas"]
    follow(trainer, [*trainer.model.embedding.levels, *vectors], torch.optim.Adam, betas=betas)


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
