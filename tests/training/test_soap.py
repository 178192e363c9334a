"""SOAP against another implementation of it, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from pytorch_optimizer import SOAP
from torch import nn

from hnerv.training.soap import EVERY, Soap

SHAPES = [(5, 7, 1, 1), (12, 5, 3, 3), (40, 12, 3, 3), (7, 1, 5, 5), (6, 7, 2, 3), (9, 7, 3), (9, 14), (8,)]
"""Of convolutions, one of them depthwise, a linear layer, a bias."""


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("longest", [1, 20, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_moves_weights_as_the_library_does(shape, longest, decay):
    """Past two new bases, whose QR the library does in fp32; gradients of full rank, which leave no basis open."""
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=draw).double()
    weight, twin = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    common = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": decay, "max_precondition_dim": longest}
    optimizers = Soap([weight], **common), SOAP([twin], **common)
    for _ in range(2 * EVERY + 5):
        weight.grad = torch.randn(shape, generator=draw).double()
        twin.grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (weight - start).abs().max() > 0.02
    torch.testing.assert_close(weight, twin, rtol=0, atol=1e-6)


def test_the_first_step_only_begins():
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.ones(3, 4)
    Soap([weight], lr=1).step()
    assert torch.equal(weight, torch.ones(3, 4))


def test_a_gradient_that_is_not_finite_raises():
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.full((3, 4), torch.nan)
    with pytest.raises(torch.linalg.LinAlgError):
        Soap([weight]).step()


def test_the_state_of_the_library_is_refused():
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.ones(3, 4)
    theirs = SOAP([weight])
    theirs.step()
    with pytest.raises(ValueError, match="earlier version"):
        Soap([weight]).load_state_dict(theirs.state_dict())
