"""The dashboard shows the tags of the table, and TensorBoard's own plugin draws them."""

from __future__ import annotations

import json
import re

import pytest

from hnerv.tracking import RunLogger, tags
from hnerv.tracking.layout import CHARTS, expand, layout

SHOWN = {name for charts in CHARTS.values() for names in charts.values() for name in names}
EXAMPLES = [name.replace("{n}", "3").replace("{parameter}", "a.weight") for name in tags()]


def test_expand():
    """As a shell does, but for a placeholder without a comma."""
    assert expand("a{x,y}_{,1} b{n}") == ("ax_", "ax_1", "ay_", "ay_1", "b{n}")


def test_every_scalar_but_batches_and_counts_has_a_chart():
    assert all(tags()[name].kind == "scalar" for name in SHOWN)
    apart = {"Train/clip_loss_active", "Eval/Frame/train_clip_dist", "Eval/Frame/val_clip_dist"}
    scalars = {name for name, tag in tags().items() if tag.kind == "scalar"}
    assert scalars - SHOWN == apart | {name for name in scalars if name.startswith(("Train_Batch/", "Eval/Info/"))}


def test_a_line_chart_matches_its_tags_and_no_others_and_a_margin_chart_has_plain_names():
    for category, charts in layout().items():
        for title, (kind, names) in charts.items():
            if kind == "Multiline":
                matched = {name for name in EXAMPLES for pattern in names if re.match(pattern, name)}
                assert len(matched) == len(CHARTS[category][title]), title
            else:
                value, lower, upper = names
                assert {*names} <= set(tags()) and lower.endswith("_min") and upper.endswith("_max")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of packages that TensorBoard brings along
def test_tensorboard_serves_the_layout_and_the_curves_of_one_run(finished):
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

    folder = str(finished / "tensorboard")
    runs = plugin_event_multiplexer.EventMultiplexer()
    runs.AddRunsFromDirectory(folder)
    runs.Reload()
    assert len(runs.Tensors(".", "custom_scalars__config__")) == 1
    provider = data_provider.MultiplexerDataProvider(runs, "")
    context = TBContext(logdir=folder, multiplexer=runs, data_provider=provider)
    context.plugin_name_to_instance = {"scalars": ScalarsPlugin(context)}
    plugin = CustomScalarsPlugin(context)
    served = json.loads(plugin.layout_impl(RequestContext(), ""))
    assert [category["title"] for category in served["category"]] == list(CHARTS)
    for category in served["category"]:
        for chart in category["chart"]:
            for pattern in chart.get("multiline", {}).get("tag", ()):
                body = plugin.scalars_impl(RequestContext(), ".", pattern, "")
                of_others = any(part in pattern for part in ("gpu_", "graph_ms", "/EMA/", "/Rate/", "_psnr_y", "_vmaf"))
                assert bool(body["tag_to_events"]) != of_others, pattern


def test_a_logger_knows_whether_the_layout_was_written(finished, tmp_path):
    for folder, fresh in ((finished / "tensorboard", False), (tmp_path, True)):
        with RunLogger(folder, None, 9, "none") as logger:
            assert logger.fresh == fresh
