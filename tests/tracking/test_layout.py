"""The dashboard refers to tags that exist, and only to those it names."""

from __future__ import annotations

import json
import re

import pytest

from hnerv.tracking import RunLogger, tags
from hnerv.tracking.layout import CHARTS, layout

NAMES = [(category, title, name) for category, charts in CHARTS.items() for title in charts for name in charts[title]]
EXAMPLES = [name.replace("{n}", "3").replace("{parameter}", "a.weight") for name in tags()]


def test_categories():
    assert list(CHARTS) == [
        "Overview", "Loss breakdown", "Gradients", "Evaluation", "Statistics", "Performance", "Embedding health",
    ]  # fmt: skip


def test_charts_show_scalars_of_the_table():
    assert all(tags()[name].kind == "scalar" for _, _, name in NAMES)


def test_every_scalar_but_batches_and_counts_has_a_chart():
    shown = {name for _, _, name in NAMES}
    apart = {"Train/clip_loss_active", "Eval/Frame/train_clip_dist", "Eval/Frame/val_clip_dist"}
    for name, tag in tags().items():
        if tag.kind == "scalar" and not name.startswith(("Train_Batch/", "Eval/Info/")) and name not in apart:
            assert name in shown


def test_a_line_chart_matches_its_tags_and_no_others():
    for category, charts in layout().items():
        for title, (kind, patterns) in charts.items():
            if kind == "Multiline":
                matched = {name for name in EXAMPLES for pattern in patterns if re.match(pattern, name)}
                assert len(matched) == len(CHARTS[category][title]), title
                assert all(pattern[0] == "^" and pattern[-1] == "$" for pattern in patterns)


def test_a_margin_chart_has_value_and_bounds_as_plain_names():
    """The page compares these as they are: a pattern would find nothing."""
    margins = [tuple(names) for charts in layout().values() for kind, names in charts.values() if kind == "Margin"]
    assert ("Eval/Frame/val_psnr", "Eval/PSNR_Stats/val_min", "Eval/PSNR_Stats/val_max") in margins
    for value, lower, upper in margins:
        assert {value, lower, upper} <= set(tags()) and lower.endswith("_min") and upper.endswith("_max")


def test_the_overview_shows_training_and_unseen_psnr_in_one_chart():
    assert ("Train/PSNR", "Eval/Frame/val_psnr") in CHARTS["Overview"].values()


@pytest.fixture
def plugin(finished):
    """TensorBoard's own plugin, on a finished run."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

    found = plugin_event_multiplexer.EventMultiplexer()
    found.AddRunsFromDirectory(str(finished / "tensorboard"))
    found.Reload()
    context = TBContext(
        logdir=str(finished / "tensorboard"),
        multiplexer=found,
        data_provider=data_provider.MultiplexerDataProvider(found, ""),
    )
    scalars = ScalarsPlugin(context)
    context.plugin_name_to_instance = {"scalars": scalars}
    return CustomScalarsPlugin(context)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TensorBoard carries along
def test_tensorboard_serves_the_layout_and_the_curves_of_one_run(plugin):
    from tensorboard.context import RequestContext

    served = json.loads(plugin.layout_impl(RequestContext(), ""))
    assert [category["title"] for category in served["category"]] == list(CHARTS)
    for category in served["category"]:
        for chart in category["chart"]:
            for pattern in chart.get("multiline", {}).get("tag", ()):
                body = plugin.scalars_impl(RequestContext(), ".", pattern, "")
                of_gpus = "gpu_" in pattern or "graph_ms" in pattern
                assert bool(body["tag_to_events"]) != of_gpus, pattern


def test_the_layout_stands_in_the_run_once(finished, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = EventAccumulator(str(finished / "tensorboard"))
    loaded.Reload()
    assert len(loaded.Tensors("custom_scalars__config__")) == 1
    with RunLogger(finished / "tensorboard", None, 9, "none") as logger:
        assert not logger.fresh
    with RunLogger(tmp_path, None, 0, "none") as logger:
        assert logger.fresh
