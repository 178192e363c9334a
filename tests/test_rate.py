"""The estimate of the rate: against densities in float64, brute force, and the files that hold its steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hnerv.config import Config
from hnerv.model import DualHeadHNeRV, Scene, build_model
from hnerv.quantise import dequantise, quantise
from hnerv.rate import LatentDensity, RateModel, logistic_bits

SCALES = (0.05, 0.2, 1.0, 7.0, 100.0, 1000.0)


@pytest.fixture
def model() -> DualHeadHNeRV:
    """A grid of two levels, a decoder of two stages and a CLIP head: 12 frames of 8x16."""
    torch.manual_seed(0)
    changes = {
        "dec_strides": (2, 2),
        "dec_width": 4,
        "embed_dim": 2,
        "clip_hidden": 3,
        "clip_site": 1,
        "lower_width": 2,
    }
    scene = Scene(12, 8, 16, 1, 1, 24.0, tuple(range(12)), (), 4)
    return build_model(Config().replaced(changes | {"rgb_stride": 1}).model, scene)


def number(step: int) -> Tensor:
    return torch.tensor(float(step))


def logistic(x: Tensor) -> Tensor:
    """The distribution function and its complement, without overflow."""
    return torch.where(x < 0, x.exp() / (1 + x.exp()), 1 / (1 + (-x).exp()))


@pytest.mark.parametrize("scale", SCALES)
def test_bits_are_those_of_the_integral_in_float64(scale):
    """By symmetry, -log2(F(y + 1/2) - F(y - 1/2)) is computed for -|y|, where both terms are small."""
    symbols = torch.arange(-1000.0, 1001.0, requires_grad=True)
    y = -symbols.detach().double().abs()
    below, above = logistic((y - 0.5) / scale), logistic((y + 0.5) / scale)
    expected = -(above - below).log2()
    log_scale = torch.tensor(math.log2(scale), requires_grad=True)
    bits = logistic_bits(symbols, log_scale.exp2())
    known = expected < 1000  # beyond, float64 is subnormal
    assert known.sum() > 60
    torch.testing.assert_close(bits[known].double(), expected[known], rtol=1e-4, atol=1e-4)
    assert bits.isfinite().all() and (bits[~known] > 900).all()
    bits.sum().backward()
    assert symbols.grad.isfinite().all() and log_scale.grad.isfinite()


@pytest.mark.parametrize("scale", SCALES)
def test_probabilities_of_all_integers_sum_to_one(scale):
    integers = torch.arange(-40_000.0, 40_001.0, dtype=torch.float64)
    assert (-logistic_bits(integers, torch.tensor(scale, dtype=torch.float64))).exp2().sum() == pytest.approx(1)


def test_noise_is_uniform_over_parameters_and_over_time(model):
    """Kolmogorov-Smirnov distances below 2 / sqrt(n), neighbouring steps and parameters uncorrelated."""
    rate = RateModel(model, seed=1)
    over_time = torch.stack([rate.noise(number(step)) for step in range(2000)])
    assert over_time.min() >= -0.5 and over_time.max() < 0.5
    for values in (over_time[7], over_time[:, 3], over_time[:, 10], over_time.flatten()):
        n = len(values)
        expected = torch.arange(1, n + 1) / n - 0.5
        assert (values.sort().values - expected).abs().max() < 2 / n**0.5
    assert over_time.mean().item() == pytest.approx(0, abs=1e-3)
    assert over_time.var().item() == pytest.approx(1 / 12, rel=5e-3)
    for other in (over_time[8], over_time[7].roll(1)):
        assert abs(torch.corrcoef(torch.stack([over_time[7], other]))[0, 1]) < 4 / over_time.shape[1] ** 0.5
    correlations = torch.corrcoef(over_time[:, :50].T)[*torch.triu_indices(50, 50, 1)]
    assert correlations.square().mean() < 2 / len(over_time), "as of independent numbers, but for a few pairs"


def test_noise_has_no_state(model):
    """It depends on the seed and the number of the step alone."""
    first, second, other = RateModel(model, 1), RateModel(model, 1), RateModel(model, 2)
    expected = first.noise(number(5))
    second.noise(number(3))
    assert torch.equal(second.noise(number(5)), expected)
    for noise in (first.noise(number(6)), other.noise(number(5)), first.noise(number((1 << 24) - 1))):
        assert not torch.equal(noise, expected)
    assert not {"start", "stride"} & set(first.state_dict())
    first.start.fill_((1 << 32) - 1)
    assert (first.noise(number(0)) < 0.5).all()


def test_the_estimate_of_latents_is_causal():
    """Brute force: each symbol changes itself no mean or scale but later ones, and in its slice those of odd cells."""
    draw = torch.Generator().manual_seed(0)
    density = LatentDensity(2, initial=0.3)
    for parameter in density.parameters():
        torch.nn.init.normal_(parameter, generator=draw)
    symbols = torch.randn(4, 2, 3, 4, generator=draw)
    before = [part.detach() for part in density(symbols)]
    reached = 0
    for t, c, y, x in torch.cartesian_prod(*map(torch.arange, symbols.shape)).tolist():
        changed = symbols.clone()
        changed[t, c, y, x] += 1
        for old, new in zip(before, density(changed), strict=True):
            differs = (old != new).expand_as(symbols)
            assert not differs[:t].any(), "an earlier slice"
            assert not differs[:, 1 - c].any(), "another channel"
            odd = torch.tensor([[(i + j) % 2 for j in range(4)] for i in range(3)], dtype=torch.bool)
            assert not differs[t, c][~odd].any(), "an even cell"
            assert (y + x) % 2 == 0 or not differs[t].any(), "an odd cell is the last"
            near = torch.tensor([[abs(i - y) + abs(j - x) == 1 for j in range(4)] for i in range(3)])
            assert not differs[t, c][~near].any(), "only its neighbours"
            reached += differs.sum().item()
    assert reached > symbols.numel()


def test_rounded_parameters_are_integers_times_steps_of_a_file(model):
    """With the gradient of no rounding; and the file has the very same values."""
    rate = RateModel(model, seed=0)
    draw = torch.Generator().manual_seed(0)
    for parameter in rate.steps.parameters():
        torch.nn.init.normal_(parameter, -4, 0.7, generator=draw)
    rate.fix()
    values, symbols = rate(number(0), rounded=True)
    assert torch.equal(symbols, symbols.round()) and symbols.unique().numel() > 8
    scales = rate.scales()
    of_file = [scales[name].steps(w.shape).expand(w.shape).flatten() for name, w in model.named_parameters()]
    assert torch.equal(rate.fixed, torch.cat(of_file))
    for (name, weight), part in zip(model.named_parameters(), symbols.split(rate.sizes), strict=True):
        found = quantise(weight.detach(), scales[name])
        assert torch.equal(found, part.view_as(weight).int()) and torch.equal(
            dequantise(found, scales[name]), values[name]
        )
        logs = rate.log_steps().split(rate.sizes)[list(scales).index(name)]
        assert ((scales[name].steps(weight.shape).log2().expand(weight.shape).flatten() - logs).abs() < 0.3).all()
    torch.cat([value.flatten() for value in values.values()]).sum().backward()
    assert all(torch.allclose(p.grad, torch.ones(()), rtol=1e-6) for p in model.parameters())
    assert all(p.grad is None for p in rate.parameters()), "steps are fixed"


def test_noise_of_one_step_is_added(model):
    rate = RateModel(model, seed=0)
    values, symbols = rate(number(4), rounded=False)
    steps, noise = rate.log_steps().exp2(), rate.noise(number(4))
    flat = torch.cat([value.flatten() for value in values.values()])
    weights = torch.cat([p.flatten() for p in model.parameters()])
    torch.testing.assert_close(flat, weights + steps * noise, rtol=0, atol=1e-6)
    torch.testing.assert_close(symbols, flat / steps, rtol=1e-5, atol=1e-5)
    assert [tuple(value.shape) for value in values.values()] == [tuple(p.shape) for p in model.parameters()]


def test_rate_and_distortion_pull_steps_in_opposite_directions(model):
    """Distortion as the squared change of the weights, which grows with every step: exactly its derivative."""
    rate = RateModel(model, seed=0)
    steps = [p for p in rate.steps.parameters() if p.requires_grad]
    values, symbols = rate(number(1), rounded=False)
    weights = dict(model.named_parameters())
    distortion = sum((value - weights[name]).square().sum() for name, value in values.items())
    by_distortion = torch.autograd.grad(distortion, steps, retain_graph=True)
    by_rate = torch.autograd.grad(rate.bits(symbols, rounded=False).sum(), steps)
    assert all((g >= 0).all() and g.sum() > 0 for g in by_distortion) and all(g.sum() < 0 for g in by_rate)
    first = rate.log_steps().detach().exp2() * rate.noise(number(1))
    expected = 2 * math.log(2) * first.square().split(rate.sizes)[0].sum()
    torch.testing.assert_close(by_distortion[0].sum(), expected)


def test_bits_are_those_of_their_tensors(model):
    """A tensor of zeros with fine scales costs almost nothing, and one bit per halved step at fine steps."""
    rate = RateModel(model, seed=0)
    with torch.no_grad():
        for parameter in rate.steps.parameters():
            parameter.sub_(5)
        fine = rate.bits(rate(number(0), rounded=False).symbols, rounded=False)
        for step in rate.steps:
            step.rows.sub_(1)
        finer = rate.bits(rate(number(0), rounded=False).symbols, rounded=False)
    sizes = torch.tensor(rate.sizes)
    assert fine.shape == (len(sizes),)
    torch.testing.assert_close((finer - fine) / sizes, torch.ones(len(sizes)), rtol=0, atol=0.1)
