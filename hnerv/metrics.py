"""Metrics of pixels and embeddings: pure functions. Errors and similarities are in fp32 for inputs of any precision.

Legend: B frames or patches, P patches in a frame, H W pixels, D embedding dimensions, M embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnerv.errors import UserError

if TYPE_CHECKING:
    from hnerv.geometry import PatchGrid

MSE_FLOOR = 1e-10
"""Least MSE that `psnr` distinguishes from 0: no PSNR is above 100 dB."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for pixels in [0, 1] (Wang et al. 2004, section III.B)."""
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang, Simoncelli, Bovik 2003, section 4)."""

_SIMILARITIES_AT_ONCE = 1 << 22
"""Cosines that `retrieval` ranks at a time, at about 80 bytes each: 320 MiB for every M."""


def psnr(mse: Tensor) -> Tensor:
    """Mean squared error, peak 1 -> PSNR in dB, at most 100 (`MSE_FLOOR`). Inverse of `psnr_to_mse`."""
    return -10 * mse.clamp(min=MSE_FLOOR).log10()


def psnr_to_mse(db: Tensor) -> Tensor:
    """PSNR in dB -> mean squared error at peak 1. Inverse of `psnr` up to 100 dB."""
    return 10 ** (-db / 10)


def patch_mse(pred: Tensor, target: Tensor, grid: PatchGrid) -> Tensor:
    """Frames (B, 3, H, W) in [0, 1] -> mean squared error of each patch (B, P), patches in the order of `grid`."""
    return grid.means(F.mse_loss(pred.float(), target.float(), reduction="none"))


def frame_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Frames or patches (B, 3, H, W) in [0, 1] -> mean squared error of each (B,)."""
    return (pred.float() - target.float()).square().mean((1, 2, 3))


def plane_psnr(pred: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Planes Y, U, V of a frame, levels 0 ... 255 -> PSNR of each (3,) in dB, at most 100; peak 255 in any range."""
    errors = [(a.double() - b.double()).square().mean() / 255**2 for a, b in zip(pred, target, strict=True)]
    return psnr(torch.stack(errors))


def psnr_yuv(planes: Tensor) -> Tensor:
    """PSNR of the planes Y, U, V (..., 3) of frames -> their weighted mean (6 Y + U + V) / 8, (...).

    The weighting of JCT-VC for 4:2:0. Of the PSNRs in dB, not of the errors.
    """
    return planes.double() @ planes.new_tensor([0.75, 0.125, 0.125], dtype=torch.double)


def ssim(pred: Tensor, target: Tensor) -> Tensor:
    """SSIM of pred and target (B, 3, H, W) in [0, 1] -> (B,), in [-1, 1], mean over colours and full windows.

    Gaussian window of 11 pixels, sigma 1.5, no padding (Wang et al. 2004), differentiable.
    Raises UserError when H or W is under 11 pixels.
    """
    _check_window(pred, "SSIM")
    return _similarity(pred, target)[0].mean(1)


def ms_ssim_scales(height: int, width: int) -> int:
    """How many of the 5 scales of MS-SSIM fit into height x width pixels: 5 above 160, 4 above 80, ... 0 under 11."""
    fits = (min(height, width) > (SSIM_WINDOW - 1) * 2**scale for scale in range(len(MS_SSIM_WEIGHTS)))
    return sum(fits)


def ms_ssim(pred: Tensor, target: Tensor) -> Tensor:
    """Multi-scale SSIM of pred and target (B, 3, H, W) in [0, 1] -> (B,), in [0, 1], mean over colours.

    Wang, Simoncelli, Bovik 2003, with the values of pytorch_msssim. Frames too small for 5 scales use the finest
    `ms_ssim_scales`, weights renormalised to sum 1. Raises UserError when H or W is under 11 pixels.
    """
    # MS-SSIM = l_M^w_M prod_j cs_j^w_j: contrast and structure at every scale, luminance at the coarsest one, M. A
    # factor below 0 (a negative of the picture) has no real power, and counts as 0.
    _check_window(pred, "MS-SSIM")
    pred, target = pred.float(), target.float()
    weights = MS_SSIM_WEIGHTS[: ms_ssim_scales(*pred.shape[-2:])]
    result = pred.new_ones(pred.shape[:2])
    for weight in weights[:-1]:
        result = result * _similarity(pred, target)[1].relu() ** (weight / sum(weights))
        padding = [side % 2 for side in pred.shape[-2:]]
        pred, target = (F.avg_pool2d(x, 2, padding=padding) for x in (pred, target))
    return (result * _similarity(pred, target)[0].relu() ** (weights[-1] / sum(weights))).mean(1)


def ms_ssim_db(similarity: Tensor) -> Tensor:
    """MS-SSIM of frames (...) -> -10 log10(1 - MS-SSIM) of each in dB, at most 100.

    Tables print the mean of these, not the dB of the mean MS-SSIM, which is lower.
    """
    return psnr(1 - similarity)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of a and b (..., D) -> (...), in [-1, 1]; 0 where one of them is the zero vector."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1).clamp(-1, 1)


def centred_cosine(pred: Tensor, target: Tensor, mean: Tensor) -> Tensor:
    """Cosine of pred and target (..., D) -> (...) after `mean` (D,), that of the training targets, is subtracted.

    The embeddings of one video are all close to their mean, so the raw cosine of the mean itself is already high.
    Without the mean, only the differences between patches count.
    """
    return cosine(pred.float() - mean.float(), target.float() - mean.float())


class Retrieval(NamedTuple):
    """Of each query (M,): ranks from 0 on, overlap of the nearest in [0, 1], Spearman in [-1, 1].

    `rank` is that of the first hit, M where nothing is a hit; `exact` that of the patch to find, without neighbours.
    Recall at k is the share of ranks below k.
    """

    rank: Tensor
    exact: Tensor
    overlap: Tensor
    spearman: Tensor


def retrieval(
    pred: Tensor, target: Tensor, frame_index: Tensor, patch_index: Tensor, neighbours: int = 1, top: int = 10
) -> Retrieval:
    """The true embedding of each patch, as a query, ranks all predictions by cosine.

    pred and target (M, D) belong to the frames and patches frame_index and patch_index (M,). A hit is a prediction at
    the same patch position, at most `neighbours` frames away. `overlap` is the share of the `top` nearest true
    embeddings that are among the `top` nearest predictions, `spearman` the correlation of the two rankings. Equal
    cosines rank in no defined order, and NaN is last. Computed on the device of the embeddings; memory grows with M,
    not with its square.

    Cosines are in fp64, since the embeddings of one video lie close together: among the true embeddings of 132 frames
    of Big Buck Bunny, TF32 changes 4 % of the ranks and fp32 0.03 %.
    """
    own = torch.arange(len(target), device=target.device)
    return _retrieval(target, own, pred, target, frame_index, patch_index, neighbours, top)


def query_retrieval(
    queries: Tensor,
    pred: Tensor,
    target: Tensor,
    frame_index: Tensor,
    patch_index: Tensor,
    neighbours: int = 1,
    top: int = 10,
) -> Retrieval:
    """As `retrieval`, for other queries (Q, D), such as texts: each should find its nearest true patch."""
    return _retrieval(queries, None, pred, target, frame_index, patch_index, neighbours, top)


@torch.no_grad()
def _retrieval(
    queries: Tensor,
    own: Tensor | None,
    pred: Tensor,
    target: Tensor,
    frame_index: Tensor,
    patch_index: Tensor,
    neighbours: int,
    top: int,
) -> Retrieval:
    """`own` (Q,) is the row that each query should find; None: the nearest true embedding."""
    # Spearman needs both full rankings of every query, and these give rank and overlap at no cost: two sorts, no topk.
    # Distances are cosines with the opposite of the query: in ascending order the nearest is first.
    queries, keys, true = (F.normalize(x.double(), dim=-1) for x in (-queries, pred, target))
    count = len(keys)
    batches = []
    for rows in torch.arange(len(queries), device=keys.device).split(max(1, _SIMILARITIES_AT_ONCE // max(1, count))):
        nearest, truly_nearest = _argsort(queries[rows] @ keys.T), _argsort(queries[rows] @ true.T)
        ours, truth = _inverse(nearest), _inverse(truly_nearest)
        home = truly_nearest[:, 0] if own is None else own[rows]
        hit = patch_index == patch_index[home, None]
        hit &= (frame_index - frame_index[home, None]).abs() <= neighbours
        rank = ours.masked_fill(~hit, count).amin(1) if count else ours.sum(1)
        exact = ours.gather(1, home[:, None]).squeeze(1)
        shared = (truth.gather(1, nearest[:, :top]) < top).sum(1) / max(min(top, count), 1)
        # 1 - 6 sum(d^2) / (M^3 - M) of two permutations. At most (M^3 - M) / 3, below 2^53 up to M = 300,000: exact.
        distance = (ours - truth).square_().sum(1)
        spearman = 1 - 6 * distance / max(count * (count**2 - 1), 1)
        batches.append(Retrieval(rank.long(), exact.long(), shared, spearman))
    return Retrieval(*(torch.cat(column) for column in zip(*batches, strict=True)))


def _argsort(distance: Tensor) -> Tensor:
    """(R, M) -> columns of each row in ascending order, int64."""
    if distance.device.type != "cpu":
        return distance.argsort(dim=1)
    # On x86, NumPy's argsort is vectorised, 5 times as fast as torch's on one core, and releases the GIL.
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda part: part.argsort(1), np.array_split(distance.numpy(), threads))
        return torch.from_numpy(np.concatenate([*parts]))


def _inverse(order: Tensor) -> Tensor:
    """Columns (R, M) in ascending order -> the rank of each column from 0 on, fp64."""
    ranks = torch.arange(order.shape[1], dtype=torch.float64, device=order.device).expand_as(order)
    return order.new_empty(order.shape, dtype=ranks.dtype).scatter_(1, order, ranks)


class PairedGap(NamedTuple):
    """Mean gap between training and unseen frames, and its standard error."""

    gap: float
    error: float


def paired_gap(train_at: Tensor, train: Tensor, unseen_at: Tensor, unseen: Tensor) -> PairedGap | None:
    """Quality of the training frames around each unseen frame minus its own, mean over the unseen frames.

    `train` (N,) and `unseen` (M,) are e.g. the PSNR of frames at positions train_at (N,) and unseen_at (M,), in any
    order, on the CPU. None where all unseen frames lie between the same two training frames: a single draw has no
    deviation.
    """
    # Frames of one video differ in difficulty by several dB, which hides a small gap: the difference of the two means
    # has variance var(x) / N + var(y) / M. Adjacent frames are about equally difficult, so in
    #   d_j = x interpolated to the time of the unseen frame j - y_j
    # the difficulty cancels up to its second derivative. Unseen frames between the same two training frames share both
    # neighbours, and their d_j are correlated. Such a run g is therefore one of G draws (cluster-robust variance):
    #   error^2 = G / (G - 1) * sum_g (sum_{j in g} (d_j - mean d))^2 / M^2.
    # With runs of one frame this is the usual var(d) / M. Adjacent runs share a neighbour, which is neglected: over 156
    # splits of frames that were all trained on, where the true gap is 0, gap / error has an RMS of 1.03.
    order = train_at.argsort()
    x_at, x, y_at, y = (column.double().numpy() for column in (train_at[order], train[order], unseen_at, unseen))
    d = np.interp(y_at, x_at, x) - y
    runs = np.unique(np.searchsorted(x_at, y_at), return_inverse=True)[1]
    sums = np.bincount(runs, d - d.mean())
    if len(sums) < 2:
        return None
    error = np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(d)
    return PairedGap(d.mean().item(), error.item())


def bits_per_pixel(num_bytes: int, frames: int, height: int, width: int) -> float:
    """Size of a coded video in bits per pixel of its frames."""
    return 8 * num_bytes / (frames * height * width)


def _check_window(pred: Tensor, name: str) -> None:
    height, width = pred.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"{name} needs at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, not {height}x{width}: "
            "choose a larger --crop or --resize, a coarser --grid, or --pixel-loss L2"
        )


def _similarity(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> SSIM and its contrast-structure factor alone, both (B, C), means over all full windows, fp32."""
    # Contiguous, so that CUDA filters each channel in fp32: channels-last would go through cuDNN in TF32. The window is
    # made on the device, because a copy from the host would make a training step wait.
    x, y = pred.float().contiguous(), target.float().contiguous()
    offset = torch.arange(SSIM_WINDOW, device=x.device, dtype=torch.float32) - SSIM_WINDOW // 2
    window = (-offset.square() / (2 * SSIM_SIGMA**2)).exp()
    window = (window / window.sum()).repeat(x.shape[1], 1, 1, 1)  # (C, 1, 1, 11)

    def local_mean(z: Tensor) -> Tensor:
        # A Gaussian is separable: a column and a row of 11 taps do the work of 121.
        return F.conv2d(F.conv2d(z, window.mT, groups=z.shape[1]), window, groups=z.shape[1])

    with torch.autocast(x.device.type, enabled=False):
        # Moments under the window w: mu = E_w[x], sigma_x^2 = E_w[x^2] - mu_x^2, sigma_xy = E_w[x y] - mu_x mu_y. Then
        #   SSIM = l cs,  l = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)           luminance,
        #                cs = (2 sigma_xy + C2) / (sigma_x^2 + sigma_y^2 + C2)      contrast and structure.
        # C1 and C2 keep both quotients at 1 where two pictures are black or flat, at a range of 1.
        mean_x, mean_y = local_mean(x), local_mean(y)
        square_x, square_y, product = mean_x.pow(2), mean_y.pow(2), mean_x * mean_y
        variance_x, variance_y = local_mean(x * x) - square_x, local_mean(y * y) - square_y
        covariance = local_mean(x * y) - product
        contrast = (2 * covariance + C2) / (variance_x + variance_y + C2)
        similarity = (2 * product + C1) / (square_x + square_y + C1) * contrast
    return similarity.flatten(2).mean(-1), contrast.flatten(2).mean(-1)
