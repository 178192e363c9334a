"""Quantisers against formulas worked out by hand, and their bounds over drawn tensors."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnerv.codec.allocation import Bits, coarser, range_scales
from hnerv.codec.bitstream import coded_values
from hnerv.errors import UserError
from hnerv.quantise import (
    RESOLUTION,
    SCHEMES,
    Scale,
    as_bfloat16,
    check_bits,
    dequantise,
    dequantise_through,
    from_logs,
    levels,
    minmax,
    quantise,
    symmetric,
)

BITS = range(2, 9)


def weights(shift: float = 0) -> torch.Tensor:
    """(6, 5, 3, 3), channels of very different size; `shift` in magnitudes of a channel, so 2 is positive."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(6, 5, 3, 3, generator=draw) * torch.tensor([1e-4, 0.01, 0.1, 1, 5, 300]).reshape(-1, 1, 1, 1)
    return x + shift * x.abs().amax((1, 2, 3), keepdim=True)


@given(st.sampled_from([*SCHEMES]), st.sampled_from(BITS), st.booleans(), st.sampled_from([0, 2, -2]), st.booleans())
def test_a_quantiser_errs_by_at_most_half_a_step(scheme, bits, per_channel, shift, pruned):
    weight = weights(shift)
    if pruned:
        weight[:, ::2] = 0
    scale = SCHEMES[scheme](weight, bits, per_channel)
    symbols = quantise(weight, scale)
    once = dequantise(symbols, scale)
    step, offset = (None if x is None else x.reshape(-1, 1, 1, 1) for x in (scale.step, scale.offset))
    assert scale.step.shape == ((6,) if per_channel else (1,)) and symbols.dtype == torch.int32
    for numbers in filter(lambda x: x is not None, (scale.step, scale.offset)):
        assert (numbers.view(torch.int32) & 0xFFFF == 0).all()  # bfloat16
    if scheme == "symmetric":
        assert scale.offset is None and symbols.abs().max() == 2 ** (bits - 1) - 1
        assert not pruned or (once[:, ::2] == 0).all()
    else:
        assert symbols.min() >= 0 and 2**bits - 2 <= symbols.max() <= 2**bits - 1
    rounding = 0 if offset is None else offset.abs() * 2**-8  # of an offset to bfloat16
    assert ((once - weight).abs() <= 0.51 * step + rounding).all()
    assert torch.equal(quantise(once, scale), symbols)  # a second time changes nothing


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
    assert scale == (torch.tensor([0.5]), None, -7, 7, None, None)
    assert quantise(weight, scale).tolist() == [-7, -4, 0, 0, 0, 1, 7]
    parts = symmetric(weights(), 6, per_channel=True).step
    assert parts.tolist() == [as_bfloat16(channel.abs().max() / 31).item() for channel in weights()]
    assert symmetric(torch.randn(8), 6, per_channel=True).step.shape == (1,)  # a bias has one step


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.75, 2.0**-20])
def test_constants_come_back(scheme, value):
    for per_channel in (False, True):
        scale = SCHEMES[scheme](torch.full((3, 4), value), 8, per_channel)
        found = dequantise(quantise(torch.full((3, 4), value), scale), scale)
        assert torch.allclose(found, torch.full((3, 4), value), rtol=2**-8, atol=0)


@pytest.mark.parametrize("offset", [None, torch.tensor([-0.5])])
def test_the_gradient_passes_straight_through_as_that_of_a_clamp(offset):
    scale = Scale(torch.tensor([0.25]), offset, -3, 3)
    weight = torch.linspace(-2, 2, 41).requires_grad_()
    pull = torch.randn(41, generator=torch.Generator().manual_seed(0))
    rounded = dequantise_through(weight, scale)
    assert torch.allclose(rounded, dequantise(quantise(weight.detach(), scale), scale), atol=1e-6)
    (found,) = torch.autograd.grad(rounded, weight, pull)
    shift = 0 if offset is None else offset
    (expected,) = torch.autograd.grad((weight - shift).clamp(-0.75, 0.75) + shift, weight, pull)
    inside = (levels(weight, scale).abs() - 3).abs() > 1e-4
    assert torch.allclose(found[inside], expected[inside], atol=1e-6) and 0 < (found == 0).sum() < 41


def test_steps_of_rows_and_columns_by_hand():
    """Constants by decimal arithmetic; one rounding to fp32, then a power of two."""
    getcontext().prec = 40
    eighths = [np.float32(float(Decimal(2) ** (Decimal(i) / 8))) for i in range(8)]
    rows, cols = torch.arange(-150, 150, 37).int(), torch.arange(-90, 100, 5).int()
    scale = Scale(as_bfloat16(torch.tensor([0.3])), None, -99, 99, rows, cols)
    found = scale.steps((len(rows), len(cols)))
    for i, row in enumerate(rows.tolist()):
        for j, col in enumerate(cols.tolist()):
            rounded = np.float32(scale.step.item()) * eighths[(row + col) % 8]
            assert found[i, j].item() == float(rounded) * 2.0 ** ((row + col) // 8)
    only = scale._replace(rows=None).steps((3, len(cols)))
    assert torch.equal(only, scale._replace(rows=torch.zeros(3).int()).steps((3, len(cols))))


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 2, 2), (6,), (4, 3, 5, 6)])
def test_steps_from_logarithms(shape):
    """Within the rounding of exponents and base; columns of latents are channels."""
    draw = torch.Generator().manual_seed(1)
    count = math.prod(shape)
    num_rows = shape[0] if len(shape) > 1 else 1
    num_cols = 3 if shape == (4, 3, 5, 6) else count // num_rows
    rows, cols = (torch.randn(count, generator=draw) * 3 - 5 for count in (num_rows, num_cols))
    scale = from_logs(rows, cols)
    exact = (rows[:, None] + cols.repeat_interleave(count // num_rows // num_cols)).view(shape)
    assert ((scale.steps(shape).log2() - exact).abs() <= 1 / RESOLUTION + 2**-7).all()
    for exponents in (scale.rows, scale.cols):
        assert exponents is None or (exponents % (8 // RESOLUTION) == 0).all()
    weight = 30 * torch.randn(shape, generator=draw) * scale.steps(shape)
    symbols = quantise(weight, scale)
    assert ((dequantise(symbols, scale) - weight).abs() <= 0.5001 * scale.steps(shape)).all()
    assert torch.equal(quantise(dequantise(symbols, scale), scale), symbols)
    twice = coarser({"w": weight}, {"w": scale}, 2.0)["w"]
    assert torch.equal(twice.steps(shape), 2 * scale.steps(shape))


def test_equal_steps_have_no_exponents():
    scale = from_logs(torch.full((4,), -3.0), torch.zeros(5))
    assert not scale.has_exponents and scale.step.tolist() == [0.125]
    assert from_logs(None, None).step.tolist() == [1.0]


def test_the_gradient_reaches_the_base_of_a_step():
    step = torch.tensor([0.25], requires_grad=True)
    scale = Scale(step, None, -99, 99, torch.tensor([0, 8], dtype=torch.int32), None)
    scale.steps((2, 3)).sum().backward()
    assert step.grad.item() == 3 + 6


@pytest.mark.parametrize(
    ("bits", "name", "dim", "expected"),
    [
        ((4, 6), "decoder.stem.weight", 2, 4),
        ((4, 6), "embedding.hidden.weight", 2, 4),
        ((4, 6), "embedding.levels.0", 4, 6),
        ((4, 6), "embedding.codes", 4, 6),
        ((4, 6), "decoder.stem.bias", 1, 8),
        ((16, 2), "decoder.stem.bias", 1, 16),
    ],
)
def test_bits_of_each_kind_of_tensor(bits, name, dim, expected):
    assert Bits(*bits).of(name, torch.zeros([2] * dim)) == expected


def test_sixteen_bits_are_half_floats_and_coarser_steps_keep_some_levels():
    found = {"decoder.stem.weight": weights(), "embedding.codes": weights()}
    scales = range_scales(found, Bits(16, 5), "symmetric", per_channel=False)
    coded = coded_values(found, scales)
    assert scales["decoder.stem.weight"] is None and scales["embedding.codes"] is not None
    assert torch.equal(coded["decoder.stem.weight"], weights().half().float())
    for factor in (2.0, 64.0, 1e6):
        wider = coarser(found, scales, factor)
        assert wider["decoder.stem.weight"] is None
        assert quantise(weights(), wider["embedding.codes"]).abs().max() >= 3
    assert coarser(found, scales, 2.0)["embedding.codes"].step == as_bfloat16(2 * scales["embedding.codes"].step)


@pytest.mark.parametrize("bits", [0, 1, -2, 9, 15, 17])
def test_other_bits_are_refused(bits):
    with pytest.raises(UserError, match=f"--weight-bits {bits} must be 2 to 8, or 16"):
        check_bits(bits, "--weight-bits")
    for good in (*BITS, 16):
        check_bits(good, "--weight-bits")
