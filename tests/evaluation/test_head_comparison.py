"""Rows are measured as in an evaluation, with the arithmetic and bytes that the head and its baselines take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hnerv.codec import open_coded_run
from hnerv.data.clip import load_teacher
from hnerv.errors import UserError
from hnerv.evaluation import compare_head, evaluate, head_table, open_run
from hnerv.evaluation.head_comparison import (
    ENCODER,
    HEAD,
    MEAN,
    NAMES,
    NEIGHBOURS,
    PCA,
    compare_embeddings,
    default_queries,
    gmac_of_encoder,
    gmac_of_head,
    read_queries,
)
from hnerv.runs.models import without_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(finished):
    return open_run(finished, CPU)


def test_the_head_is_measured_as_in_an_evaluation(run):
    report, found = evaluate(run.model, run.store), compare_head(replace(run, head_bytes=5000))
    rows = {row.name: row for row in found.rows}
    assert {name: list(row.splits) for name, row in rows.items()} == {
        HEAD: ["train", "val"],
        MEAN: ["train", "val"],
        NEIGHBOURS: ["val"],
        PCA: ["train", "val"],
    }
    assert found.rows[0].name == HEAD and rows[HEAD].bytes == 5000 and found.head_bytes_are == "measured"
    for name, split in report.splits():
        expected = {name: getattr(split.clip, field).double().mean().item() for field, name in NAMES.items()}
        assert rows[HEAD].splits[name] == pytest.approx(expected, abs=1e-12)
    assert rows[PCA].bytes <= 5000 and rows[NEIGHBOURS].bytes is None
    assert abs(rows[MEAN].splits["train"]["centred"]) < 0.05 < rows[PCA].splits["train"]["centred"]
    assert "estimate" not in head_table(found)


def test_bytes_of_a_checkpoint_are_called_an_estimate(run):
    found = compare_head(run)
    size, text = found.rows[0].bytes, head_table(found)
    assert (
        size == -(-6 * sum(p.numel() for p in run.model.clip_head.parameters()) // 8)
        and found.head_bytes_are == "estimated"
    )
    assert "estimated at 6 bits per parameter" in text and f"~{size:,}" in text


def test_a_head_too_small_for_any_table(run):
    found = compare_head(replace(run, head_bytes=10))
    assert PCA not in [row.name for row in found.rows]
    assert "no component fits into 10 bytes" in head_table(found)


def test_without_a_head_it_refuses(finished):
    run = open_run(finished, CPU)
    without_clip(run.model)
    with pytest.raises(UserError, match="has no CLIP head: train with CLIP targets"):
        compare_head(run)


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_a_file_is_compared_too(coded, film, targets_file, kind):
    run = open_coded_run(coded(kind), CPU, str(film), clip_targets=str(targets_file))
    rows = compare_head(replace(run, head_bytes=3000)).rows
    assert rows[0].gmac_per_patch > 0 and set(rows[0].splits) == {"train", "val"}


def test_arithmetic_of_the_head_by_hand(run):
    """One multiply-accumulate per weight and position, up to the site of the head."""
    model, scene = run.model, run.model.scene
    height, width = next(iter(model.embedding.levels)).shape[-2:]
    macs, positions = model.decoder.stem.weight.numel() * height * width, height * width
    for stage in model.decoder.stages[: model.decoder.site]:
        macs += stage.conv.weight.numel() * positions
        positions *= stage.reach.stride**2
    macs += sum(level.numel() for level in model.embedding.levels)  # interpolation weighs every knot
    head = sum(p.numel() for p in model.clip_head.parameters() if p.dim() > 1)
    assert gmac_of_head(model) == pytest.approx((macs / (scene.rows * scene.cols) + head) / 1e9)


def test_the_arithmetic_of_a_real_encoder_is_counted(run):
    teacher = load_teacher("random", "ViT-B-32", CPU)
    hidden = sum(p.numel() for p in teacher.net.visual.transformer.parameters() if p.dim() == 2)
    assert gmac_of_encoder(run.model, teacher) > 49 * hidden / 1e9  # each weight serves at least the 49 patch tokens


class ColourEncoder:
    """Embeds a patch as its mean colours, and keeps the patches."""

    def __init__(self, dim: int) -> None:
        self.dim, self.patches = dim, []

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        self.patches.append(patches)
        rows = torch.zeros(len(patches), self.dim)
        rows[:, :3] = patches.float().mean((2, 3)) + 1
        return torch.nn.functional.normalize(rows, dim=-1)


def test_the_encoder_sees_the_decoded_patches(run):
    encoder = ColourEncoder(run.model.scene.clip_dim)
    found = compare_embeddings(replace(run, head_bytes=5000), encoder)
    row = next(row for row in found.rows if row.name == ENCODER)
    with torch.no_grad():
        rgb = run.model(torch.arange(12.0)).rgb
    patches = run.model.scene.grid.split((rgb.clamp(0, 1) * 255).round().to(torch.uint8)).flatten(0, 1)
    seen = torch.cat(encoder.patches[:-1])  # the last call counts arithmetic
    assert seen.shape == patches.shape and (seen.int() - patches.int()).abs().max() <= 1
    assert row.bytes is None and row.gmac_per_patch > gmac_of_head(run.model)


def test_queries(tmp_path):
    shipped, path = default_queries(), tmp_path / "mine.txt"
    assert len(shipped) == len(set(shipped)) == 40
    assert all(text == text.strip() and 1 <= len(text.split()) <= 8 for text in shipped)
    path.write_text("a dog\n\n  a café \r\na cat", encoding="utf-8")
    assert read_queries(path) == ["a dog", "a café", "a cat"]


@pytest.mark.parametrize(
    ("data", "match"), [(None, "no such file"), (b"\xff\xfe\xfa", "cannot be read"), (b" \n\n", "contains no queries")]
)
def test_invalid_queries_are_refused(tmp_path, data, match):
    path = tmp_path / "mine.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=match):
        read_queries(path)
