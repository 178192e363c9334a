"""Detection of runs that diverge, before a checkpoint holds what went wrong. S steps of an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from hnerv.errors import Diverged

COLLAPSE = 6.0
"""A fall of Train/PSNR this far below the best epoch, in dB, counts as divergence where rollbacks are allowed."""


class DivergenceCheck:
    """Raises Diverged; its message names `latest`, the checkpoint to resume from. Steps and epochs count from 1."""

    def __init__(self, latest: Path, rollbacks: int) -> None:
        self.latest, self.rollbacks = latest, rollbacks

    def records(self, rows: Tensor, tags: Sequence[str], step: int, epoch: int) -> None:
        """rows (S, columns) of an epoch; `step` is its first step and `tags` names the columns."""
        bad = (~rows.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            self._not_finite(tags[column], rows[row, column].item(), step + row, epoch)

    def weights(self, parameters: Sequence[Tensor], step: int, epoch: int) -> None:
        """The last step may leave weights that are not finite although its own losses were."""
        norms = torch.stack(torch._foreach_norm(list(parameters)))
        if not norms.isfinite().all():
            self._not_finite("the norm of a weight", norms[~norms.isfinite()][0].item(), step, epoch)

    def values(self, values: dict[str, float], step: int, epoch: int) -> None:
        """{tag: value} measured after an epoch."""
        for tag, value in values.items():
            if not math.isfinite(value):
                self._not_finite(tag, value, step, epoch)

    def quality(self, psnr: float, best: float, epoch: int) -> None:
        """Train/PSNR of an epoch against the best epoch before it, in dB."""
        if self.rollbacks and psnr < best - COLLAPSE:
            fall = f"{psnr:.2f} dB in epoch {epoch}, {best - psnr:.2f} dB below the best epoch"
            raise Diverged(f"Train/PSNR is {fall}", ": lower --lr under another --exp-id")

    def _not_finite(self, tag: str, value: float, step: int, epoch: int) -> NoReturn:
        good = f"the last good checkpoint is {self.latest}" if self.latest.exists() else "there is no checkpoint yet"
        again = "" if self.rollbacks else "; or pass --on-divergence rollback to resume this run"
        raise Diverged(
            f"{tag} is {value} at step {step} (epoch {epoch})",
            f"; {good}: lower --lr or --clip-loss-weight, or set --grad-clip, under another --exp-id{again}",
        )
