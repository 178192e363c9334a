"""Arithmetic against a count by hand; speed and parameters are of the decode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hnerv.evaluation.cost import Cost, cost_of, decode_fps, gmac_per_frame
from hnerv.model.predict import FRAMES_AT_ONCE


def counted_by_hand(model, forward) -> int:
    """Multiply-accumulates of every convolution and linear layer, from the shapes that pass through them."""
    total = 0

    def add(layer, inputs, output):
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
            total += output.numel() * kernel
        else:
            total += output.numel() * layer.in_features

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_gmac_against_a_count_by_hand(world, embedding):
    model = world(embedding).model
    by_hand = counted_by_hand(model, lambda: model(torch.zeros(1)))
    stored = {"grid": ["levels.0", "levels.1", "levels.2"], "encoder": ["codes"], "pe": []}[embedding]
    state = model.embedding.state_dict()
    by_hand += sum(state[name].numel() for name in stored if name in state)  # a share of each knot
    assert gmac_per_frame(model) == pytest.approx(by_hand / 1e9, rel=1e-9)
    assert by_hand > 1e5


def test_gmac_of_the_stem_alone(world):
    """One convolution, counted on paper: 4x8 cells, 4 -> 8 channels."""
    model = world(targets=False).model
    (kernel, _) = model.decoder.stem.kernel_size
    stem = counted_by_hand(model.decoder.stem, lambda: model.decoder.stem(torch.zeros(1, 4, 4, 8)))
    assert stem == 4 * 8 * 4 * 8 * kernel**2


def test_cost(world):
    model = world().model
    assert decode_fps(model, seconds=0.01) > 0
    cost = Cost({"decoder": 1000, "rgb_head": 234}, None, 0.0625, 1.5, 20.04)
    assert cost.line(torch.device("cpu")) == (
        "1,234 coded parameters (an estimated 0.0625 bpp at 8 bits per parameter), 1.500 GMAC per frame, "
        f"decodes 20.0 frames/s on cpu (batches of {FRAMES_AT_ONCE}, fp32)"
    )
    assert (
        cost._replace(bpp=0.5)
        .line(torch.device("cpu"))
        .startswith("1,234 coded parameters (0.5000 bpp for the full file)")
    )


def test_speed_is_of_as_many_frames_at_once_as_are_measured(world):
    model, sizes = world().model, []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    decode_fps(model, seconds=0.0)
    assert sizes == [FRAMES_AT_ONCE]


def test_parameters_are_those_coded(world, monkeypatch):
    monkeypatch.setattr("hnerv.evaluation.cost.decode_fps", lambda model: 1.0)
    here = world("encoder")
    parts = cost_of(here.model).parameters
    assert parts["embedding"] == here.model.embedding.codes.numel() == 6 * 4 * 4 * 8
    assert parts["decoder"] == sum(p.numel() for p in here.model.decoder.parameters())
