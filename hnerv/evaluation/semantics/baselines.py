"""What the CLIP head has to beat: embeddings made from the true ones, and the bytes that they take.

N frames of a video, F training frames, P patches, D embedding dimensions, K components, M = F P.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hnerv.metrics import centred_cosine
from hnerv.quantise import dequantise, minmax, quantise

BITS = (4, 5, 6, 7, 8)
"""Of a coefficient, and of a number of the basis: every pair is tried."""

_HALF = 2
"""Bytes of a number of the mean; and of a step or an offset, which are bfloat16."""


class Table(NamedTuple):
    """embeddings (N, P, D) of unit norm, the bytes that hold them, multiply-accumulates to read one."""

    embeddings: Tensor
    size: int
    macs: int


class PcaTable(NamedTuple):
    """A Table with K components, `bits` of a coefficient and `basis_bits` of a number of the basis."""

    table: Table
    components: int
    bits: int
    basis_bits: int


def mean_embedding(truth: Tensor, train: Tensor) -> Table:
    """truth (N, P, D), train (F,) positions -> the mean of the training patches everywhere, in half floats."""
    mean = truth[train].mean((0, 1)).half().float()
    return Table(F.normalize(mean, dim=-1).expand_as(truth), _HALF * len(mean), 0)


def interpolated(rows: Tensor, train: Tensor, frames: int) -> Tensor:
    """rows (F, P, D) of the training frames at positions train (F,), ascending -> (N, P, D) of unit norm.

    A training frame keeps its own; between two of them the blend, beyond the last the nearest.
    """
    times = torch.arange(frames)
    after = torch.searchsorted(train, times).clamp(max=len(train) - 1)
    before = torch.where(train[after] > times, (after - 1).clamp(min=0), after)
    gap = (train[after] - train[before]).clamp(min=1)
    share = ((times - train[before]) / gap).clamp(0, 1)
    return F.normalize(torch.lerp(rows[before], rows[after], share.view(-1, 1, 1).to(rows.dtype)), dim=-1)


def pca_table(truth: Tensor, train: Tensor, budget: int) -> PcaTable | None:
    """The best table of the true embeddings of the training frames in at most `budget` bytes; None: none fits.

    truth (N, P, D), train (F,) positions. Mean in half floats, K directions of greatest variance, and the K
    coefficients of each training patch, quantised uniformly with a step and an offset for each component. Of all
    pairs of BITS the one of greatest centred cosine on the training patches. Other frames are `interpolated`.
    """
    rows = truth[train]
    mean = rows.mean((0, 1)).half().float()
    flat = rows.flatten(0, 1) - mean
    basis = torch.linalg.svd(flat, full_matrices=False).Vh  # (min(M, D), D)
    best, found = -1.0, None
    for bits in BITS:
        for basis_bits in BITS:
            count = _components(budget, len(flat), len(mean), bits, basis_bits)
            if (count := min(count, len(basis))) < 1:
                continue
            made = _rebuilt(flat, basis[:count], bits, basis_bits) + mean
            score = centred_cosine(F.normalize(made, dim=-1), rows.flatten(0, 1), mean).mean().item()
            if score > best:
                size = table_bytes(count, len(flat), len(mean), bits, basis_bits)
                best, found = score, (made.view_as(rows), size, count, bits, basis_bits)
    if found is None:
        return None
    made, size, count, bits, basis_bits = found
    table = Table(interpolated(made, train, len(truth)), size, count * len(mean))
    return PcaTable(table, count, bits, basis_bits)


def table_bytes(components: int, patches: int, dim: int, bits: int, basis_bits: int) -> int:
    """Bytes of a PCA table: mean, and per component a step and an offset twice, coefficients, a row of the basis."""
    symbols = -(-components * patches * bits // 8) - (-components * dim * basis_bits // 8)
    return _HALF * dim + 4 * _HALF * components + symbols


def _components(budget: int, patches: int, dim: int, bits: int, basis_bits: int) -> int:
    """The most that fit; 0 or less: none."""
    count = 8 * (budget - _HALF * dim) // (patches * bits + dim * basis_bits + 32 * _HALF)
    return count - (count > 0 and table_bytes(count, patches, dim, bits, basis_bits) > budget)


def _rebuilt(flat: Tensor, basis: Tensor, bits: int, basis_bits: int) -> Tensor:
    """flat (M, D), basis (K, D) -> what a reader of the table gets (M, D)."""
    coarse = _through(basis, basis_bits)
    coefficients = torch.linalg.lstsq(coarse.T, flat.T).solution  # (K, M): the best ones for the quantised basis
    return _through(coefficients, bits).T @ coarse


def _through(rows: Tensor, bits: int) -> Tensor:
    """rows (K, ...) quantised, each with its own range, and back."""
    scale = minmax(rows, bits, per_channel=True)
    return dequantise(quantise(rows, scale), scale)
