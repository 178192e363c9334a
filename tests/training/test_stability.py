"""Smoothness, trend and spikes against numpy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hnerv.training.values import WINDOW, extended, slope, stability_values


def window(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_window_keeps_the_newest():
    old, new = torch.arange(WINDOW - 2).double(), 1000 + torch.arange(5).double()
    found = extended(old, new)
    assert len(found) == WINDOW and found[-5:].tolist() == new.tolist() and found[0] == 3
    assert extended(window(), window(1, 2)).tolist() == [1, 2]


def test_by_hand():
    values = stability_values(window(1, 3, 2))
    assert values["Train/Stability/smoothness"] == pytest.approx(1 / (1 + 1.5 / 2))
    assert values["Train/Stability/spike_ratio"] == pytest.approx(1.5)
    assert values["Train/Stability/trend_slope"] == pytest.approx(100 * math.log(2) / 2)


def test_slope_is_that_of_numpy():
    values = np.random.default_rng(0).standard_normal(50)
    assert slope(torch.from_numpy(values)) == pytest.approx(np.polyfit(np.arange(50), values, 1)[0])


def test_a_loss_that_falls_by_a_tenth_in_100_steps_and_a_flat_one():
    values = stability_values(torch.exp(-0.1 * torch.arange(200).double() / 100))
    assert values["Train/Stability/trend_slope"] == pytest.approx(-0.1)
    assert values["Train/Stability/smoothness"] > 0.99 and values["Train/Stability/spike_ratio"] < 1.2
    assert [*stability_values(torch.full((10,), 0.3).double()).values()] == pytest.approx([1, 1, 0])


@pytest.mark.parametrize("values", [window(), window(1, 2), window(0, 0, 0, 0)])
def test_what_is_not_defined_is_not_there(values):
    assert stability_values(values) == {}
