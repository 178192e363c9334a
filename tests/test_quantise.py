"""Quantisers against formulas worked out by hand, and their bounds over random tensors."""

from __future__ import annotations

import pytest
import torch

from hnerv.codec.allocation import Bits, coarser, range_scales
from hnerv.codec.bitstream import coded_values
from hnerv.errors import UserError
from hnerv.quantise import (
    SCHEMES,
    Scale,
    as_bfloat16,
    check_bits,
    dequantise,
    dequantise_through,
    levels,
    minmax,
    quantise,
    symmetric,
)

BITS = range(2, 9)


def weights(kind: str = "normal") -> torch.Tensor:
    """(6, 5, 3, 3), channels of very different size."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(6, 5, 3, 3, generator=draw) * torch.tensor([1e-4, 0.01, 0.1, 1, 5, 300]).reshape(-1, 1, 1, 1)
    return x + 2 * x.abs().amax((1, 2, 3), keepdim=True) if kind == "positive" else x


def step_of(scale: Scale, weight: torch.Tensor) -> torch.Tensor:
    return scale.step.reshape(-1, *[1] * (weight.dim() - 1))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["normal", "positive"])
def test_symmetric_errs_by_at_most_half_a_step(bits, per_channel, kind):
    weight = weights(kind)
    scale = symmetric(weight, bits, per_channel)
    symbols = quantise(weight, scale)
    assert scale.step.shape == ((6,) if per_channel else (1,)) and scale.offset is None
    assert symbols.dtype == torch.int32 and symbols.abs().max() == 2 ** (bits - 1) - 1
    error = (dequantise(symbols, scale) - weight).abs()
    assert (error <= 0.5 * step_of(scale, weight) * (1 + 1e-5)).all()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["normal", "positive"])
def test_minmax_errs_by_at_most_half_a_step_and_the_rounding_of_its_offset(bits, per_channel, kind):
    weight = weights(kind)
    scale = minmax(weight, bits, per_channel)
    symbols = quantise(weight, scale)
    assert scale.step.shape == scale.offset.shape == ((6,) if per_channel else (1,))
    assert symbols.min() >= 0 and symbols.max() <= 2**bits - 1 and symbols.max() >= 2**bits - 2
    error = (dequantise(symbols, scale) - weight).abs()
    offset = scale.offset.abs().reshape(-1, 1, 1, 1)
    assert (error <= 0.5 * step_of(scale, weight) * (1 + 1e-3) + offset * 2**-8).all()


@pytest.mark.parametrize("bits", BITS)
def test_minmax_is_the_formula_of_hnerv(bits):
    """round((w - min) / ((max - min) / (2^b - 1))), with min and scale as two bytes; here exact in bfloat16."""
    top = 2**bits - 1
    weight = torch.cat([torch.tensor([-1.5, -1.5 + top * 0.25]), torch.linspace(-1.5, -1.5 + top * 0.25, 40)])
    scale = minmax(weight, bits, per_channel=False)
    assert scale.offset.item() == -1.5 and scale.step.item() == 0.25
    by_hand = [round((w + 1.5) / 0.25) for w in weight.tolist()]
    assert quantise(weight, scale).tolist() == by_hand
    assert dequantise(quantise(weight, scale), scale).tolist() == [-1.5 + 0.25 * q for q in by_hand]


def test_symmetric_by_hand():
    weight = torch.tensor([-3.5, -1.76, -0.2, 0.0, 0.24, 0.26, 3.5])
    scale = symmetric(weight, 4, per_channel=False)
    assert scale == (torch.tensor([0.5]), None, -7, 7)
    assert quantise(weight, scale).tolist() == [-7, -4, 0, 0, 0, 1, 7]


def test_channels_have_steps_of_their_own_and_biases_one():
    weight = weights()
    whole, parts = symmetric(weight, 6, per_channel=False), symmetric(weight, 6, per_channel=True)
    assert whole.step == parts.step.max()
    for channel, step in zip(weight, parts.step, strict=True):
        assert step == as_bfloat16(channel.abs().max() / 31)
    assert symmetric(torch.randn(8), 6, per_channel=True).step.shape == (1,)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.75, 2.0**-20])
def test_constants_come_back(scheme, per_channel, value):
    weight = torch.full((3, 4), value)
    scale = SCHEMES[scheme](weight, 8, per_channel)
    assert torch.allclose(dequantise(quantise(weight, scale), scale), weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_a_second_time_changes_nothing(scheme, per_channel, bits):
    weight = weights()
    scale = SCHEMES[scheme](weight, bits, per_channel)
    symbols = quantise(weight, scale)
    once = dequantise(symbols, scale)
    assert torch.equal(quantise(once, scale), symbols)
    assert torch.equal(dequantise(quantise(once, scale), scale), once)


def test_zeros_stay_zeros_under_symmetric_steps():
    weight = weights()
    weight[:, ::2] = 0
    for per_channel in (False, True):
        scale = symmetric(weight, 3, per_channel)
        assert (dequantise(quantise(weight, scale), scale)[:, ::2] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_steps_and_offsets_are_bfloat16(scheme, per_channel):
    scale = SCHEMES[scheme](weights(), 7, per_channel)
    for numbers in (scale.step, scale.offset):
        if numbers is not None:
            assert (numbers.view(torch.int32) & 0xFFFF == 0).all()


@pytest.mark.parametrize("offset", [None, torch.tensor([-0.5])])
def test_the_gradient_passes_straight_through_as_that_of_a_clamp(offset):
    scale = Scale(torch.tensor([0.25]), offset, -3, 3)
    weight = torch.linspace(-2, 2, 41).requires_grad_()
    pull = torch.randn(41, generator=torch.Generator().manual_seed(0))
    rounded = dequantise_through(weight, scale)
    assert torch.allclose(rounded, dequantise(quantise(weight.detach(), scale), scale), atol=1e-6)
    (found,) = torch.autograd.grad(rounded, weight, pull)
    shift = 0 if offset is None else offset
    clamped = (weight - shift).clamp(-0.75, 0.75) + shift
    (expected,) = torch.autograd.grad(clamped, weight, pull)
    inside = (levels(weight, scale).abs() - 3).abs() > 1e-4
    assert torch.allclose(found[inside], expected[inside], atol=1e-6) and 0 < (found == 0).sum() < 41


def test_bits_of_each_kind_of_tensor():
    bits = Bits(weights=4, latents=6)
    assert bits.of("decoder.stem.weight", torch.zeros(3, 3)) == 4
    assert bits.of("embedding.hidden.weight", torch.zeros(3, 3)) == 4
    assert bits.of("embedding.levels.0", torch.zeros(3, 3, 2, 2)) == 6
    assert bits.of("embedding.codes", torch.zeros(3, 3, 2, 2)) == 6
    assert bits.of("decoder.stem.bias", torch.zeros(3)) == 8
    assert Bits(16, 2).of("decoder.stem.bias", torch.zeros(3)) == 16


def test_sixteen_bits_are_half_floats():
    found = {"decoder.stem.weight": weights(), "embedding.codes": weights()}
    scales = range_scales(found, Bits(16, 5), "symmetric", per_channel=False)
    assert scales["decoder.stem.weight"] is None and scales["embedding.codes"] is not None
    coded = coded_values(found, scales)
    assert torch.equal(coded["decoder.stem.weight"], weights().half().float())
    assert not torch.equal(coded["embedding.codes"], weights())


def test_coarser_steps_keep_some_levels_and_half_floats():
    weight = weights()
    scales = range_scales({"a": weight, "b": weight}, Bits(8, 8), "symmetric", per_channel=False) | {"b": None}
    twice = coarser({"a": weight, "b": weight}, scales, 2.0)
    assert twice["b"] is None and twice["a"].step == as_bfloat16(2 * scales["a"].step)
    for factor in (1.0, 64.0, 1e6):
        symbols = quantise(weight, coarser({"a": weight}, {"a": scales["a"]}, factor)["a"])
        assert symbols.abs().max() >= 3


@pytest.mark.parametrize("bits", [0, 1, -2, 9, 12, 15, 17, 32])
def test_other_bits_are_refused(bits):
    with pytest.raises(UserError, match=f"--weight-bits {bits} must be 2 to 8, or 16"):
        check_bits(bits, "--weight-bits")
    for good in (*BITS, 16):
        check_bits(good, "--weight-bits")
