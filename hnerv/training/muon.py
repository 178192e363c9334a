"""Muon: a matrix moves along its momentum made orthogonal (Jordan et al. 2024); here one for each place of a kernel.

O outputs, I inputs of a weight (O, I, *R), K places of its kernel R; S = min(O, I).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""a, b, c of x -> a x + b x^3 + c x^5, which takes singular values of 0.0015 to 1 to 0.68 to 1.2 in `ROUNDS`."""
ROUNDS = 5
MATRIX_RATE = 1.75
"""Learning rate of matrices relative to that of Adam's part."""


class Muon(torch.optim.Optimizer):
    """Muon for the weights (O, I, *R) of groups with `orthogonal`, Adam for their vectors and for other groups.

    The K matrices (O, I) of a convolution are taken one by one: as a single one, (O, I K), they would take five to
    fourteen times as long. The elements of a matrix move by about `MATRIX_RATE` x lr / sqrt(I K), root mean square, as
    in the original, and so in proportion to how torch initialises them. Weight decay is decoupled.
    """

    def __init__(
        self, params, lr: float, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8, weight_decay: float = 0.0, orthogonal: bool = True,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"orthogonal": orthogonal})

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, and leaves the gradients as they are. Reads nothing back."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"] and moved:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            rest = []
            for p in moved:
                if group["orthogonal"] and p.dim() > 1:
                    self._move_matrix(p, group)
                else:
                    rest.append(p)
            if rest:
                self._move_as_adam(rest, group)

    def _move_matrix(self, p: Tensor, group: dict) -> None:
        grad, state = _places(p.grad), self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        change = orthogonal(grad.lerp(momentum, group["momentum"]))  # Nesterov's
        rms = MATRIX_RATE * group["lr"] / math.sqrt(p[0].numel())
        p.add_(_weight(change, p.shape), alpha=-rms * math.sqrt(max(p.shape[:2])))

    def _move_as_adam(self, params: list[Tensor], group: dict) -> None:
        states, (beta1, beta2) = [self.state[p] for p in params], group["betas"]
        for p, state in zip(params, states, strict=True):
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            state["step"] += 1
        grads = [p.grad for p in params]
        means, squares = [s["mean"] for s in states], [s["square"] for s in states]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_div_(sizes, [math.sqrt(1 - beta2 ** s["step"]) for s in states])
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_addcdiv_(params, means, sizes, [-group["lr"] / (1 - beta1 ** s["step"]) for s in states])


def orthogonal(x: Tensor) -> Tensor:
    """(K, O, I) -> the same with singular values near 1, but for those below 0.0015 of the matrix's norm.

    The Newton-Schulz iteration, on the Gram matrix (K, S, S) of the shorter side: the longer one is met twice only. It
    multiplies the rounding of the Gram matrix by up to 485^2, so the products have to be true fp32, not TF32.
    """
    if x.shape[1] < x.shape[2]:
        return orthogonal(x.mT).mT
    gram = x.mT @ x
    square = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-30  # zeros stay zeros
    gram = gram / square
    change = factor = _quintic(gram)
    for _ in range(ROUNDS - 1):
        gram = change @ gram @ change  # that of x @ factor
        change = _quintic(gram)
        factor = factor @ change
    return x @ (factor / square.sqrt())


def _quintic(gram: Tensor) -> Tensor:
    """Gram matrices G (K, S, S) -> a + b G + c G^2, by which their matrices are multiplied in a round."""
    a, b, c = COEFFICIENTS
    change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    change.diagonal(dim1=1, dim2=2).add_(a)
    return change


def _places(x: Tensor) -> Tensor:
    """(O, I, *R) -> (K, O, I), contiguous. Inverse of `_weight`."""
    return x.flatten(2).permute(2, 0, 1).contiguous() if x.dim() > 2 else x[None]


def _weight(x: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `_places`, but for the layout in memory."""
    return x.permute(1, 2, 0).view(shape)
