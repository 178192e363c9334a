"""SOAP: Adam in the eigenbases of Shampoo's statistics (Vyas et al. 2024, algorithm 3).

O outputs, I inputs of a weight (O, I, *R); R its kernel, K kernel places. All of a weight's state is kept as
(*R, O, I): seen as (K, O, I), every change of basis is one or two large matrix products and moves nothing.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

EVERY = 10
"""Steps between two updates of the bases."""


class Soap(torch.optim.Optimizer):
    """Axes longer than the group's `max_precondition_dim`, and single vectors, stay as they are: Adam's own rule there.

    The first step only begins the statistics. The momentum is kept in the eigenbases, and turned when these are, every
    `EVERY` steps by one QR iteration: this saves a third of the products of a step.
    """

    def __init__(
        self, params, lr: float = 0.003, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        weight_decay: float = 0.0, max_precondition_dim: int = 300,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        super().__init__(params, defaults | {"max_precondition_dim": max_precondition_dim})

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises ValueError for the state of another SOAP."""
        if any("momentum" not in state for state in state_dict["state"].values()):
            raise ValueError("it was written by an earlier version")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self) -> None:
        """Raises LinAlgError where the statistics of a first gradient have no eigenvectors: it is not finite."""
        for group in self.param_groups:
            group["step"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)

    def _update(self, p: Tensor, group: dict) -> None:
        grad, state, (beta1, beta2) = _inner_last(p.grad), self.state[p], group["betas"]
        if not state:
            state |= _begun(grad, group["max_precondition_dim"] if p.dim() > 1 else 0)
            _gather(state["GG"], grad, 1 - beta2)
            state["Q"] = [_eigenbasis(gram) for gram in state["GG"]]
        age = group["step"] - 1
        if not age:
            return
        turned = _turned(grad, state["Q"])
        momentum = state["momentum"].lerp_(turned, 1 - beta1)
        variance = state["variance"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        change = _turned(momentum / variance.sqrt().add_(group["eps"]), state["Q"], back=True)
        rate = group["lr"] * math.sqrt(1 - beta2**age) / (1 - beta1**age)
        p.add_(_inner_second(change), alpha=-rate)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        _gather(state["GG"], grad, 1 - beta2)
        if age % EVERY == 0:
            _renew(state)


def _inner_last(x: Tensor) -> Tensor:
    """(O, I, *R) -> (*R, O, I), contiguous; a vector as it is. Inverse of `_inner_second`."""
    return x.permute(*range(2, x.dim()), 0, 1).contiguous() if x.dim() > 1 else x


def _inner_second(x: Tensor) -> Tensor:
    """Inverse of `_inner_last`, but for the layout in memory."""
    return x.permute(-2, -1, *range(x.dim() - 2)) if x.dim() > 1 else x


def _begun(grad: Tensor, longest: int) -> dict:
    """State of a weight; GG and Q hold a matrix for each axis of (O, I, *R), an empty one where it is too long."""
    sides = _inner_second(grad).shape
    grams = [grad.new_zeros((side, side) if side <= longest else 0) for side in sides]
    return {"momentum": torch.zeros_like(grad), "variance": torch.zeros_like(grad), "GG": grams, "Q": grams}


def _gather(grams: list[Tensor], grad: Tensor, weight: float) -> None:
    """Moves each axis's G G^T, summed over the other axes, towards that of grad (*R, O, I) by `weight`."""
    if not any(map(len, grams)):
        return
    outer, inner, *kernel = grams
    places = grad.reshape(-1, *grad.shape[-2:])
    if len(inner):
        rows = places.flatten(0, 1)
        inner.lerp_(rows.T @ rows, weight)
    if len(outer):
        rows = places.transpose(0, 1).flatten(1)
        outer.lerp_(rows @ rows.T, weight)
    if kernel:
        rows = places.flatten(1)
        joint, sides = rows @ rows.T, grad.shape[:-2]
        for axis, gram in enumerate(kernel):
            if len(gram):
                shape = math.prod(sides[:axis]), sides[axis], math.prod(sides[axis + 1 :])
                gram.lerp_(torch.einsum("aibajb->ij", joint.view(*shape, *shape)), weight)


def _turned(x: Tensor, bases: list[Tensor], back: bool = False) -> Tensor:
    """x (*R, O, I) -> its coordinates in the bases, or `back` from them."""
    if not any(map(len, bases)):
        return x
    outer, inner, *kernel = bases if back else [basis.T if len(basis) else basis for basis in bases]
    places = x.reshape(-1, *x.shape[-2:])
    if len(inner):
        places = places @ inner.T
    if any(map(len, kernel)):
        whole = [basis if len(basis) else torch.eye(n).to(x) for basis, n in zip(kernel, x.shape, strict=False)]
        places = (reduce(torch.kron, whole) @ places.flatten(1)).view_as(places)
    if len(outer):
        places = torch.bmm(outer.expand(len(places), -1, -1), places)
    return places.view(x.shape)


def _eigenbasis(gram: Tensor) -> Tensor:
    """Of (n, n), symmetric: its eigenvectors as columns, that of the largest eigenvalue first."""
    return torch.linalg.eigh(gram.double())[1].flip(1).to(gram.dtype) if len(gram) else gram


def _renew(state: dict) -> None:
    """One step of power iteration and QR for each basis, ordered by eigenvalue; the averages follow."""
    if not any(map(len, state["Q"])):
        return
    momentum, variance, bases = _turned(state["momentum"], state["Q"], back=True), state["variance"], []
    for axis, (gram, basis) in enumerate(zip(state["GG"], state["Q"], strict=True)):
        if len(gram):
            image = gram @ basis
            order = (basis * image).sum(0).argsort(descending=True)
            variance = variance.index_select(axis - 2, order)
            basis = torch.linalg.qr(image[:, order])[0]
        bases.append(basis)
    state |= {"Q": bases, "momentum": _turned(momentum, bases), "variance": variance}
