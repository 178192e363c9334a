"""Figures: what is drawn, with words and units, within bounds."""

from __future__ import annotations

import base64
import dataclasses
import re

import pytest

from hnerv.report import plots
from hnerv.report.plots import PANELS, disambiguated, distribution_plots, frame_plots, patch_plots, training_plots
from hnerv.tracking import tags


def svg(plot) -> str:
    return base64.b64decode(plot.uri.removeprefix("data:image/svg+xml;base64,")).decode()


def words(plot) -> set[str]:
    """The texts of a figure; matplotlib leaves text as text."""
    return set(re.findall(r"<text[^>]*>([^<]+)</text>", svg(plot)))


def test_every_line_is_a_tag():
    known = {line.tag for panel in PANELS for line in panel.lines}
    assert known <= set(tags())


def test_curves_of_one_run(numbers):
    by_title = {plot.title: plot for plot in training_plots([numbers()])}
    assert {"PSNR during training", "Loss", "Learning rate"} <= set(by_title)
    assert "Generalisation gap" not in by_title
    psnr = by_title["PSNR during training"]
    assert {"epoch", "PSNR, dB", "training, mean of patches", "unseen, mean of patches"} <= words(psnr)
    assert "unseen, full frame" not in words(psnr)
    assert "training, mean of patches, last 32;" in psnr.alt and not psnr.clip
    assert by_title["CLIP loss"].clip and by_title["Loss"].clip


def test_curves_of_several_runs_share_a_figure(numbers):
    runs = [numbers("first"), numbers("a" * 40), numbers("third")]
    plot = plots._panel(PANELS[0], runs)
    assert {"first", "third", "…" + "a" * 23, "training, mean of patches"} <= words(plot)


def test_a_logarithmic_axis_survives_the_zeros_of_warm_up(numbers):
    zeros = {"Train/Loss/clip_loss": [(1, 0.0), (2, 0.0)], "Train/PSNR": [(1, 20.0)]}
    assert {plot.title for plot in training_plots([numbers()._replace(curves=zeros)])} == {"PSNR during training"}


def test_frames_are_marked_by_split(numbers):
    plot = frame_plots(numbers())[0]
    assert {"frame", "PSNR, dB", "training", "unseen"} <= words(plot)
    assert plot.alt == "PSNR, dB from 20 at frame 0 to 31 at frame 11"


@pytest.mark.parametrize("count", [40, 900, 5000])
def test_figures_stay_small(numbers, rows, count):
    run = numbers(frames=rows(count), patches=rows(count, patches=4))
    run = run._replace(
        record=dataclasses.replace(run.record, scene=dataclasses.replace(run.record.scene, rows=2, cols=2))
    )
    for plot in (frame_plots(run)[0], patch_plots(run)[2], distribution_plots(run)[1]):
        assert len(plot.uri) < 150_000


def test_patches_by_position(numbers):
    found = {plot.title: plot for plot in patch_plots(numbers())}
    assert len(found) == 6 and found["Mean similarity by patch, unseen frames"].clip
    position = found["Mean PSNR by patch, training frames"]
    # 10 training frames, 0-4 and 6-10, have a mean of 25 dB; patch p has p/10 dB more
    assert {f"{25 + p / 10:.1f}" for p in range(8)} | {"dB", "row"} <= words(position)
    assert position.alt == "dB from 25 to 25.7 over the patch grid"
    assert {"patch, row by row", "dB"} <= words(found["PSNR of every patch"])


def test_distributions_are_shares(numbers):
    plot = distribution_plots(numbers())[0]
    assert {"PSNR, dB", "share of frames, %", "training (10)", "unseen (2)"} <= words(plot)
    assert "training: mean 25" in plot.alt and "unseen: mean 28" in plot.alt


def test_nothing_measured_nothing_drawn(numbers):
    run = numbers(frames=[], patches=[])
    assert frame_plots(run) == patch_plots(run) == distribution_plots(run) == []


def test_equal_numbers_give_equal_bytes(numbers):
    assert frame_plots(numbers())[0].uri == frame_plots(numbers())[0].uri


def test_names():
    assert disambiguated(["a", "b", "a"], ["x/a", "x/b", "y/a"]) == ["x/a", "b", "y/a"]
