"""The table holds what an evaluation measures, and the arithmetic and bytes that the rivals really take."""

from __future__ import annotations

import pytest
import torch

from hnerv.codec import open_coded_run
from hnerv.data.clip import load_teacher
from hnerv.errors import UserError
from hnerv.evaluation import evaluate, open_run
from hnerv.evaluation.measure import ClipMeasures
from hnerv.evaluation.semantics import compare, text_of
from hnerv.evaluation.semantics.comparing import ENCODER, HEAD, MEAN, NEIGHBOURS, PCA, gmac_of_head
from hnerv.runs.opening import without_clip

CPU = torch.device("cpu")


@pytest.fixture
def run(finished):
    return open_run(finished, CPU)


def test_the_head_is_measured_as_in_an_evaluation(run):
    report, found = evaluate(run.model, run.store), compare(run, 5000)
    head = found.rows[0]
    assert head.name == HEAD and head.size == 5000 and found.measured_bytes
    for name, split in report.splits():
        for field in ClipMeasures._fields:
            expected = getattr(split.clip, field).double().mean().item()
            assert head.splits[name][field] == pytest.approx(expected, abs=1e-12), field


def test_every_rival_stands_where_it_can_be_measured(run):
    rows = {row.name: row for row in compare(run, 5000).rows}
    assert list(rows) == [HEAD, MEAN, NEIGHBOURS, PCA]
    assert {name: list(row.splits) for name, row in rows.items()} == {
        HEAD: ["train", "val"], MEAN: ["train", "val"], NEIGHBOURS: ["val"], PCA: ["train", "val"]
    }  # fmt: skip
    assert rows[PCA].size <= 5000 and rows[NEIGHBOURS].size is None
    assert abs(rows[MEAN].splits["train"]["centred"]) < 0.05 < rows[PCA].splits["train"]["centred"]


def test_bytes_of_a_checkpoint_are_called_an_estimate(run):
    found = compare(run)
    numbers = sum(p.numel() for p in run.model.clip_head.parameters())
    assert found.rows[0].size == -(-6 * numbers // 8) and not found.measured_bytes
    assert "estimated at 6 bits per parameter" in text_of(found) and f"~{found.rows[0].size:,}" in text_of(found)
    assert "estimate" not in text_of(compare(run, 5000))


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_a_file_is_compared_too(coded, film, targets_file, embedding):
    run = open_coded_run(coded(embedding), CPU, str(film), clip_targets=str(targets_file))
    rows = compare(run, 3000).rows
    assert rows[0].gmac > 0 and set(rows[0].splits) == {"train", "val"}


def test_arithmetic_of_the_head_by_hand(run):
    """A multiply-accumulate per weight and place, up to the site alone."""
    model, scene = run.model, run.model.scene
    height, width = next(iter(model.embedding.levels)).shape[-2:]
    macs, places = model.decoder.stem.weight.numel() * height * width, height * width
    for stage in model.decoder.stages[: model.decoder.site]:
        macs += stage.conv.weight.numel() * places
        places *= stage.reach.stride**2
    macs += sum(level.numel() for level in model.embedding.levels)  # a share of each knot
    patches = scene.rows * scene.cols
    head = sum(p.numel() for p in model.clip_head.parameters() if p.dim() > 1)
    assert gmac_of_head(model) == pytest.approx((macs / patches + head) / 1e9)


class _Echo:
    """An encoder whose embeddings of a patch are its mean colours, far from all else."""

    def __init__(self, dim: int) -> None:
        self.dim, self.seen = dim, []

    def encode_patches(self, patches: torch.Tensor) -> torch.Tensor:
        self.seen.append(patches)
        rows = torch.zeros(len(patches), self.dim)
        rows[:, :3] = patches.float().mean((2, 3)) + 1
        return torch.nn.functional.normalize(rows, dim=-1)


def test_the_encoder_sees_the_decoded_patches(run):
    echo = _Echo(run.model.scene.clip_dim)
    found = compare(run, 5000, echo)
    row = next(row for row in found.rows if row.name == ENCODER)
    with torch.no_grad():
        rgb = run.model(torch.arange(12.0)).rgb
    patches = run.model.scene.grid.split((rgb.clamp(0, 1) * 255).round().to(torch.uint8)).flatten(0, 1)
    seen = torch.cat(echo.seen[:-1])  # the last is the one whose arithmetic is counted
    assert seen.shape == patches.shape and (seen.int() - patches.int()).abs().max() <= 1
    assert row.gmac > gmac_of_head(run.model)
    lines = [line for line in text_of(found).splitlines() if line.startswith(f"{ENCODER} ")]
    assert len(lines) == 2 and all(line.removeprefix(ENCODER).split()[0] == "-" for line in lines)


def test_the_arithmetic_of_a_real_encoder_is_counted(run):
    teacher = load_teacher("random", "ViT-B-32", CPU)
    from hnerv.evaluation.semantics.comparing import _gmac_of_encoder

    hidden = sum(p.numel() for p in teacher.net.visual.transformer.parameters() if p.dim() == 2)
    assert _gmac_of_encoder(run.model, teacher) > 49 * hidden / 1e9  # 49 tokens and more pass each of its weights


def test_without_a_head_it_refuses(run):
    without_clip(run.model)
    with pytest.raises(UserError, match="has no CLIP head: train with CLIP targets"):
        compare(run)


def test_a_head_too_small_for_any_table(run):
    found = compare(run, 10)
    assert PCA not in [row.name for row in found.rows] and "no component fits into 10 bytes" in text_of(found)
