"""The table of tags holds what it was specified to hold, and a run writes it, whole, and keeps its identities."""

from __future__ import annotations

import math
import re
from importlib import resources

import pytest

from hnerv.config import Config
from hnerv.tracking import NullLogger, RunLogger, split_label, split_name, tags
from hnerv.tracking.tags import KINDS, tag_of

SPECIFIED = (
    "Train/PSNR",
    "Train/learning_rate",
    "Train/Loss/pixel_loss",
    "Train/Loss/clip_loss",
    "Train/Loss/total_loss",
    "Train/Loss/clip_loss_weighted",
    "Train/Loss/pixel_to_clip_ratio",
    "Train/clip_loss_active",
    "Train/Gradients/total_norm",
    "Train/Gradients/rgb_head_norm",
    "Train/Gradients/clip_head_norm",
    "Train/Gradients/decoder_norm",
    "Train/Gradients/rgb_to_clip_ratio",
    "Train_Batch/PSNR",
    "Train_Batch/pixel_loss",
    "Train_Batch/clip_loss",
    "Train_Batch/total_loss",
    "Model/Params/rgb_head_mean",
    "Model/Params/rgb_head_std",
    "Model/Params/clip_head_mean",
    "Model/Params/clip_head_std",
    "Eval/Frame/train_psnr",
    "Eval/Frame/train_clip_sim",
    "Eval/Frame/train_clip_dist",
    "Eval/Frame/val_psnr",
    "Eval/Frame/val_clip_sim",
    "Eval/Frame/val_clip_dist",
    "Eval/PSNR_Stats/train_std",
    "Eval/PSNR_Stats/train_min",
    "Eval/PSNR_Stats/train_max",
    "Eval/PSNR_Stats/val_std",
    "Eval/PSNR_Stats/val_min",
    "Eval/PSNR_Stats/val_max",
    "Eval/Patch/train_psnr_std",
    "Eval/Patch/train_clip_sim_std",
    "Eval/Patch/val_psnr_std",
    "Eval/Patch/val_clip_sim_std",
    "Eval/Gap/psnr_gap",
    "Eval/Gap/clip_sim_gap",
    "Eval/Histogram/train_psnr_distribution",
    "Eval/Histogram/train_clip_sim_distribution",
    "Eval/Histogram/val_psnr_distribution",
    "Eval/Histogram/val_clip_sim_distribution",
    "Eval/Info/num_train_frames",
    "Eval/Info/num_val_frames",
    "Eval/Info/num_train_patches",
    "Eval/Info/num_val_patches",
)
EPOCHS, WARMUP, STEPS = 5, 2, 3
OF_CLIP = re.compile(r"clip(_|$)|/Embedding/")
LAMBDA = Config().loss.clip_loss_weight


@pytest.fixture(scope="module")
def events(finished, events_of):
    return events_of(finished / "tensorboard")


@pytest.fixture(scope="module")
def value(events):
    """value(tag, step) -> the value written there."""
    return lambda tag, step: dict(events[tag])[step]


def test_the_47_specified_names_head_the_table_in_their_order():
    assert len(SPECIFIED) == len(set(SPECIFIED)) == 47
    assert tuple(tags())[:47] == SPECIFIED


def kind_by_name(name):
    kinds = {"/Histogram/": "histogram", "/Images/": "image", "Model/Info/": "text"}
    return next((kind for part, kind in kinds.items() if part in name), "scalar")


def test_kinds_are_as_named_and_definitions_are_sentences():
    for tag in tags().values():
        assert tag.kind == kind_by_name(tag.name) and tag.kind in KINDS
        assert tag.definition.endswith(".") and tag.when
        assert "|" not in tag.name + tag.when + tag.definition, "it would end a cell of docs/tags.md"


def test_names_stand_under_the_four_roots_and_once():
    assert {name.split("/")[0] for name in tags()} == {"Train", "Train_Batch", "Model", "Eval"}
    lines = resources.files("hnerv.tracking").joinpath("tags.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) - 1 == len(tags())


def test_what_is_measured_of_one_split_is_measured_of_the_other():
    names = [name for name in tags() if name.startswith("Eval/")]
    for one, other in (("train_", "val_"), ("val_", "train_")):
        assert {name.replace(one, other) for name in names if one in name} <= set(names)


@pytest.mark.parametrize("unseen", ["", "interpolate", "encode"])
def test_labels_of_splits(unseen):
    assert split_label("train", unseen) == "train"
    assert split_label("val", unseen) == ("val-encoded" if unseen == "encode" else "val")
    assert split_name("train", unseen) == "training"
    assert split_name("val", unseen) == ("unseen-encoded" if unseen == "encode" else "unseen")


@pytest.mark.parametrize(
    ("name", "kind", "row"),
    [
        ("Model/Features/stage12_mean", "scalar", "Model/Features/stage{n}_mean"),
        ("Model/Histogram/weight/a.0.b", "histogram", "Model/Histogram/weight/{parameter}"),
        ("Train/PSNR", "scalar", "Train/PSNR"),
    ],
)
def test_a_row_may_stand_for_many_tags(name, kind, row):
    assert tag_of(name, kind) == tags()[row]
    assert re.match(tags()[row].pattern, name)


@pytest.mark.parametrize("name", ["Train/PSNR/x", "xTrain/PSNR", "Model/Features/stagex_mean", "Train/PSNRs"])
def test_patterns_match_nothing_else(name):
    assert not [tag for tag in tags().values() if re.match(tag.pattern, name)]


@pytest.mark.parametrize(
    ("name", "kind"), [("Train/psnr", "scalar"), ("Train/PSNR", "histogram"), ("Model/Features/stage_mean", "scalar")]
)
def test_a_tag_outside_the_table_or_of_another_kind_raises(name, kind):
    with pytest.raises(KeyError):
        tag_of(name, kind)


def test_the_logger_refuses_an_unknown_tag(tmp_path):
    with RunLogger(tmp_path, None, 0) as logger:
        with pytest.raises(KeyError):
            logger.scalars({"Train/accuracy": 1.0}, 1)
        with pytest.raises(KeyError):
            logger.curve("Train/accuracy", [1], [1.0], [0.0])


def test_the_null_logger_writes_nothing():
    with NullLogger() as logger:
        logger.scalars({"anything": 1.0}, 1)
        assert logger.position() == {}


def rows_of(names):
    return {tag_of(name, kind_by_name(name)).name for name in names}


CPU_TAGS = {name for name, row in tags().items() if "on CUDA" not in row.when and "rollback" not in row.when}
"""Of a run on the CPU in which nothing goes wrong."""


def test_a_run_writes_every_tag_of_the_table_and_no_other(events):
    assert rows_of(events) == CPU_TAGS


def test_cadence(events):
    epochs, evaluations = list(range(1, EPOCHS + 1)), [2, 4, 5]
    for tag, points in events.items():
        if tag.startswith("Model/Histogram/gradient/clip_head"):
            assert [step for step, _ in points] == evaluations[1:], "in warm-up the CLIP head has no gradient"
            continue
        row, steps = tag_of(tag, kind_by_name(tag)), [step for step, _ in points]
        expected = {
            "every epoch": epochs,
            "every epoch on Linux": epochs,
            "every epoch with eager steps": epochs,
            "every --histogram-freq epochs": evaluations,  # --histogram-freq 2, and the last
            "every --images-freq evaluations": evaluations,
            "every epoch after warm-up": epochs[WARMUP:],
            "every batch (global step)": list(range(1, EPOCHS * STEPS + 1)),
            "every 10 epochs": evaluations,  # --params-freq 2, and the last
            "every evaluation": evaluations,
            "start of a run": [0],
        }[row.when]
        assert steps == expected, tag


def test_every_value_is_finite(events):
    for tag, points in events.items():
        if kind_by_name(tag) == "scalar":
            assert all(math.isfinite(v) for _, v in points), tag


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_identities_of_the_objective(value, epoch):
    at = lambda tag: value(f"Train/{tag}", epoch)  # noqa: E731
    active = epoch > WARMUP
    assert at("clip_loss_active") == active
    assert at("clip_weight") == pytest.approx(LAMBDA if active else 0)
    assert at("Loss/clip_loss_weighted") == pytest.approx(at("clip_weight") * at("Loss/clip_loss"), rel=1e-5)
    assert at("Loss/total_loss") == pytest.approx(at("Loss/pixel_loss") + at("Loss/clip_loss_weighted"), rel=1e-5)
    for tag in ("Loss/clip_loss", "Loss/clip_loss_weighted", "Gradients/clip_head_norm"):
        assert (at(tag) > 0) == active and (active or at(tag) == 0.0)
    if active:
        assert at("Loss/pixel_to_clip_ratio") == pytest.approx(at("Loss/pixel_loss") / at("Loss/clip_loss"), rel=1e-5)
        ratio = at("Gradients/rgb_head_norm") / at("Gradients/clip_head_norm")
        assert at("Gradients/rgb_to_clip_ratio") == pytest.approx(ratio, rel=1e-5)
    for part in ("rgb_head", "clip_head", "decoder", "embedding"):
        assert at("Gradients/total_norm") >= at(f"Gradients/{part}_norm") * (1 - 1e-6)


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_epoch_values_are_the_means_of_the_batches_weighted_by_their_frames(value, epoch):
    steps = range((epoch - 1) * STEPS + 1, epoch * STEPS + 1)
    for tag, batch_tag in (("PSNR", "PSNR"), *((f"Loss/{n}", n) for n in ("pixel_loss", "clip_loss", "total_loss"))):
        mean = sum(f * value(f"Train_Batch/{batch_tag}", s) for f, s in zip((3, 3, 2), steps, strict=True)) / 8
        assert value(f"Train/{tag}", epoch) == pytest.approx(mean, rel=1e-5)
    for step in steps:
        terms = [value(f"Train_Batch/{name}", step) for name in ("total_loss", "pixel_loss", "clip_loss")]
        assert terms[0] == pytest.approx(terms[1] + value("Train/clip_weight", epoch) * terms[2], rel=1e-5)
        assert epoch > WARMUP or terms[2] == 0.0


@pytest.mark.parametrize("epoch", [2, 4, 5])
def test_identities_of_an_evaluation(value, epoch):
    at = lambda tag: value(f"Eval/{tag}", epoch)  # noqa: E731
    for split, frames in (("train", 8), ("val", 2)):
        assert at(f"Info/num_{split}_frames") == frames
        assert at(f"Info/num_{split}_patches") == 8 * frames
        assert at(f"Frame/{split}_clip_dist") == pytest.approx(1 - at(f"Frame/{split}_clip_sim"), abs=1e-6)
        low, mean, high = at(f"PSNR_Stats/{split}_min"), at(f"Frame/{split}_psnr"), at(f"PSNR_Stats/{split}_max")
        assert low <= mean <= high
        assert 0 <= at(f"PSNR_Stats/{split}_std") <= at(f"Patch/{split}_psnr_std") + 1e-6
        for name, tag in (("psnr", "psnr"), ("clip_sim", "clip_sim")):
            histogram = at(f"Histogram/{split}_{name}_distribution")
            assert histogram[2] == frames
            assert histogram[3] / frames == pytest.approx(at(f"Frame/{split}_{tag}"), rel=1e-4, abs=1e-6)
    for name in ("psnr", "clip_sim"):
        gap = at(f"Frame/train_{name}") - at(f"Frame/val_{name}")
        assert at(f"Gap/{name}_gap") == pytest.approx(gap, abs=1e-5)


def test_metrics_jsonl_holds_the_values_of_the_events(finished, lines_of, value):
    lines = lines_of(finished)
    assert [(line["kind"], line["epoch"]) for line in lines] == [
        ("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4), ("train", 5), ("eval", 5)
    ]  # fmt: skip
    for line in lines:
        assert line["step"] == line["epoch"] * STEPS
        for tag in set(line) & set(tags()):
            assert value(tag, line["epoch"]) == pytest.approx(line[tag], rel=1e-6)
    written = {tag for line in lines for tag in line if "/" in tag}
    assert rows_of(written) == {t for t in CPU_TAGS if tags()[t].kind == "scalar" and not t.startswith("Train_Batch/")}


def test_without_validation_frames_no_tag_of_them(tmp_path, train, flags, events_of, capsys):
    assert train(tmp_path, flags(data_split="1_1_1", epochs=3)) == 0
    found = set(events_of(tmp_path / "run" / "tensorboard"))
    assert rows_of(found) == {
        tag for tag in CPU_TAGS if "val_" not in tag and "Gap" not in tag and "--histogram" not in tags()[tag].when
    }
    text = capsys.readouterr().out
    assert "for training, none unseen" in text
    assert "The split holds out no frames: there are no results for unseen frames." in text


def test_without_targets_no_tag_of_clip(tmp_path, train, flags, events_of, lines_of, capsys):
    assert train(tmp_path, flags(clip_targets=None, clip_weights="none", epochs=3)) == 0
    found = set(events_of(tmp_path / "run" / "tensorboard"))
    assert rows_of(found) == {
        tag for tag in CPU_TAGS if not OF_CLIP.search(tag) and "--histogram" not in tags()[tag].when
    }
    assert not any(OF_CLIP.search(key) for line in lines_of(tmp_path / "run") for key in line)
    assert "similarity" not in capsys.readouterr().out


def test_clip_weight_0_leaves_the_gradient_ratio_out(tmp_path, train, flags, events_of):
    assert train(tmp_path, flags(clip_loss_weight=0, epochs=3)) == 0
    events = events_of(tmp_path / "run" / "tensorboard")
    assert "Train/Gradients/rgb_to_clip_ratio" not in events
    assert dict(events["Train/Loss/clip_loss"])[3] > 0


def test_the_ramp_shows_in_clip_weight(tmp_path, train, flags, events_of):
    assert train(tmp_path, flags(clip_ramp_epochs=2)) == 0
    weights = [v for _, v in events_of(tmp_path / "run" / "tensorboard")["Train/clip_weight"]]
    assert weights == pytest.approx([0, 0, LAMBDA / 2, LAMBDA, LAMBDA])


def test_a_similarity_is_to_the_targets_whatever_they_are():
    """The names hold 'clip', what they mean is not CLIP's where the targets are not."""
    said = [tag[-1] for tag in tags().values()]
    assert not [text for text in said if "CLIP similarity" in text or "CLIP embedding" in text]
    assert sum("similarity" in text for text in said) > 10
