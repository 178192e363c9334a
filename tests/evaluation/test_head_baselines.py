"""Baselines of the CLIP head: means and interpolations by hand, PCA tables within their bytes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from hnerv.evaluation.head_baselines import BITS, interpolated, mean_embedding, pca_table, table_bytes
from hnerv.metrics import centred_cosine

TRAIN = torch.tensor([0, 1, 3, 4, 6, 7, 9])


@pytest.fixture
def truth() -> torch.Tensor:
    """(12, 4, 16) of unit norm: a random walk in few directions around a mean."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(6, 16, generator=generator) * torch.linspace(1, 0.2, 6)[:, None]
    walk = torch.randn(12, 4, 6, generator=generator).cumsum(0) / 3
    return F.normalize(2 * torch.ones(16) + walk @ directions, dim=-1)


def test_the_mean_is_that_of_the_training_patches(truth):
    table = mean_embedding(truth, TRAIN)
    assert table.size == 32 and table.macs == 0 and table.embeddings.shape == truth.shape
    by_hand = sum(truth[f, p] for f in TRAIN.tolist() for p in range(4)) / 28
    assert torch.allclose(table.embeddings[5, 2], by_hand / by_hand.norm(), atol=1e-3)


def test_frames_between_training_frames_are_interpolated(truth):
    got = interpolated(truth[TRAIN], TRAIN, 12)
    assert torch.allclose(got[TRAIN], truth[TRAIN], atol=1e-6)
    assert torch.allclose(got[2], F.normalize(truth[1] / 2 + truth[3] / 2, dim=-1), atol=1e-6)
    assert torch.allclose(got[11], truth[9], atol=1e-6), "beyond the last"
    wide = torch.tensor([2, 6])
    got = interpolated(truth[wide], wide, 12)
    assert torch.allclose(got[0], truth[2], atol=1e-6), "before the first"
    assert torch.allclose(got[3], F.normalize(0.75 * truth[2] + 0.25 * truth[6], dim=-1), atol=1e-6)
    assert torch.allclose(interpolated(truth[:1], torch.tensor([0]), 3), truth[:1].expand(3, 4, 16), atol=1e-6)


def test_bytes_of_a_table_by_hand():
    # mean 16 halves; per component 2 ranges of 2 bfloat16; 3 x 28 coefficients of 5 bits, 3 x 16 numbers of 7 bits
    assert table_bytes(3, 28, 16, 5, 7) == 32 + 3 * 8 + 53 + 42


@pytest.mark.parametrize("budget", [60, 75, 100, 150, 300, 1000])
def test_a_table_is_the_largest_of_its_bits_that_fits(truth, budget):
    found = pca_table(truth, TRAIN, budget)
    sizes = {
        pair: [table_bytes(count, 28, 16, *pair) for count in range(1, 18)] for pair in itertools.product(BITS, BITS)
    }
    if all(row[0] > budget for row in sizes.values()):
        assert found is None
        return
    mine = sizes[found.bits, found.basis_bits]
    assert found.table.size == mine[found.components - 1] <= budget
    assert found.components == 16 or mine[found.components] > budget
    assert found.table.macs == 16 * found.components
    assert torch.allclose(found.table.embeddings.norm(dim=-1), torch.ones(12, 4))


def test_more_bytes_are_better_and_enough_are_exact(truth):
    mean = truth[TRAIN].mean((0, 1))
    scores = []
    for budget in (80, 120, 200, 1000):
        made = pca_table(truth, TRAIN, budget).table.embeddings
        scores.append(centred_cosine(made, truth, mean)[TRAIN].mean().item())
    assert scores == sorted(scores) and scores[0] < 0.97 < 0.999 < scores[-1]


def test_unseen_frames_do_not_influence_the_tables(truth):
    other = truth.clone()
    other[[2, 5, 8, 10, 11]] = F.normalize(torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert torch.equal(*(pca_table(rows, TRAIN, 200).table.embeddings for rows in (truth, other)))
    assert torch.equal(*(mean_embedding(rows, TRAIN).embeddings for rows in (truth, other)))
