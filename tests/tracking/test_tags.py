"""The table of tags has the specified names; a run writes exactly these tags, and its values keep their identities."""

from __future__ import annotations

import math
import re
from importlib import resources

import pytest

from hnerv.config import Config
from hnerv.tracking import split_label, split_name, tags
from hnerv.tracking.tags import KINDS, tag_of

SPECIFIED = """
Train/PSNR Train/learning_rate Train/Loss/pixel_loss Train/Loss/clip_loss Train/Loss/total_loss
Train/Loss/clip_loss_weighted Train/Loss/pixel_to_clip_ratio Train/clip_loss_active Train/Gradients/total_norm
Train/Gradients/rgb_head_norm Train/Gradients/clip_head_norm Train/Gradients/decoder_norm
Train/Gradients/rgb_to_clip_ratio Train_Batch/PSNR Train_Batch/pixel_loss Train_Batch/clip_loss Train_Batch/total_loss
Model/Params/rgb_head_mean Model/Params/rgb_head_std Model/Params/clip_head_mean Model/Params/clip_head_std
Eval/Frame/train_psnr Eval/Frame/train_clip_sim Eval/Frame/train_clip_dist
Eval/Frame/val_psnr Eval/Frame/val_clip_sim Eval/Frame/val_clip_dist
Eval/PSNR_Stats/train_std Eval/PSNR_Stats/train_min Eval/PSNR_Stats/train_max
Eval/PSNR_Stats/val_std Eval/PSNR_Stats/val_min Eval/PSNR_Stats/val_max
Eval/Patch/train_psnr_std Eval/Patch/train_clip_sim_std Eval/Patch/val_psnr_std Eval/Patch/val_clip_sim_std
Eval/Gap/psnr_gap Eval/Gap/clip_sim_gap
Eval/Histogram/train_psnr_distribution Eval/Histogram/train_clip_sim_distribution
Eval/Histogram/val_psnr_distribution Eval/Histogram/val_clip_sim_distribution
Eval/Info/num_train_frames Eval/Info/num_val_frames Eval/Info/num_train_patches Eval/Info/num_val_patches
"""
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


def kind_by_name(name):
    kinds = {"/Histogram/": "histogram", "/Images/": "image", "Model/Info/": "text"}
    return next((kind for part, kind in kinds.items() if part in name), "scalar")


def test_the_table():
    """Specified names first and in order; kinds follow from names; every tag of one split exists for the other."""
    assert list(tags())[:47] == SPECIFIED.split()
    lines = resources.files("hnerv.tracking").joinpath("tags.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) - 1 == len(tags()), "a name stands there twice"
    assert {name.split("/")[0] for name in tags()} == {"Train", "Train_Batch", "Model", "Eval"}
    for tag in tags().values():
        assert tag.kind == kind_by_name(tag.name) and tag.kind in KINDS
        assert tag.definition.endswith(".") and tag.when
        assert "|" not in tag.name + tag.when + tag.definition, "it would end a cell of docs/tags.md"
        assert not re.search("CLIP (similarity|embedding)", tag.definition), "the targets may come from elsewhere"
    names = [name for name in tags() if name.startswith("Eval/")]
    for one, other in (("train_", "val_"), ("val_", "train_")):
        assert {re.sub(rf"\b(num_)?{one}", rf"\g<1>{other}", name) for name in names} <= set(names)


@pytest.mark.parametrize("unseen", ["", "interpolate", "encode"])
def test_labels_of_splits(unseen):
    encoded = "-encoded" * (unseen == "encode")
    assert [split_label(split, unseen) for split in ("train", "val")] == ["train", "val" + encoded]
    assert [split_name(split, unseen) for split in ("train", "val")] == ["training", "unseen" + encoded]


@pytest.mark.parametrize(
    ("name", "kind", "row"),
    [
        ("Model/Features/stage12_mean", "scalar", "Model/Features/stage{n}_mean"),
        ("Model/Histogram/weight/a.0.b", "histogram", "Model/Histogram/weight/{parameter}"),
        ("Train/PSNR", "scalar", "Train/PSNR"),
    ],
)
def test_a_row_may_stand_for_many_tags(name, kind, row):
    assert tag_of(name, kind) == tags()[row] and re.match(tags()[row].pattern, name)
    with pytest.raises(KeyError, match="is a"):
        tag_of(name, "image")


@pytest.mark.parametrize("name", ["Train/PSNR/x", "xTrain/PSNR", "Model/Features/stagex_mean", "Train/psnr"])
def test_a_tag_outside_the_table_matches_nothing_and_raises(name):
    assert not [tag for tag in tags().values() if re.match(tag.pattern, name)]
    with pytest.raises(KeyError, match="is not in the tag table"):
        tag_of(name, "scalar")


def rows_of(names):
    return {tag_of(name, kind_by_name(name)).name for name in names}


EMA_TAGS = {name for name, row in tags().items() if "--ema-decay" in row.when}
RATE_TAGS = {name for name, row in tags().items() if "--rate-weight" in row.when}
CPU_TAGS = {n for n, row in tags().items() if "on CUDA" not in row.when and "rollback" not in row.when}
CPU_TAGS -= EMA_TAGS | RATE_TAGS | {name for name, row in tags().items() if "eval.py" in row.when}
"""Of a run on the CPU in which nothing goes wrong, without an average of the weights or a rate."""


def test_a_run_writes_every_tag_of_the_table_and_no_other(events):
    assert rows_of(events) == CPU_TAGS


def test_an_average_adds_its_tags_to_every_epoch(tmp_path, train, flags, events_of):
    assert train(tmp_path, [*flags(ema_decay=0.9), "--histogram-freq", "2"]) == 0
    events = events_of(tmp_path / "run" / "tensorboard")
    assert rows_of(events) == CPU_TAGS | EMA_TAGS
    assert {f"Train/EMA/{name}" for name in ("decay", "distance", "norm_ratio")} == EMA_TAGS
    for tag in EMA_TAGS:
        assert [step for step, _ in events[tag]] == list(range(1, EPOCHS + 1))
    last = EPOCHS * STEPS
    assert events["Train/EMA/decay"][-1][1] == pytest.approx(min(0.9, (1 + last) / (10 + last)))


def test_a_rate_adds_its_tags_to_every_epoch(tmp_path, train, flags, events_of):
    """The total is that of the parts and a constant; the weight rises from a quarter in equal steps over 3 epochs."""
    words = flags(rate_weight=0.02, rate_ramp_epochs=3, rounding_start=0.5)
    assert train(tmp_path, [*words, "--histogram-freq", "2"]) == 0
    events = events_of(tmp_path / "run" / "tensorboard")
    assert rows_of(events) == CPU_TAGS | RATE_TAGS and len(RATE_TAGS) == 7
    parts = [f"Train/Rate/{part}_bpp" for part in ("embedding", "decoder", "rgb_head", "clip_head")]
    constants = []
    for epoch in range(EPOCHS):
        found = {tag: events[tag][epoch] for tag in RATE_TAGS}
        assert {step for step, _ in found.values()} == {epoch + 1}
        at = {tag.removeprefix("Train/Rate/"): value for tag, (_, value) in found.items()}
        of_parts = sum(found[part][1] for part in parts)
        constants.append(at["bpp"] - of_parts)
        assert at["weight"] == pytest.approx(0.02 * min(1, (epoch + 1) / 4))
        assert at["loss"] == pytest.approx(at["weight"] * of_parts, rel=1e-5)
    assert min(constants) > 0 and constants == pytest.approx(constants[:1] * EPOCHS, rel=1e-4)


def test_every_tag_is_written_when_the_table_says(events):
    epochs, evaluations = list(range(1, EPOCHS + 1)), [2, 4, 5]
    for tag, points in events.items():
        if tag.startswith("Model/Histogram/gradient/clip_head"):
            assert [step for step, _ in points] == evaluations[1:], "in warm-up the CLIP head has no gradient"
            continue
        row, steps = tag_of(tag, kind_by_name(tag)), [step for step, _ in points]
        assert row.kind != "scalar" or all(math.isfinite(value) for _, value in points), tag
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
    order = " ".join(f"{line['kind']}{line['epoch']}" for line in lines)
    assert order == "train1 train2 eval2 train3 train4 eval4 train5 eval5"
    for line in lines:
        assert line["step"] == line["epoch"] * STEPS
        for tag in set(line) & set(tags()):
            assert value(tag, line["epoch"]) == pytest.approx(line[tag], rel=1e-6)
    written = {tag for line in lines for tag in line if "/" in tag}
    assert rows_of(written) == {t for t in CPU_TAGS if tags()[t].kind == "scalar" and not t.startswith("Train_Batch/")}


def test_without_unseen_frames_and_targets_their_tags_are_left_out(tmp_path, train, flags, events_of, lines_of, capsys):
    words = flags(data_split="1_1_1", clip_targets=None, clip_weights="none", epochs=3)
    assert train(tmp_path, words) == 0
    assert rows_of(events_of(tmp_path / "run" / "tensorboard")) == {
        tag
        for tag in CPU_TAGS
        if not OF_CLIP.search(tag) and not re.search("val_|Gap", tag) and "--histogram" not in tags()[tag].when
    }
    assert not any(OF_CLIP.search(key) for line in lines_of(tmp_path / "run") for key in line)
    text = capsys.readouterr().out
    assert "for training, none unseen" in text and "similarity" not in text
    assert "The split holds out no frames: there are no results for unseen frames." in text


@pytest.mark.parametrize(
    ("changes", "weights"),
    [({"clip_loss_weight": 0, "epochs": 3}, [0, 0, 0]), ({"clip_ramp_epochs": 2}, [0, 0, LAMBDA / 2, LAMBDA, LAMBDA])],
)
def test_the_weight_of_the_clip_loss(tmp_path, train, flags, events_of, changes, weights):
    assert train(tmp_path, flags(**changes)) == 0
    events = events_of(tmp_path / "run" / "tensorboard")
    assert [value for _, value in events["Train/clip_weight"]] == pytest.approx(weights)
    assert dict(events["Train/Loss/clip_loss"])[3] > 0
    assert ("Train/Gradients/rgb_to_clip_ratio" in events) == any(weights), "without a weight there is no gradient"
