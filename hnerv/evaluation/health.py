"""Diagnostics: collapse of the embeddings, and magnitudes of the decoder's features.

M embeddings of a split, D dimensions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.model import DualHeadHNeRV


class Spread(NamedTuple):
    """Diversity of embeddings (M, D), in fp64; defined by the tags Eval/Embedding.

    A collapsed head predicts the same embedding everywhere: deviations and rank near 0, pairwise similarity near 1.
    """

    std_mean: float
    std_min: float
    effective_rank: float
    pairwise_sim: float


class EmbeddingHealth(NamedTuple):
    """Of a split. `norm` is the mean norm of the CLIP head's output before normalisation."""

    predicted: Spread
    target: Spread
    nmse: float | None
    """None where the targets do not differ from their training mean."""
    norm: float


class StageFeatures(NamedTuple):
    """Mean and standard deviation after the stem and after each decoder stage."""

    mean: list[float]
    std: list[float]


def spread(embeddings: Tensor) -> Spread:
    """(M, D) of unit norm -> Spread. A single embedding has rank 0 and pairwise_sim 1."""
    x = embeddings.double()
    std = x.std(0, correction=0)
    count = len(x)
    # Mean of x_i . x_j over i != j without the M x M matrix: |sum x_i|^2 = sum |x_i|^2 + sum_{i != j} x_i . x_j.
    pairwise = (x.sum(0).square().sum() - x.square().sum()) / (count * (count - 1)) if count > 1 else x.new_ones(())
    return Spread(std.mean().item(), std.min().item(), effective_rank(x - x.mean(0)), pairwise.item())


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values of x (M, D), scaled to sum 1 (Roy, Vetterli 2007); 0 for zeros.

    nan where x is not finite: LAPACK would raise an error that names no tag.
    """
    # The shares p_i = s_i / sum s of the singular values form a distribution; exp(-sum p log p) is the number of equal
    # singular values with the same entropy: 1 for collapsed embeddings, min(M, D) for evenly spread ones. The squares
    # of the s_i are the eigenvalues of the smaller Gram matrix. Eigenvalues within rounding of 0 would add up to a
    # false tail of small shares, and are dropped.
    if not x.isfinite().all():
        return float("nan")
    # Singular values are the square roots of the eigenvalues of the smaller Gram matrix: several times faster than SVD.
    # Its rounding noise, relative to the largest eigenvalue, is removed before the root magnifies it.
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    noise = values.max() * gram.shape[0] * torch.finfo(gram.dtype).eps
    singular = values[values > noise].sqrt()
    share = singular / singular.sum()
    return (-(share * share.log()).sum()).exp().item() if len(singular) else 0.0


def embedding_health(predicted: Tensor, target: Tensor, mean: Tensor, norm: float) -> EmbeddingHealth:
    """predicted, target (F, P, D) of a split, mean (D,) of the training targets."""
    predicted, target, mean = predicted.double(), target.double(), mean.double()
    # 1 is the error of answering with the mean for every patch; below it, a prediction has learned something.
    variance = (target - mean).square().sum(-1).mean()
    error = (predicted - target).square().sum(-1).mean()
    nmse = (error / variance).item() if variance > 0 else None  # 1: as good as predicting the mean
    return EmbeddingHealth(spread(predicted.flatten(0, 1)), spread(target.flatten(0, 1)), nmse, norm)


class ActivationMonitor:
    """Moments of the outputs of the CLIP head and of the decoder stages, by forward hooks.

    Nothing is copied from the device before the results are read. The first `share` of each batch counts: the rest is
    padding.
    """

    def __init__(self, model: DualHeadHNeRV) -> None:
        self._model = model
        self.share = 1.0
        self._norms: list[Tensor] = []
        self._moments: dict[int, list[Tensor]] = {}
        self._sizes: dict[int, int] = {}

    @contextlib.contextmanager
    def attached(self) -> Iterator[ActivationMonitor]:
        """Counts the forward passes of the block."""
        model, decoder = self._model, self._model.decoder
        hooks = [] if model.clip_head is None else [model.clip_head.out.register_forward_hook(self._count_head)]
        for number, stage in enumerate([decoder.stem, *decoder.stages]):
            hooks.append(stage.register_forward_hook(lambda _, __, out, n=number: self._count_stage(n, out)))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _count_head(self, _: object, __: object, out: Tensor) -> None:
        self._norms.append(self._counted(out).norm(dim=-1).flatten())

    def _count_stage(self, number: int, out: Tensor) -> None:
        x = self._counted(out)
        row = torch.stack([x.sum(), torch.linalg.vector_norm(x).square()])  # 40 times faster than std_mean on a CPU
        self._moments.setdefault(number, []).append(row)
        self._sizes[number] = self._sizes.get(number, 0) + x.numel()

    def _counted(self, out: Tensor) -> Tensor:
        return out[: round(self.share * len(out))].float()

    def norm(self) -> float:
        """Mean L2 norm of the head's output before normalisation; nan without a CLIP head."""
        return torch.cat(self._norms).mean().item() if self._norms else float("nan")

    def features(self) -> StageFeatures:
        """Mean and standard deviation of each stage over all counted values."""
        moments = torch.stack(
            [torch.stack(rows).double().sum(0) / self._sizes[number] for number, rows in sorted(self._moments.items())]
        )
        mean, square = moments.cpu().unbind(1)
        return StageFeatures(mean.tolist(), (square - mean**2).clamp(min=0).sqrt().tolist())
