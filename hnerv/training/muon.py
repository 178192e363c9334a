"""Muon: the update of a matrix is its orthogonalised momentum (Jordan et al. 2024), for all spatial taps at once.

O outputs, I inputs of a weight (O, I, *R), K spatial taps of its kernel R; M matrices of a bucket, S their side.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam

# Newton-Schulz: with x = U S V^T, x (a + b x^T x + c (x^T x)^2) = U (a S + b S^3 + c S^5) V^T. A polynomial in products
# of x maps each singular value s to p(s) = a s + b s^3 + c s^5 and leaves U and V alone; repeated, it drives all s
# towards 1 without a decomposition. The classical coefficients 15/8, -10/8, 3/8 converge to 1, but lift a small s by
# only 15/8 a round, 23 times in five. These (Jordan et al.) have the steepest slope at 0 that still keeps values near
# 1: 3.4445^5 = 485 times in five rounds. They do not converge: s ends between 0.68 and 1.2, which costs no quality
# (Jordan et al.).
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""a, b, c of p(s) = a s + b s^3 + c s^5, which maps singular values of 0.0015 to 1 into 0.68 to 1.2 in `ROUNDS`."""
ROUNDS = 5
MATRIX_RATE = 1.75
"""Learning rate of matrices relative to that of Adam's part."""
ALIGNMENT = 8
"""Sides of matrices are padded to a multiple: on a CPU a product of 47 columns takes 1.7 times one of 48."""
MOST_PADDING = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Multiply-accumulates that padding may add to one product of a bucket: about the time of another launch."""


class Taps:
    """A weight (O, I, *R) as K matrices (rows, columns), columns <= rows, padded with zeros to `side` columns."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.count, self.rows, self.columns = tall(weight).shape
        self.side = -(-self.columns // ALIGNMENT) * ALIGNMENT

    @property
    def rate(self) -> float:
        """The learning rate of its matrices relative to `lr`."""
        # An orthogonal O x I matrix has r = min(O, I) singular values of 1. Their squares and those of its O I elements
        # have the same sum, r, so an element has the root mean square sqrt(r / (O I)) = 1 / sqrt(max(O, I)). Hence
        #     x sqrt(max(O, I)), the rows of the tall matrix:  the update has elements of root mean square 1;
        #     / sqrt(I K), the scale of torch's initialisation: a step of rate lr moves weights of every shape by the
        #                                                       same fraction of their initial size.
        return MATRIX_RATE * (self.rows / self.weight[0].numel()) ** 0.5


class Bucket:
    """Weights with matrices that are iterated together, and their buffers, with padding that stays zero."""

    def __init__(self, taps: list[Taps]) -> None:
        self.taps, self.counts = taps, [t.count for t in taps]
        weight, side = taps[0].weight, max(t.side for t in taps)
        self.rates = weight.new_tensor([t.rate for t in taps for _ in range(t.count)]).view(-1, 1, 1)
        self.directions = [weight.new_zeros(t.count, t.rows, t.side) for t in taps]
        self.grams = weight.new_zeros(sum(self.counts), side, side)


class Muon(torch.optim.Optimizer):
    """Muon for weights (O, I, *R), I > 1, of groups with `orthogonal`; Adam for their vectors and for other groups.

    An element of a matrix moves by about `MATRIX_RATE` x lr / sqrt(I K), root mean square. Weight decay is decoupled.
    `lr` may be a tensor on the device of the parameters; then a step reads nothing back from there.
    """

    # A convolution is a sum over its taps, y(p) = sum_r W_r x(p + r): each tap W_r (O, I) is a linear map of channels
    # and is made orthogonal by itself. Flattening the kernel to one matrix (O, I K), as usual, treats neighbouring
    # inputs, which are nearly equal, as independent; and its Gram matrix takes five to fourteen times as long.

    def __init__(
        self,
        params,
        lr: float | Tensor,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        orthogonal: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        # `fused`: torch then keeps step counts on the device when it loads a state.
        super().__init__(params, defaults | {"orthogonal": orthogonal, "fused": True})
        self._buckets: dict[tuple[Tensor, ...], list[Bucket]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter that has a gradient; the gradients are left as they are."""
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in updated if group["orthogonal"] and mixes_channels(p)]
            vectors = [p for p in updated if not (group["orthogonal"] and mixes_channels(p))]
            if matrices:
                if group["weight_decay"]:
                    torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                self._update_matrices(matrices, group)
            if vectors:
                self._update_vectors(vectors, group)

    def load_state_dict(self, state_dict: dict) -> None:
        """Inverse of `state_dict`. Raises ValueError for a state of other shapes."""
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            for name, value in state.items():
                if not isinstance(value, Tensor) or value.shape != (() if name == "step" else p.shape):
                    raise ValueError(f"{name} does not have the shape of its parameter, {tuple(p.shape)}")

    def _update_matrices(self, weights: list[Tensor], group: dict) -> None:
        for p in weights:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in weights]
        torch._foreach_lerp_(momenta, [p.grad for p in weights], 1 - group["momentum"])
        if (key := tuple(weights)) not in self._buckets:
            self._buckets[key] = buckets(weights, MOST_PADDING[weights[0].device.type])
        for bucket in self._buckets[key]:
            # x = (1 - m) gradient + m average, the look-ahead of Nesterov's momentum. With x = U S V^T, the update is
            # U V^T = x (x^T x)^(-1/2), the nearest matrix with orthogonal columns: every direction that the gradient
            # has moves alike, rare ones as far as frequent ones.
            for taps, x in zip(bucket.taps, bucket.directions, strict=True):
                gradient, average = tall(taps.weight.grad), tall(self.state[taps.weight]["momentum"])
                torch.lerp(gradient, average, group["momentum"], out=x[:, :, : taps.columns])
            factors = inverse_sqrt_via_newtonschulz(bucket.directions, bucket.grams, bucket.rates * group["lr"])
            for taps, x, factor in zip(bucket.taps, bucket.directions, factors.split(bucket.counts), strict=True):
                weight, factor = tall(taps.weight), factor[:, : taps.side, : taps.side]
                if taps.side == taps.columns:  # without padding, the product is subtracted as it is computed
                    weight.baddbmm_(x, factor, alpha=-1)
                else:
                    weight.sub_(torch.bmm(x, factor)[:, :, : taps.columns])

    def _update_vectors(self, params: list[Tensor], group: dict) -> None:
        """Adam as torch fuses it, with its step counts on the device."""
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                count = torch.zeros((), dtype=torch.float32, device=p.device)
                state |= {"step": count, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        beta1, beta2 = group["betas"]
        adam(
            params,
            [p.grad for p in params],
            [s["mean"] for s in states],
            [s["square"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def mixes_channels(weight: Tensor) -> bool:
    """Whether its taps are matrices, and not vectors: a bias has none, a depthwise kernel (C, 1, k, k) one column."""
    return weight.dim() > 1 and weight.shape[1] > 1


def tall(weight: Tensor) -> Tensor:
    """(O, I, *R) -> a view (K, O, I), or (K, I, O) where I is larger; K is 1 for a matrix."""
    if weight.dim() == 2:
        x = weight[None]
    else:
        x = weight.permute(*range(2, weight.dim()), 0, 1)
        x = x.view(-1, *x.shape[-2:])
    return x if x.shape[1] >= x.shape[2] else x.mT


def buckets(weights: Iterable[Tensor], most_padding: int) -> list[Bucket]:
    """Weights, largest first, in as few buckets as `most_padding` multiply-accumulates of padding per product allow."""
    # A product of M small matrices is one launch, whatever M is. Padding all of them to the side S of the largest costs
    # S^3 - s^3 multiply-accumulates for each of side s; where that is more than a launch, a further bucket begins.
    groups: list[list[Taps]] = []
    padding = 0
    for taps in sorted(map(Taps, weights), key=lambda taps: taps.side, reverse=True):
        padding += taps.count * (groups[-1][0].side ** 3 - taps.side**3) if groups else 0
        if not groups or padding > most_padding:
            groups.append([])
            padding = 0
        groups[-1].append(taps)
    return [Bucket(taps) for taps in groups]


def orthogonalize(x: Tensor) -> Tensor:
    """(K, O, I) -> the same with singular values near 1, except those below 0.0015 of a matrix's norm."""
    if x.shape[1] < x.shape[2]:
        return orthogonalize(x.mT).mT
    return x @ inverse_sqrt_via_newtonschulz([x], x.new_zeros(len(x), x.shape[2], x.shape[2]), x.new_ones(()))


def inverse_sqrt_via_newtonschulz(matrices: list[Tensor], grams: Tensor, scale: Tensor) -> Tensor:
    """Tall matrices (K, rows, columns), a list -> factors (M, S, S): x @ factor is `scale` times nearly orthogonal.

    M is the number of all matrices, S at least the most columns; `grams` (M, S, S) is scratch, padded with zeros.
    Products have to be true fp32, not TF32: the rounding of the first Gram matrix is multiplied by up to 485^2.
    """
    # The factor approximates (x^T x)^(-1/2). An iteration x <- x q(g), with g = x^T x and q(g) = a + b g + c g^2, takes
    # g to q^T g q = q g q: g and every q are polynomials of the first g and commute. So the iteration runs on the S x S
    # Gram matrices alone, never on the longer x, and x q1 q2 ... q5 is applied once, at the end. Rows and columns of
    # zeros stay zeros in g, so padding is exact.
    for x, part in zip(matrices, grams.split([len(x) for x in matrices]), strict=True):
        torch.bmm(x.mT, x, out=part[:, : x.shape[2], : x.shape[2]])
    square = grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-30)  # zeros stay zeros
    # Divided by its squared Frobenius norm, g has eigenvalues in [0, 1], where the polynomial is made for.
    gram = grams / square
    change = factor = _polynomial(gram)
    for _ in range(ROUNDS - 1):
        gram = change.bmm(gram).bmm(change)
        change = _polynomial(gram)
        factor = factor.bmm(change)
    return factor * (scale * square.rsqrt())


def _polynomial(gram: Tensor) -> Tensor:
    """q(g) = a + b g + c g^2 of g (M, S, S)."""
    a, b, c = COEFFICIENTS
    change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    change.diagonal(dim1=1, dim2=2).add_(a)
    return change
