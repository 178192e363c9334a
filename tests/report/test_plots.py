"""Figures: what is drawn, with words and units, within bounds."""

from __future__ import annotations

import base64
import dataclasses
import re

import pytest

from hnerv.report.plots import LINES, PANELS, distribution_plots, frame_plots, patch_plots, training_plots
from hnerv.tracking import tags


def words(plot) -> set[str]:
    """The texts of a figure; matplotlib leaves text as text."""
    svg = base64.b64decode(plot.uri.removeprefix("data:image/svg+xml;base64,")).decode()
    return set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))


def test_every_line_is_a_tag_in_a_panel():
    assert {line.tag for line in LINES} <= set(tags())
    assert {line.panel for line in LINES} == {panel.title for panel in PANELS}


def test_curves_of_one_run(results):
    by_title = {plot.title: plot for plot in training_plots([results()])}
    assert {"PSNR during training", "Loss", "Learning rate"} <= set(by_title)
    assert "Generalisation gap" not in by_title
    psnr = by_title["PSNR during training"]
    assert {"epoch", "PSNR, dB", "training, mean of patches", "unseen, mean of patches"} <= words(psnr)
    assert "unseen, full frame" not in words(psnr)
    assert "training, mean of patches, last 32;" in psnr.alt and not psnr.clip
    assert by_title["CLIP loss"].clip and by_title["Loss"].clip
    assert "healthy" in words(by_title["Gradient ratio of RGB head to CLIP head"])


def test_curves_of_several_runs_share_a_figure(results):
    runs = [results(name, settings={"epochs": 6})._replace(curves={"Train/PSNR": [(1, 1.0)]}) for name in NAMES]
    (plot,) = training_plots(runs)
    assert {"first", "…" + "a" * 23, "\u200b_b", "a$b$", "training, mean of patches"} <= words(plot)


NAMES = ("first", "a" * 40, "_b", "a$b$")


def test_a_logarithmic_axis_survives_the_zeros_of_warm_up(results):
    zeros = {"Train/Loss/clip_loss": [(1, 0.0), (2, 0.0)], "Train/PSNR": [(1, 20.0)]}
    assert {plot.title for plot in training_plots([results()._replace(curves=zeros)])} == {"PSNR during training"}


def test_frames_are_marked_by_split(results):
    plot = frame_plots(results())[0]
    assert {"frame", "PSNR, dB", "training", "unseen"} <= words(plot)
    assert plot.alt == "PSNR, dB from 20 at frame 0 to 31 at frame 11"
    assert frame_plots(results())[0].uri == plot.uri, "equal numbers give equal bytes"


@pytest.mark.parametrize("count", [900, 1500])
def test_figures_stay_small(results, rows, count):
    run = results(frames=rows(count), patches=rows(count, patches=4))
    scene = dataclasses.replace(run.record.scene, rows=2, cols=2)
    run = run._replace(record=dataclasses.replace(run.record, scene=scene))
    for plot in (frame_plots(run)[0], patch_plots(run)[2], distribution_plots(run)[1]):
        assert len(plot.uri) < 150_000


def test_patches_by_position(results):
    found = {plot.title: plot for plot in patch_plots(results())}
    assert len(found) == 6 and found["Mean similarity by patch, unseen frames"].clip
    position = found["Mean PSNR by patch, training frames"]
    # 10 training frames, 0-4 and 6-10, have a mean of 25 dB; patch p has p/10 dB more
    assert {f"{25 + p / 10:.1f}" for p in range(8)} | {"dB", "row"} <= words(position)
    assert position.alt == "dB from 25 to 25.7 over the patch grid"
    assert {"patch, row by row", "dB"} <= words(found["PSNR of every patch"])


def test_distributions_are_shares(results):
    plot = distribution_plots(results())[0]
    assert {"PSNR, dB", "share of frames, %", "training (10)", "unseen (2)"} <= words(plot)
    assert "training: mean 25" in plot.alt and "unseen: mean 28" in plot.alt


def test_nothing_measured_nothing_drawn(results):
    run = results(frames=[], patches=[])
    assert frame_plots(run) == patch_plots(run) == distribution_plots(run) == []
