"""The optimiser, and the norms of its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from hnerv.config import TrainConfig
from hnerv.model import DualHeadHNeRV
from hnerv.training.muon import Muon

MODEL_PARTS = ("rgb_head", "clip_head", "decoder", "embedding")


def parameters_of(model: DualHeadHNeRV) -> dict[str, list[nn.Parameter]]:
    """{part of the model: its parameters}, in the order of MODEL_PARTS; empty for a part that the model lacks."""
    return {name: list(part.parameters()) if (part := getattr(model, name)) is not None else [] for name in MODEL_PARTS}


def build_optimizer(model: DualHeadHNeRV, config: TrainConfig) -> torch.optim.Optimizer:
    """Two groups, the embedding's stored codes at `embed_lr_factor`; each group keeps its factor as `lr_factor`.

    The encoder is a network like the decoder, so only the knots of `grid` count as codes.
    """
    # Each knot gets a gradient only from the frames around it, a part of the steps: hence a learning rate of its own.
    # Knots are samples over time, no linear maps: Muon, the only one to read `orthogonal`, leaves them to Adam.
    codes = list(model.embedding.levels) if hasattr(model.embedding, "levels") else []
    ids = {id(p) for p in codes}
    network = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": params, "orthogonal": params is network, "lr": config.lr * factor, "lr_factor": factor}
        for params, factor in ((network, 1.0), (codes, config.embed_lr_factor))
        if params
    ]
    optimizer = OPTIMIZERS[config.optimizer](groups, lr=config.lr, weight_decay=config.weight_decay)
    optimizer._warned_capturable_if_run_uncaptured = True  # torch would warn of the steps before the capture
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "muon": Muon,
    "adam": partial(torch.optim.Adam, fused=True, capturable=True),
    "adamw": partial(torch.optim.AdamW, fused=True, capturable=True),
}
"""Name -> constructor of groups, lr and weight_decay. The names are the choices of `TrainConfig.optimizer`."""


def clip_gradients(parts: dict[str, list[nn.Parameter]], largest: float) -> Tensor:
    """Scale all gradients in place so that their norm is at most `largest` (0: not at all). No host sync.

    Returns the L2 norms before that, (1 + parts,): of all gradients, then of each part; exactly 0 for one without any.
    """
    gradients = [[p.grad for p in params if p.grad is not None] for params in parts.values()]
    every = [g for part in gradients for g in part]
    squares = torch.stack(torch._foreach_norm(every)).float().square()
    norms = (_membership(tuple(map(len, gradients)), squares.device) @ squares).sqrt()
    if largest:
        torch._foreach_div_(every, norms[0].clamp(min=largest) / largest)
    return norms


@functools.lru_cache(maxsize=16)
def _membership(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Matrix (1 + parts, gradients) that sums squared norms: all of them in the first row, then those of each part."""
    # Cached, because it is copied from the host, for which a step must not wait.
    parts = torch.eye(len(counts)).repeat_interleave(torch.tensor(counts), dim=1)
    return torch.cat([torch.ones(1, sum(counts)), parts]).to(device)
