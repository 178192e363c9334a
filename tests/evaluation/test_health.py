"""Embedding health against numpy's SVD and brute force; hooks against the features themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hnerv.evaluation import eval_values, evaluate
from hnerv.evaluation.health import ActivationMonitor, effective_rank, embedding_health, spread


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (40, 7), (1, 4)])
def test_effective_rank_is_the_entropy_of_the_singular_values(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    singular = np.linalg.svd(x.numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert effective_rank(x) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_equal_singular_values_count_themselves(rank):
    x = torch.zeros(8, 6, dtype=torch.float64)
    x[:rank, :rank] = 3 * torch.eye(rank)
    assert effective_rank(x) == pytest.approx(rank)


def test_rank_of_zeros_and_of_nan():
    assert effective_rank(torch.zeros(4, 3, dtype=torch.float64)) == 0
    assert math.isnan(effective_rank(torch.full((4, 3), math.nan, dtype=torch.float64)))


def test_spread_by_brute_force():
    x = unit(12, 5)
    found = spread(x)
    deviations = np.std(x.double().numpy(), axis=0)
    pairs = [float(a.double() @ b.double()) for a, b in itertools.combinations(x, 2)]
    assert found.std_mean == pytest.approx(deviations.mean())
    assert found.std_min == pytest.approx(deviations.min())
    assert found.pairwise_sim == pytest.approx(np.mean(pairs))


def test_a_collapsed_head_is_detected():
    collapsed = spread(unit(1, 5).expand(20, 5))
    assert collapsed.std_mean == pytest.approx(0, abs=1e-8) and collapsed.std_min == pytest.approx(0, abs=1e-8)
    assert collapsed.pairwise_sim == pytest.approx(1) and collapsed.effective_rank < 2
    alive = spread(unit(200, 5))
    assert alive.effective_rank > 4.5 and abs(alive.pairwise_sim) < 0.1 and alive.std_min > 0.3


def test_normalised_mse():
    target = unit(6, 4, 5)
    mean = target.mean((0, 1))
    assert embedding_health(target, target, mean, 1.0).nmse == 0
    assert embedding_health(mean.expand_as(target), target, mean, 1.0).nmse == pytest.approx(1, rel=1e-6)
    predicted = unit(6, 4, 5, seed=3)
    error, variance = ((x - target).double().square().sum().item() for x in (predicted, mean))
    assert embedding_health(predicted, target, mean, 1.0).nmse == pytest.approx(error / variance)
    same = target[:1, :1].expand(6, 4, 5)
    assert embedding_health(predicted, same, same[0, 0], 1.0).nmse is None


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_hooks_count_forward_passes_and_are_removed(world, kind):
    here = world(kind)
    model, seen = here.model.eval(), {}
    times = torch.arange(4.0)
    monitor = ActivationMonitor(model)
    with torch.no_grad(), monitor.attached():
        model(times[:1])
        model(times[1:])
    with torch.no_grad():
        x = model.decoder.stem(model.embedding(times).flatten(0, 1))
        seen[0] = x
        for number, stage in enumerate(model.decoder.stages, start=1):
            x = seen[number] = stage(x)
    features = monitor.features()
    assert len(features.mean) == len(seen) == 4
    for number, x in seen.items():
        assert features.mean[number] == pytest.approx(x.mean().item(), abs=1e-6)
        assert features.std[number] == pytest.approx(x.std(correction=0).item(), rel=1e-4)
    modules = [model.clip_head.out, model.decoder.stem, *model.decoder.stages]
    assert not any(module._forward_hooks for module in modules)


def test_the_norm_is_that_before_normalisation(world):
    here = world()
    norms = []
    with torch.no_grad():
        here.model.clip_head.out.weight *= 7
        here.model.clip_head.out.bias *= 7
    handle = here.model.clip_head.out.register_forward_hook(lambda _, __, out: norms.append(out.norm(dim=-1)))
    with torch.no_grad():
        here.model(torch.arange(8.0))  # one batch of all frames
    handle.remove()
    report = evaluate(here.model, here.store)
    (whole,) = norms
    assert report.train.health.norm == pytest.approx(whole[list(here.scene.train)].mean().item(), rel=1e-5)
    assert report.val.health.norm == pytest.approx(whole[list(here.scene.val)].mean().item(), rel=1e-5)
    assert report.train.health.norm > 1.5


def test_tags_of_health(world):
    here = world()
    report = evaluate(here.model, here.store)
    values = eval_values(report)
    for name, split in report.splits():
        assert values[f"Eval/Patch/{name}_clip_sim_min"] == pytest.approx(split.clip.sim.min().item())
        assert values[f"Eval/Patch/{name}_clip_sim_max"] == pytest.approx(split.clip.sim.max().item())
        truth = here.embeddings[split.positions].flatten(0, 1)
        assert values[f"Eval/Embedding/{name}_target_rank"] == pytest.approx(spread(truth).effective_rank)
        assert values[f"Eval/Embedding/{name}_target_pairwise_sim"] == pytest.approx(spread(truth).pairwise_sim)
        assert values[f"Eval/Embedding/{name}_norm"] == split.health.norm
    assert {t for t in values if t.startswith("Model/")} == {
        f"Model/Features/stage{n}_{what}" for n in range(4) for what in ("mean", "std")
    }
