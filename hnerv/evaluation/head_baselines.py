"""Baselines of the CLIP head: embeddings computed from the true ones, and the bytes that store them.

N frames of a video, F training frames, P patches, D embedding dimensions, K components, M = F P.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hnerv.metrics import centred_cosine
from hnerv.quantise import dequantise, minmax, quantise

BITS = (4, 5, 6, 7, 8)
"""Of a coefficient and of an entry of the basis: every pair is tried."""

_HALF = 2
"""Bytes of an entry of the mean, which is fp16, and of a step or an offset, which are bfloat16."""


class EmbeddingTable(NamedTuple):
    """embeddings (N, P, D) of unit norm, the bytes that store them, multiply-accumulates to read one."""

    embeddings: Tensor
    size: int
    macs: int


class PcaTable(NamedTuple):
    """A table of K components, with `bits` per coefficient and `basis_bits` per entry of the basis."""

    table: EmbeddingTable
    components: int
    bits: int
    basis_bits: int


def mean_embedding(truth: Tensor, train: Tensor) -> EmbeddingTable:
    """truth (N, P, D), train (F,) positions -> the mean of the training patches everywhere, in half floats."""
    mean = truth[train].mean((0, 1)).half().float()
    return EmbeddingTable(F.normalize(mean, dim=-1).expand_as(truth), _HALF * len(mean), 0)


def interpolated(rows: Tensor, train: Tensor, frames: int) -> Tensor:
    """rows (F, P, D) of the training frames at positions train (F,), ascending -> (N, P, D) of unit norm.

    Training frames keep their own rows. Frames between two of them are interpolated linearly in time; frames before
    the first or after the last take the nearest.
    """
    times = torch.arange(frames)
    after = torch.searchsorted(train, times).clamp(max=len(train) - 1)
    before = torch.where(train[after] > times, (after - 1).clamp(min=0), after)
    gap = (train[after] - train[before]).clamp(min=1)
    share = ((times - train[before]) / gap).clamp(0, 1)
    return F.normalize(torch.lerp(rows[before], rows[after], share.view(-1, 1, 1).to(rows.dtype)), dim=-1)


def pca_table(truth: Tensor, train: Tensor, budget: int) -> PcaTable | None:
    """The best PCA table of the true embeddings of the training frames in at most `budget` bytes; None: none fits.

    truth (N, P, D), train (F,) positions. The table holds the mean in fp16, the K directions of greatest variance, and
    K coefficients per training patch, quantised uniformly with a step and an offset per component. Of all pairs of
    BITS the one with the greatest centred cosine on the training patches is taken. Other frames are `interpolated`.
    """
    rows = truth[train]
    mean = rows.mean((0, 1)).half().float()
    flat = rows.flatten(0, 1) - mean
    basis = torch.linalg.svd(flat, full_matrices=False).Vh  # (min(M, D), D)
    best_score, best = -1.0, None
    # Fewer bits per number leave room for more components: the optimum lies between, and depends on the spectrum.
    for bits, basis_bits in itertools.product(BITS, BITS):
        count = min(_max_components(budget, len(flat), len(mean), bits, basis_bits), len(basis))
        if count < 1:
            continue
        decoded = _decoded(flat, basis[:count], bits, basis_bits) + mean
        score = centred_cosine(F.normalize(decoded, dim=-1), rows.flatten(0, 1), mean).mean().item()
        if score > best_score:
            size = table_bytes(count, len(flat), len(mean), bits, basis_bits)
            best_score, best = score, (decoded.view_as(rows), size, count, bits, basis_bits)
    if best is None:
        return None
    decoded, size, count, bits, basis_bits = best
    table = EmbeddingTable(interpolated(decoded, train, len(truth)), size, count * len(mean))
    return PcaTable(table, count, bits, basis_bits)


def table_bytes(components: int, patches: int, dim: int, bits: int, basis_bits: int) -> int:
    """Bytes of a PCA table: the mean; per component two steps and two offsets, M coefficients, a row of the basis."""
    symbols = -(-components * patches * bits // 8) - (-components * dim * basis_bits // 8)
    return _HALF * dim + 4 * _HALF * components + symbols


def _max_components(budget: int, patches: int, dim: int, bits: int, basis_bits: int) -> int:
    """The most that fit; 0 or less: none."""
    count = 8 * (budget - _HALF * dim) // (patches * bits + dim * basis_bits + 32 * _HALF)
    # Two rounded-up byte counts may take a byte more than the bits that were divided.
    return count - (count > 0 and table_bytes(count, patches, dim, bits, basis_bits) > budget)


def _decoded(flat: Tensor, basis: Tensor, bits: int, basis_bits: int) -> Tensor:
    """flat (M, D), basis (K, D) -> the rows that a decoder of the table gets (M, D)."""
    coarse = _quantised(basis, basis_bits)
    # The quantised basis is no longer orthonormal: projections onto it are not optimal, least squares is. (K, M)
    coefficients = torch.linalg.lstsq(coarse.T, flat.T).solution
    return _quantised(coefficients, bits).T @ coarse


def _quantised(rows: Tensor, bits: int) -> Tensor:
    """rows (K, ...) after quantisation, each row with its own range."""
    scale = minmax(rows, bits, per_channel=True)
    return dequantise(quantise(rows, scale), scale)
