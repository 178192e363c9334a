"""Each rule at both of its bounds, with the values of docs/tensorboard.md of healthy runs and of bad ones."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from hnerv.report.findings import LEVELS, RULES, Range, Rule, findings_of, has_warning
from hnerv.tracking import tags

DOCS = (Path(__file__).parents[2] / "docs" / "tensorboard.md").read_text(encoding="utf-8")


def curve(*values):
    return list(enumerate(values, start=1))


def levels(run) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings_of(run)}


def test_a_healthy_run_is_good_all_over(numbers):
    found = findings_of(numbers())
    assert {f.level for f in found} == {"good"} and len(found) == len(RULES)
    assert not has_warning(found)


RATIO, NORM = "Train/Gradients/rgb_to_clip_ratio", "Train/Gradients/total_norm"
CASES = [
    ("generalisation gap", {"values": {"Eval/Gap/psnr_gap": 3.0}}, "good"),
    ("generalisation gap", {"values": {"Eval/Gap/psnr_gap": 3.1}}, "watch"),
    ("generalisation gap", {"values": {"Eval/Gap/psnr_gap": 5.1}}, "warning"),
    ("generalisation gap", {"values": {"Eval/Gap/psnr_gap": -0.5}}, "good"),
    ("similarity of unseen frames", {"values": {"Eval/Frame/val_clip_sim": 0.86}}, "good"),
    ("similarity of unseen frames", {"values": {"Eval/Frame/val_clip_sim": 0.84}}, "watch"),
    ("similarity of unseen frames", {"values": {"Eval/Frame/val_clip_sim": 0.69}}, "warning"),
    ("centred similarity of unseen frames", {"values": {"Eval/Frame/val_clip_sim_centred": 0.1}}, "warning"),
    ("drop of the worst unseen frame below the mean", {"values": {"Eval/PSNR_Stats/val_min": 21.0}}, "warning"),
    ("effective rank of the embeddings, relative to the targets",
     {"values": {"Eval/Embedding/val_effective_rank": 2.0}}, "warning"),
    ("gradient norm", {"curves": {NORM: curve(*[0.0009] * 6)}}, "warning"),
    ("gradient norm", {"curves": {NORM: curve(*[101.0] * 6)}}, "warning"),
    ("gradient norm", {"curves": {NORM: curve(*[0.0011] * 6)}}, "good"),
    ("gradient ratio of RGB head to CLIP head",
     {"curves": {RATIO: curve(*[0.09] * 6)}}, "warning"),
    ("gradient ratio of RGB head to CLIP head",
     {"curves": {RATIO: curve(*[50.0] * 6)}, "values": {"Eval/Frame/train_clip_sim": 0.5}}, "watch"),
    ("gradient ratio of RGB head to CLIP head",
     {"curves": {RATIO: curve(*[101.0] * 6)}, "values": {"Eval/Frame/train_clip_sim": 0.5}}, "warning"),
    ("gradient ratio of RGB head to CLIP head",
     {"curves": {RATIO: curve(*[101.0] * 6)}, "values": {"Eval/Frame/train_clip_sim": 0.9}}, "note"),
    ("rise in training PSNR", {"curves": {"Train/PSNR": curve(20, 20.1, 20.2, 20.1, 20.2, 20.2)}}, "warning"),
    ("drop in training PSNR after its best epoch",
     {"curves": {"Train/PSNR": curve(20, 25, 30, 32, 31, 30)}}, "warning"),
    ("weighted CLIP loss, relative to pixel loss",
     {"curves": {"Train/Loss/clip_loss_weighted": curve(0, 1, 1, 1, 1, 0.011)}}, "warning"),
    ("CLIP loss, relative to its first value", {"curves": {"Train/Loss/clip_loss": curve(0, 0.5, 0.5, 0.5, 0.5, 0.49)}},
     "warning"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "level"), CASES)
def test_a_rule(numbers, name, changes, level):
    run = numbers(**changes)
    assert levels(run)[name] == level
    assert has_warning(findings_of(run)) == (level == "warning")


def test_every_rule_is_tried_out_of_its_range():
    assert {name for name, _, level in CASES if level == "warning"} == {rule.name for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_table_hangs_together(rule: Rule):
    assert rule.tag in tags()
    assert rule.tolerated.low <= rule.healthy.low < rule.healthy.high <= rule.tolerated.high
    assert bool(rule.low) == math.isfinite(rule.healthy.low) and bool(rule.high) == math.isfinite(rule.healthy.high)
    assert rule.warning_words() and rule.means.endswith(".")


def test_what_was_not_measured_gives_no_finding(numbers):
    run = numbers(kind="none")._replace(values={"Eval/Frame/train_psnr": 30.0}, curves={"Train/PSNR": curve(20, 30)})
    assert set(levels(run)) == {"unfinished run", "no CLIP head", "drop in training PSNR after its best epoch"}


def test_the_gravest_comes_first(numbers):
    run = numbers(values={"Eval/Gap/psnr_gap": 6.0, "Eval/Frame/val_clip_sim": 0.8}, kind="file")
    found = [LEVELS.index(finding.level) for finding in findings_of(run)]
    assert found == sorted(found) and found[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "asked", "level"), [("random", "auto", "warning"), ("random", "random", "note"), ("file", "auto", "note")]
)
def test_targets_that_are_not_clip_are_said(numbers, kind, asked, level):
    found = findings_of(numbers(kind=kind, settings={"clip_weights": asked}))
    (finding,) = [f for f in found if f.level != "good"]
    assert finding.level == level and finding.value == "OpenCLIP of run"
    retrain = "train a new run with --clip-weights openai, --clip-weights FILE or --clip-targets FILE."
    assert finding.advice.endswith(retrain) == (kind == "random")


def test_the_circumstances(numbers):
    run = numbers(settings={"epochs": 9}, summary={"same_pixels_as_trained_on": False, "video": "/films/other.mp4"})
    run = run._replace(record=dataclasses.replace(run.record, scene=dataclasses.replace(run.record.scene, val=())))
    assert levels(run) | {
        "unfinished run": "note",
        "no unseen frames": "note",
        "evaluated on different pixels": "warning",
    } == levels(run)
    assert "no evaluation yet" in levels(numbers()._replace(values={}))


@pytest.mark.parametrize(("head", "table", "level"), [(0.9, 0.8, "good"), (0.8, 0.9, "watch"), (0.005, -1, "watch")])
def test_the_head_beside_its_baselines(numbers, beside, head, table, level):
    run = numbers(**beside(head, table))
    (finding,) = [f for f in findings_of(run) if f.name == "centred similarity compared with the baselines"]
    assert finding.level == level and bool(finding.advice) == (level == "watch")
    assert finding.value == f"{head:.3f} versus 0.010 (mean) and {table:.3f} (PCA table)"
    older = run._replace(summary=run.summary | {"epoch": 3})
    assert all(f.name != finding.name for f in findings_of(older))


def test_words():
    assert Range(high=3).words(" dB") == "at most 3 dB" and Range(low=0.85).words("") == "at least 0.85"
    assert Range(0.1, 10).words("") == "0.1 to 10"
    norm = next(rule for rule in RULES if rule.name == "gradient norm")
    assert norm.warning_words() == "under 0.001 or over 100"


def test_a_line_names_value_range_and_mend(numbers):
    (finding,) = [f for f in findings_of(numbers(values={"Eval/Gap/psnr_gap": 6.0})) if f.level == "warning"]
    assert finding.line().startswith("warning generalisation gap: 6 dB (healthy: at most 3 dB). The model memorises")


def test_the_documentation_has_the_same_bounds():
    section = DOCS.split("## How to read the curves")[1].split("\n## ")[0]
    for words in ("under 3 dB", "over 5 dB", "over 0.85", "under 0.7", "0.001 to 100", "0.1 to 10"):
        assert words in section
