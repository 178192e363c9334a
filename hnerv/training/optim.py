"""The optimiser, and the norms of its gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hnerv.config import TrainConfig
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV

_SECOND_ORDER = ("adahessian",)  # needs the graph of the gradients, which the step does not keep
GROUPS = ("rgb_head", "clip_head", "decoder", "embedding")


def parameters_of(model: DualHeadHNeRV) -> dict[str, list[nn.Parameter]]:
    """{part of the model: its parameters}, in the order of GROUPS; a part that the model lacks is empty."""
    return {name: list(part.parameters()) if (part := getattr(model, name)) is not None else [] for name in GROUPS}


def build_optimizer(model: DualHeadHNeRV, config: TrainConfig) -> torch.optim.Optimizer:
    """Two groups, the embedding's stored codes at `embed_lr_factor`; each group keeps its factor as `lr_factor`.

    The encoder is a network like the decoder, so only the knots of `grid` count as codes. Raises UserError for a
    name that neither torch nor timm knows.
    """
    codes = list(model.embedding.levels) if hasattr(model.embedding, "levels") else []
    ids = {id(p) for p in codes}
    network = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": params, "lr": config.lr * factor, "lr_factor": factor}
        for params, factor in ((network, 1.0), (codes, config.embed_lr_factor))
        if params
    ]
    return _optimizer(groups, config)


def check_optimizer(config: TrainConfig) -> None:
    """Raises UserError where the optimiser could not be built, before a run has written anything."""
    _optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))]}], config)


def _optimizer(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}.get(config.optimizer.lower())
    if plain:
        return plain(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    import timm.optim

    names = [name for name in timm.optim.list_optimizers() if name not in _SECOND_ORDER]
    if config.optimizer.lower() not in names:
        raise UserError(
            f"--optimizer {config.optimizer!r} is neither adam, adamw nor one of timm's: {', '.join(names)}"
        )
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer.lower().startswith("kron"):
        settings["deterministic"] = True  # its own random numbers would not be those of the run before a stop
    try:
        return timm.optim.create_optimizer_v2(groups, config.optimizer, **settings)
    except (AssertionError, ImportError, RuntimeError) as error:
        raise UserError(f"--optimizer {config.optimizer!r} does not work here ({error}): choose another") from error


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Each group gets `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def clip_gradients(parts: dict[str, list[nn.Parameter]], largest: float) -> Tensor:
    """L2 norms before clipping, (1 + parts,): of all gradients, then of each part; exactly 0 for a part without any.

    Then scales all gradients in place so that the total is at most `largest` (0: not at all). No host sync.
    """
    gradients = {name: [p.grad for p in params if p.grad is not None] for name, params in parts.items()}
    every = [g for part in gradients.values() for g in part]
    norms = [
        torch.stack(torch._foreach_norm(part)).square().sum().float() if part else every[0].new_zeros(())
        for part in gradients.values()
    ]
    norms = torch.stack([torch.stack(norms).sum(), *norms]).sqrt()
    if largest:
        torch._foreach_mul_(every, (largest / (norms[0] + 1e-12)).clamp(max=1))
    return norms
