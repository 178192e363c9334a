"""Muon against singular value decompositions, and against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hnerv.training.muon import COEFFICIENTS, MATRIX_RATE, ROUNDS, Muon, orthogonalize

SHAPES = [(5, 7, 1, 1), (12, 5, 3, 3), (40, 12, 3, 3), (1, 7, 5, 5), (6, 7, 2, 3), (9, 7, 3), (9, 14), (14, 9)]
"""Of convolutions and of linear layers."""


def by_decomposition(x: Tensor) -> Tensor:
    """What the polynomial makes of the singular values of one matrix (O, I), each on its own."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.square().sum().sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (30, 5), (5, 30), (64, 64)], ids=str)
@pytest.mark.parametrize("spread", [0, 3, 8, 20])
def test_orthogonal_against_decompositions(shape, spread):
    """Singular values over `spread` decades in random directions, of matrices whose sizes differ as gradients' do.

    What fp32 loses of the Gram matrix is multiplied by up to 485^2, in directions that are next to nothing.
    """
    draw, rank = torch.Generator().manual_seed(0), min(shape)
    left, right = (torch.randn(3, side, rank, generator=draw, dtype=torch.float64) for side in shape)
    values = torch.logspace(0, -spread, rank, dtype=torch.float64) if rank > 1 else torch.ones(1, dtype=torch.float64)
    x = torch.linalg.qr(left)[0] * values @ torch.linalg.qr(right)[0].mT
    x *= torch.tensor([1e-9, 1e-3, 1e4], dtype=torch.float64)[:, None, None]
    expected = torch.stack([by_decomposition(one) for one in x])
    torch.testing.assert_close(orthogonalize(x).double(), expected, rtol=0, atol=1e-9)
    found = orthogonalize(x.float())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-3)
    assert torch.linalg.svdvals(found).max() < 1.25


@pytest.mark.parametrize("rank", [1, 2])
def test_a_matrix_of_low_rank_keeps_it(rank):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, rank, generator=draw) @ torch.randn(2, rank, 7, generator=draw)
    values = torch.linalg.svdvals(orthogonalize(x))
    assert values[:, :rank].min() > 0.6 and values.max() < 1.25 and values[:, rank:].max() < 0.01


@pytest.mark.parametrize("norm", [0, 1e-20, 1e-15, 1e-14])
def test_hardly_any_gradient_hardly_moves(norm):
    """Around the 1e-15 below which the norm is no longer divided by; without a gradient, nothing moves or decays."""
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(norm * x / x.norm())
    assert torch.linalg.svdvals(found).max() < 1.25 and (norm or not found.any())
    weight = nn.Parameter(torch.ones(3, 4))
    Muon([weight], lr=1, weight_decay=0.1).step()
    assert torch.equal(weight, torch.ones(3, 4))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (16, 16)], ids=str)
def test_it_moves_matrices_as_torch_does(shape, decay):
    """Whose products are in bf16."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=draw)
    weight, twin = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([weight], lr=0.004, weight_decay=decay * MATRIX_RATE)
    theirs = torch.optim.Muon([twin], lr=0.004 * MATRIX_RATE, weight_decay=decay)
    for _ in range(20):
        weight.grad = torch.randn(shape, generator=draw)
        twin.grad = weight.grad.clone()
        ours.step()
        theirs.step()
    moved = (weight - start).abs().max()
    assert moved > 0.01
    torch.testing.assert_close(weight, twin, rtol=0, atol=0.03 * moved.item())


@pytest.mark.parametrize(
    "shapes", [[(9,), (512,)], [(9,), (7, 1, 5, 5), (6, 1)], [(9,), (6, 4, 2, 3), (5, 7)]], ids=str
)
def test_it_moves_vectors_depthwise_kernels_and_codes_as_adamw_does(shapes):
    """And decays them: matrices too where none is to be made orthogonal."""
    draw, orthogonal = torch.Generator().manual_seed(0), (5, 7) not in shapes
    starts = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    weights, twins = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    ours = Muon(weights, lr=0.01, weight_decay=0.1, orthogonal=orthogonal)
    theirs = torch.optim.AdamW(twins, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(10):
        for weight, twin in zip(weights, twins, strict=True):
            weight.grad = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
            twin.grad = weight.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(weights, twins, rtol=0, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_spatial_tap_is_a_matrix(shape, layout, decay):
    """Two steps by hand: decay, momentum, Nesterov's look-ahead, one matrix at a time, the size of a step."""
    draw, rate = torch.Generator().manual_seed(0), 0.01
    layout = layout if len(shape) == 4 else torch.contiguous_format
    weight = nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).contiguous(memory_format=layout))
    expected, momentum = weight.detach().clone(), torch.zeros_like(weight)
    optimizer = Muon([weight], lr=rate, momentum=0.8, weight_decay=decay)
    for _ in range(2):
        weight.grad = torch.randn(shape, generator=draw, dtype=torch.float64).contiguous(memory_format=layout)
        gradient = weight.grad.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient)
        momentum = 0.8 * momentum + 0.2 * gradient
        ahead = (0.8 * momentum + 0.2 * gradient).reshape(*shape[:2], -1)
        update = torch.stack([by_decomposition(tap) for tap in ahead.unbind(2)], dim=2).reshape(shape)
        expected *= 1 - rate * decay
        expected -= rate * MATRIX_RATE * math.sqrt(max(shape[:2]) / weight[0].numel()) * update
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-9)


def test_an_element_moves_by_the_scale_of_its_initialisation():
    """Root mean square near MATRIX_RATE x lr / sqrt(fan in), for every shape."""
    for shape in SHAPES[1:]:
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=1).step()
        moved = weight.square().mean().sqrt().item() * weight[0].numel() ** 0.5
        assert 0.65 < moved / MATRIX_RATE < 1.25  # as singular values


def test_its_state_comes_back_for_other_arithmetic():
    """Tensors follow the parameter; the number of steps stays fp32. Other shapes are refused."""
    weights = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3))]
    for p in weights:
        p.grad = torch.full_like(p, 0.5)
    first = Muon(weights, lr=0.01)
    first.step()
    twins = [nn.Parameter(p.detach().double()) for p in weights]
    second = Muon(twins, lr=0.01)
    second.load_state_dict(first.state_dict())
    assert second.state[twins[0]]["momentum"].dtype == torch.float64
    step = second.state[twins[1]]["step"]
    assert step.dtype == torch.float32 and step == 1
    with pytest.raises(ValueError, match="momentum does not have the shape of its parameter"):
        Muon([nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(3))], lr=0.01).load_state_dict(first.state_dict())
