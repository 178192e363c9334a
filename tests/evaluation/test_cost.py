"""Arithmetic against a count by hand; parameters, rates and speed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from hnerv.evaluation import cost_line, cost_of, open_run
from hnerv.evaluation.cost import decode_fps, gmac_per_frame
from hnerv.model.predict import FRAMES_AT_ONCE

CPU = torch.device("cpu")


def counted_by_hand(model, forward) -> int:
    """Multiply-accumulates of every convolution and linear layer, from the shapes of their outputs."""
    counts = []

    def add(layer, inputs, output):
        if isinstance(layer, nn.Conv2d):
            per_output = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
        else:
            per_output = layer.in_features
        counts.append(output.numel() * per_output)

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        forward()
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_gmac_against_a_count_by_hand(world, kind):
    """Of convolutions and linear layers; upsampling without parameters is not counted."""
    model = world(kind).model
    by_hand = counted_by_hand(model, lambda: model(torch.zeros(1)))
    stored = {"encoder": ["codes"], "pe": []}.get(kind, ["levels.0", "levels.1", "levels.2"])
    state = model.embedding.state_dict()
    by_hand += sum(state[name].numel() for name in stored if name in state)  # interpolation weighs every knot
    assert gmac_per_frame(model) == pytest.approx(by_hand / 1e9, rel=1e-9)
    assert by_hand > 1e5
    stem = counted_by_hand(model.decoder.stem, lambda: model.decoder.stem(torch.zeros(1, 4, 4, 8)))
    assert kind == "pe" or stem == (kind != "convnext") * 4 * 8 * 4 * 8  # 4x8 cells, 4 -> 8 channels


def test_costs_of_a_run(finished, monkeypatch):
    monkeypatch.setattr("hnerv.evaluation.cost.decode_fps", lambda model: 1.0)
    run = open_run(finished, CPU)
    parts = {
        name: sum(p.numel() for p in getattr(run.model, name).parameters()) for name in run.record.coded_parameters
    }
    cost = cost_of(run)
    assert cost["coded_parameters"] == parts and set(parts) == {"embedding", "decoder", "rgb_head", "clip_head"}
    assert cost["bpp_estimate_8bit"] == 8 * sum(parts.values()) / (12 * 32 * 64) and "bpp" not in cost
    in_file = cost_of(dataclasses.replace(run, coded_bytes=1000))
    assert in_file["bpp"] == 8 * 1000 / (12 * 32 * 64) and in_file["file_bytes"] == 1000
    pixels = cost_of(open_run(finished, CPU, clip_targets="none"))
    assert pixels["gmac_per_frame"] < cost["gmac_per_frame"]
    assert pixels["coded_parameters"] == parts and pixels["bpp_estimate_8bit"] == cost["bpp_estimate_8bit"]


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({}, "1,234 coded parameters (an estimated 0.0625 bpp at 8 bits per parameter), 1.500 GMAC per frame, "),
        ({"bpp": 0.5}, "1,234 coded parameters (0.5000 bpp for the full file), 1.500 GMAC per frame, "),
        (
            {"bpp": 0.5, "coded_parameters": {"decoder": 1000, "clip_head": 234}},
            "1,234 coded parameters including the CLIP head (0.5000 bpp for the full file), "
            "1.500 GMAC per frame without it, ",
        ),
    ],
)
def test_the_line(changes, start):
    summary = {"coded_parameters": {"decoder": 1000, "rgb_head": 234}, "targets_kind": "none"}
    summary |= {"bpp_estimate_8bit": 0.0625, "gmac_per_frame": 1.5, "decode_fps": 20.04}
    end = f"decodes 20.0 frames/s on cpu (batches of {FRAMES_AT_ONCE}, fp32)"
    assert cost_line(summary | changes, CPU) == start + end


def test_speed_is_measured_on_batches_as_in_an_evaluation(world):
    model, sizes = world().model, []
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    assert decode_fps(model, seconds=0.01) > 0 and set(sizes) == {FRAMES_AT_ONCE}
