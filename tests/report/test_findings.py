"""Each rule at its bounds, with the values of docs/tensorboard.md of healthy runs and of bad ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.report.findings import LEVELS, RULES, Bounds, findings_of, has_warning
from hnerv.tracking import tags

DOCS = (Path(__file__).parents[2] / "docs" / "tensorboard.md").read_text(encoding="utf-8")


def levels(run) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings_of(run)}


def test_a_healthy_run_is_good_all_over(results):
    found = findings_of(results())
    assert {finding.level for finding in found} == {"good"} and len(found) == len(RULES)
    assert not has_warning(found)


NORM, RATIO = "Train/Gradients/total_norm", "Train/Gradients/rgb_to_clip_ratio"
GRADIENTS = "gradient ratio of RGB head to CLIP head"
PAIRED = "generalisation gap to adjacent frames, in standard errors"
SIMILARITY = "Eval/Frame/train_clip_sim"
CASES = [
    ("generalisation gap", {"Eval/Gap/psnr_gap": 3.0}, "good"),
    ("generalisation gap", {"Eval/Gap/psnr_gap": 3.1}, "watch"),
    ("generalisation gap", {"Eval/Gap/psnr_gap": 5.1}, "warning"),
    ("generalisation gap", {"Eval/Gap/psnr_gap": -0.5}, "good"),
    (PAIRED, {"Eval/Gap/psnr_gap_paired": -0.21}, "warning"),
    (PAIRED, {"Eval/Gap/psnr_gap_paired": -0.19}, "good"),
    (PAIRED, {"Eval/Gap/psnr_gap_paired": -0.21, "Eval/Gap/psnr_gap_paired_error": 0.2}, "good"),
    ("similarity of unseen frames", {"Eval/Frame/val_clip_sim": 0.86}, "good"),
    ("similarity of unseen frames", {"Eval/Frame/val_clip_sim": 0.84}, "watch"),
    ("similarity of unseen frames", {"Eval/Frame/val_clip_sim": 0.69}, "warning"),
    ("centred similarity of unseen frames", {"Eval/Frame/val_clip_sim_centred": 0.1}, "warning"),
    ("drop of the worst unseen frame below the mean", {"Eval/PSNR_Stats/val_min": 21.0}, "warning"),
    (
        "effective rank of the embeddings, relative to the targets",
        {"Eval/Embedding/val_effective_rank": 2.0},
        "warning",
    ),
    ("gradient norm", {NORM: (0.0009,) * 6}, "warning"),
    ("gradient norm", {NORM: (101.0,) * 6}, "warning"),
    ("gradient norm", {NORM: (0.0011,) * 6}, "good"),
    (GRADIENTS, {RATIO: (0.09,) * 6}, "warning"),
    (GRADIENTS, {RATIO: (50.0,) * 6, SIMILARITY: 0.5}, "watch"),
    (GRADIENTS, {RATIO: (101.0,) * 6, SIMILARITY: 0.5}, "warning"),
    (GRADIENTS, {RATIO: (101.0,) * 6, SIMILARITY: 0.9}, "note"),
    ("rise in training PSNR", {"Train/PSNR": (20, 20.1, 20.2, 20.1, 20.2, 20.2)}, "warning"),
    ("drop in training PSNR after its best epoch", {"Train/PSNR": (20, 25, 30, 32, 31, 30)}, "warning"),
    (
        "weighted CLIP loss, relative to pixel loss",
        {"Train/Loss/clip_loss_weighted": (0, 1, 1, 1, 1, 0.011)},
        "warning",
    ),
    ("CLIP loss, relative to its first value", {"Train/Loss/clip_loss": (0, 0.5, 0.5, 0.5, 0.5, 0.49)}, "warning"),
]


@pytest.mark.parametrize(("name", "numbers", "level"), CASES)
def test_a_rule(results, name, numbers, level):
    curves = {tag: value for tag, value in numbers.items() if isinstance(value, tuple)}
    run = results(values={tag: value for tag, value in numbers.items() if tag not in curves}, curves=curves)
    assert levels(run)[name] == level
    assert has_warning(findings_of(run)) == (level == "warning")


def test_few_unseen_frames_are_no_evidence_of_a_negative_gap(results):
    assert PAIRED in levels(results(values={"Eval/Info/num_val_frames": 5}))
    assert PAIRED not in levels(results(values={"Eval/Info/num_val_frames": 4}))
    assert PAIRED not in levels(results(values={"Eval/Gap/psnr_gap_paired_error": 0.0}))


def test_the_rules_are_consistent_and_each_is_tried():
    assert {name for name, _, level in CASES if level == "warning"} == {rule.name for rule in RULES}
    for rule in RULES:
        low, high, warn_below, warn_above = rule.bounds
        assert rule.tag in tags() and rule.meaning.endswith(".")
        assert warn_below <= low < high <= warn_above
        assert bool(rule.low) == math.isfinite(low) and bool(rule.high) == math.isfinite(high)
        assert rule.bounds.warning_text(rule.unit)


@given(st.floats(-100, 100), st.tuples(*[st.floats(-100, 100)] * 4))
def test_levels_follow_the_bounds(value, bounds):
    warn_below, low, high, warn_above = sorted(bounds)
    level = Bounds(low, high, warn_below, warn_above).level(value)
    assert (level == "good") == (low <= value <= high)
    assert (level == "warning") == (not warn_below <= value <= warn_above)


def test_bounds_as_text():
    assert Bounds(high=3, warn_above=5).healthy_text(" dB") == "at most 3 dB"
    assert Bounds(low=0.85).healthy_text("") == "at least 0.85"
    both = Bounds(0.1, 10, 0.001, 100)
    assert both.healthy_text("") == "0.1 to 10" and both.warning_text("") == "under 0.001 or over 100"


def test_what_was_not_measured_gives_no_finding(results):
    run = results(kind="none")._replace(
        values={"Eval/Frame/train_psnr": 30.0}, curves={"Train/PSNR": [(1, 20.0), (2, 30.0)]}
    )
    assert set(levels(run)) == {"unfinished run", "no CLIP head", "drop in training PSNR after its best epoch"}


def test_the_most_severe_comes_first(results):
    run = results(values={"Eval/Gap/psnr_gap": 6.0, "Eval/Frame/val_clip_sim": 0.8}, kind="file")
    found = findings_of(run)
    assert [finding.level for finding in found[:3]] == ["warning", "watch", "note"]
    assert found == sorted(found, key=lambda finding: LEVELS.index(finding.level))
    assert found[0].line().startswith("warning generalisation gap: 6 dB (healthy: at most 3 dB). The model memorises")


@pytest.mark.parametrize(
    ("kind", "requested", "level"),
    [("random", "auto", "warning"), ("random", "random", "note"), ("file", "auto", "note")],
)
def test_targets_that_are_not_clip_are_reported(results, kind, requested, level):
    found = findings_of(results(kind=kind, settings={"clip_weights": requested}))
    (finding,) = [f for f in found if f.level != "good"]
    assert finding.level == level and finding.value == "OpenCLIP of run"
    retrain = "train a new run with --clip-weights openai, --clip-weights FILE or --clip-targets FILE."
    assert finding.advice.endswith(retrain) == (kind == "random")


def test_the_circumstances(results, without_val):
    other = {"same_pixels_as_trained_on": False, "video": "/films/other.mp4"}
    found = levels(without_val(results(settings={"epochs": 9}, summary=other)))
    expected = {"unfinished run": "note", "no unseen frames": "note", "evaluated on different pixels": "warning"}
    assert expected.items() <= found.items()
    assert "no evaluation yet" in levels(results()._replace(values={}))
    assert levels(results(summary={"unseen": "encode"}))["held-out frames were shown to the encoder"] == "warning"


@pytest.mark.parametrize(("head", "table", "level"), [(0.9, 0.8, "good"), (0.8, 0.9, "watch"), (0.005, -1, "watch")])
def test_the_head_compared_with_its_baselines(results, baselines, head, table, level):
    run = results(**baselines(head, table))
    (finding,) = [f for f in findings_of(run) if f.name == "centred similarity compared with the baselines"]
    assert finding.level == level and bool(finding.advice) == (level == "watch")
    assert finding.value == f"{head:.3f} versus 0.010 (mean) and {table:.3f} (PCA table)"
    older = run._replace(summary=run.summary | {"epoch": 3})
    assert all(f.name != finding.name for f in findings_of(older))


def test_the_documentation_has_the_same_bounds():
    section = DOCS.split("## How to read the curves")[1].split("\n## ")[0]
    for words in ("under 3 dB", "over 5 dB", "over 0.85", "under 0.7", "0.001 to 100", "0.1 to 10"):
        assert words in section
    assert "over -2 standard errors" in section
