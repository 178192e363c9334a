"""Metrics against torchmetrics, scikit-image, pytorch_msssim and brute force."""

import math

import numpy as np
import pytest
import pytorch_msssim
import skimage.metrics
import torch
import torch.nn.functional as F
import torchmetrics.functional as reference
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.functional.regression import spearman_corrcoef

from hnerv import metrics
from hnerv.errors import UserError
from hnerv.geometry import PatchGrid


def pictures(height: int, width: int, batch: int = 2, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """A textured picture with noise and the picture itself: pred, target (B, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    target = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (target + noise * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def to_numpy(picture: torch.Tensor) -> np.ndarray:
    return picture.movedim(0, -1).numpy()


@pytest.mark.parametrize(("mse", "db"), [(1.0, 0), (0.01, 20), (1e-4, 40), (1e-10, 100), (0.0, 100), (0.5, 3.0103)])
def test_psnr_table_and_inverse(mse, db):
    assert metrics.psnr(torch.tensor(mse)).item() == pytest.approx(db, abs=1e-4)
    assert metrics.psnr_to_mse(torch.tensor(float(db))).item() == pytest.approx(max(mse, 1e-10), rel=1e-4)


def test_frame_psnr_agrees_with_torchmetrics_and_scikit_image():
    pred, target = pictures(48, 64)
    got = metrics.psnr(metrics.frame_mse(pred, target))
    torch.testing.assert_close(metrics.psnr(metrics.psnr_to_mse(got)), got)
    for value, p, t in zip(got, pred, target, strict=True):
        assert value.item() == pytest.approx(peak_signal_noise_ratio(p, t, data_range=1.0).item(), abs=1e-4)
        expected = skimage.metrics.peak_signal_noise_ratio(to_numpy(t), to_numpy(p), data_range=1)
        assert value.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grid", [PatchGrid(48, 64, 2, 4), PatchGrid(48, 64, 1, 1), PatchGrid(48, 64, 3, 2)])
def test_patch_mse_is_that_of_each_cut_patch(grid, memory_format):
    pred, target = (x.contiguous(memory_format=memory_format) for x in pictures(48, 64))
    got = metrics.patch_mse(pred, target, grid)
    expected = (grid.split(pred) - grid.split(target)).square().mean((2, 3, 4))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.mean(1), metrics.frame_mse(pred, target))
    assert (metrics.patch_mse(pred.half(), target.half(), grid).dtype) == torch.float32


@pytest.mark.parametrize("size", [(11, 11), (40, 56), (75, 33)])
def test_ssim_agrees_with_scikit_image_and_torchmetrics(size):
    pred, target = pictures(*size)
    got = metrics.ssim(pred, target)
    assert got.shape == (2,)
    for value, p, t in zip(got, pred, target, strict=True):
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
        expected = skimage.metrics.structural_similarity(to_numpy(p), to_numpy(t), channel_axis=-1, **options)
        assert value.item() == pytest.approx(expected, abs=1e-4)
        whole = structural_similarity_index_measure(p[None], t[None], data_range=1.0, return_full_image=True)[1]
        assert value.item() == pytest.approx(whole[..., 5:-5, 5:-5].mean().item(), abs=1e-4)


@pytest.mark.parametrize("size", [(160, 320), (176, 192), (88, 96), (24, 32)])
@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ms_ssim_agrees_with_torchmetrics(size, noise):
    """torchmetrics averages colours before the product and keeps a reflected border at its last scale.

    Both are taken out by giving it one colour at a time and putting the last scale together from its own pieces.
    """
    pred, target = pictures(*size, noise=noise)
    weights = metrics.MS_SSIM_WEIGHTS[: metrics.ms_ssim_scales(*size)]
    expected = torch.ones(2, 3)
    p, t = (x.flatten(0, 1)[:, None] for x in (pred, target))
    options = {"data_range": 1.0, "reduction": "none"}
    for weight in weights[:-1]:
        contrast = structural_similarity_index_measure(p, t, return_contrast_sensitivity=True, **options)[1]
        expected *= contrast.relu().unflatten(0, (2, 3)) ** (weight / sum(weights))
        p, t = F.avg_pool2d(p, 2), F.avg_pool2d(t, 2)
    whole = structural_similarity_index_measure(p, t, return_full_image=True, **options)[1]
    last = whole[..., 5:-5, 5:-5].mean((1, 2, 3)).relu().unflatten(0, (2, 3))
    expected = (expected * last ** (weights[-1] / sum(weights))).mean(1)
    torch.testing.assert_close(metrics.ms_ssim(pred, target), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(161, 170), (176, 203)])
def test_both_are_those_of_pytorch_msssim(size):
    """Its multi-scale function refuses frames below 161 pixels; gradients too, since both are losses."""
    pred, target = (x.requires_grad_() for x in pictures(*size))
    for ours, theirs in ((metrics.ssim, pytorch_msssim.ssim), (metrics.ms_ssim, pytorch_msssim.ms_ssim)):
        expected, got = theirs(pred, target, data_range=1, size_average=False), ours(pred, target)
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
        slopes = [torch.autograd.grad(value.sum(), pred)[0] for value in (got, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("side", "scales"),
    [(10, 0), (11, 1), (20, 1), (21, 2), (40, 2), (41, 3), (80, 3), (81, 4), (160, 4), (161, 5), (2000, 5)],
)
def test_ms_ssim_scales_leave_a_full_window_at_the_last(side, scales):
    assert metrics.ms_ssim_scales(side, 3000) == metrics.ms_ssim_scales(3000, side) == scales
    assert not scales or 0 < metrics.ms_ssim(*pictures(min(side, 161), 161, batch=1)).item() < 1


@pytest.mark.parametrize("measure", [metrics.ssim, metrics.ms_ssim])
def test_similarity_bounds_and_arithmetic(measure):
    pred, target = pictures(48, 64)
    expected = measure(pred, target)
    torch.testing.assert_close(measure(target, target), torch.ones(2))
    torch.testing.assert_close(measure(target, pred), expected)
    assert (measure(1 - target, target) < expected).all() and (measure(1 - target, target) >= -1).all()
    torch.testing.assert_close(measure(pred.contiguous(memory_format=torch.channels_last), target), expected)
    with torch.autocast("cpu", torch.bfloat16):
        for kind in (torch.float32, torch.float64):
            found = measure(pred.to(kind), target.to(kind))
            assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert torch.equal(metrics.ms_ssim(1 - target, target), torch.zeros(2))


@pytest.mark.parametrize(("name", "measure"), [("SSIM", metrics.ssim), ("MS-SSIM", metrics.ms_ssim)])
def test_too_small_for_one_window(name, measure):
    small = torch.rand(1, 3, 10, 32)
    with pytest.raises(UserError) as error:
        measure(small, small)
    assert str(error.value) == (
        f"{name} needs at least 11x11 pixels, not 10x32: choose a larger --crop or --resize, a coarser --grid, "
        "or --pixel-loss L2"
    )


def test_cosine_agrees_with_torchmetrics():
    a, b = torch.randn(2, 6, 8, 32, generator=torch.Generator().manual_seed(2))
    got = metrics.cosine(a, b)
    assert got.shape == (6, 8)
    expected = reference.cosine_similarity(a.flatten(0, 1), b.flatten(0, 1), reduction="none").reshape(6, 8)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(metrics.cosine(3 * a, b), got)
    assert (metrics.cosine(a, a) <= 1).all() and (metrics.cosine(a, -a) >= -1).all()
    assert metrics.cosine(a[0], torch.zeros(32)).tolist() == [0] * 8
    assert metrics.cosine(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_centred_cosine_sees_through_a_common_mean():
    """Unrelated embeddings around one mean: their raw cosine is near 1, their centred cosine near 0."""
    generator = torch.Generator().manual_seed(3)
    mean = 10 * torch.randn(64, generator=generator)
    pred, target = mean + torch.randn(2, 500, 64, generator=generator)
    assert metrics.cosine(pred, target).mean() > 0.98
    centred = metrics.centred_cosine(pred, target, mean)
    assert centred.shape == (500,)
    assert centred.mean().abs() < 0.02
    torch.testing.assert_close(centred, metrics.cosine(pred - mean, target - mean))
    torch.testing.assert_close(metrics.centred_cosine(target, target, mean), torch.ones(500))
    assert metrics.centred_cosine(mean, target, mean).abs().max() == 0


def embeddings(frames: int, dim: int = 16) -> list[torch.Tensor]:
    """Noisy predictions, targets (M, D), frame and patch indices (M,) of a video of 4 patches."""
    generator = torch.Generator().manual_seed(7)
    target = torch.randn(4 * frames, dim, generator=generator)
    pred = target + 1.2 * torch.randn(4 * frames, dim, generator=generator)
    return [pred, target, torch.arange(4 * frames) // 4, torch.arange(4 * frames) % 4]


def hits_of(frame: torch.Tensor, patch: torch.Tensor, neighbours: int) -> torch.Tensor:
    return (patch == patch[:, None]) & ((frame - frame[:, None]).abs() <= neighbours)


@pytest.mark.parametrize(("neighbours", "top"), [(0, 1), (1, 10), (3, 25), (1, 5000)])
def test_retrieval_agrees_with_counting_topk_and_torchmetrics(neighbours, top):
    """The rank of the nearest hit is the number of predictions that are nearer than it."""
    pred, target, frame, patch = embeddings(300)
    got = metrics.retrieval(pred, target, frame, patch, neighbours, top)
    ours, truth = (F.normalize(target.double(), dim=1) @ F.normalize(x.double(), dim=1).T for x in (pred, target))
    nearest = ours.where(hits_of(frame, patch, neighbours), -torch.inf).amax(1, keepdim=True)
    assert torch.equal(got.rank, (ours > nearest).sum(1))
    assert torch.equal(got.exact, (ours > ours.diagonal()[:, None]).sum(1))
    assert torch.equal(got.exact, got.rank) == (neighbours == 0)
    tops = (x.topk(min(top, len(pred))).indices for x in (ours, truth))
    chosen = [torch.zeros_like(ours, dtype=torch.bool).scatter_(1, indices, True) for indices in tops]
    assert torch.equal(got.overlap, (chosen[0] & chosen[1]).sum(1) / min(top, len(pred)))
    expected = spearman_corrcoef(ours[:50].T, truth[:50].T)
    torch.testing.assert_close(got.spearman[:50], expected.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("at_once", [1, 80, 81, 6400])
def test_borders_of_chunks_do_not_show(monkeypatch, at_once, threads):
    given = embeddings(20)
    whole = metrics.retrieval(*given)
    sizes, argsort, before = [], metrics._argsort, torch.get_num_threads()
    monkeypatch.setattr(metrics, "_SIMILARITIES_AT_ONCE", at_once)
    monkeypatch.setattr(metrics, "_argsort", lambda x: sizes.append(x.numel()) or argsort(x))
    torch.set_num_threads(threads)
    try:
        chunked = metrics.retrieval(*given)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(chunked, whole, strict=True))
    assert sum(sizes) == 2 * 80 * 80 and max(sizes) <= max(at_once, 80)


def test_equal_cosines_rank_somewhere_among_each_other():
    """Vectors of signs: products are exact, so cosines tie exactly."""
    signs = torch.randn(2, 120, 4, generator=torch.Generator().manual_seed(8)).sign()
    frame, patch = torch.arange(120) // 4, torch.arange(120) % 4
    rank, exact, overlap, spearman = metrics.retrieval(*signs, frame, patch)
    ours, truth = (signs[1] @ x.T for x in signs)
    nearest = ours.where(hits_of(frame, patch, 1), -torch.inf).amax(1, keepdim=True)
    own = ours.diagonal()[:, None]
    for place, found in ((rank, nearest), (exact, own)):
        assert (place >= (ours > found).sum(1)).all() and (place < (ours >= found).sum(1)).all()
    sure, possible = ([of(x, x.topk(10).values[:, -1:]) for x in (ours, truth)] for of in (torch.gt, torch.ge))
    assert (overlap >= (sure[0] & sure[1]).sum(1) / 10).all()
    assert (overlap <= (possible[0] & possible[1]).sum(1) / 10).all()
    assert (spearman.abs() <= 1).all() and len(spearman.unique()) > 10


def test_equal_predictions_find_one_place_and_no_number_is_last():
    pred, target, frame, patch = embeddings(20, dim=4)
    rank = metrics.retrieval(torch.ones(80, 4), target.sign(), frame, patch).rank
    assert len(rank.unique()) > 10 and (rank == 0).sum() <= 3
    pred[7] = torch.nan
    rank = metrics.retrieval(pred, target, frame, patch, neighbours=0).rank
    assert rank[7] == 79 and (rank[torch.arange(80) != 7] < 79).all()


@pytest.mark.cuda
@pytest.mark.parametrize("frames", [20, 300, 1100])
def test_retrieval_on_cuda_is_that_of_the_cpu(frames):
    """Products add up in another order there, so that near ties may change places."""
    given = embeddings(frames)
    queries = torch.randn(50, 16, generator=torch.Generator().manual_seed(9))
    for measure, arguments in ((metrics.retrieval, given), (metrics.query_retrieval, [queries, *given])):
        expected, got = measure(*arguments), measure(*(x.cuda() for x in arguments))
        assert all(column.is_cuda for column in got)
        assert (got.rank.cpu() != expected.rank).double().mean() < 1e-3
        assert (got.exact.cpu() != expected.exact).double().mean() < 1e-3
        assert (got.overlap.cpu() != expected.overlap).double().mean() < 1e-3
        torch.testing.assert_close(got.spearman.cpu(), expected.spearman, rtol=0, atol=1e-5)


def test_retrieval_by_hand():
    """Of the truth it is perfect; a hit is at the same patch, at most `neighbours` frames away."""
    target, frame, patch = torch.eye(4), torch.tensor([0, 0, 5, 5]), torch.tensor([0, 1, 0, 1])
    found = metrics.retrieval(target, target, frame, patch)
    assert [column.tolist() for column in found] == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    assert (metrics.retrieval(target.flip(0), target, frame, patch).rank > 0).all()
    for neighbours in (4, 5):
        rank, exact, *_ = metrics.retrieval(target[[2, 3, 0, 1]], target, frame, patch, neighbours)
        assert (rank == 0).all() == (neighbours == 5) and (exact > 0).all()
    for count in (0, 1):
        alone = metrics.retrieval(*2 * [torch.eye(3)[:count]], *2 * [torch.arange(count)])
        assert [column.tolist() for column in alone] == [[0] * count, [0] * count, [1] * count, [1] * count]


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_a_query_from_elsewhere_should_find_its_nearest_true_patch(monkeypatch, at_once):
    monkeypatch.setattr(metrics, "_SIMILARITIES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(5)
    frame, patch = (x.flatten() for x in torch.meshgrid(torch.arange(9), torch.arange(4), indexing="ij"))
    target = torch.randn(36, 8, generator=generator)
    pred = target + 0.9 * torch.randn(36, 8, generator=generator)
    queries = torch.randn(50, 8, generator=generator)
    got = metrics.query_retrieval(queries, pred, target, frame, patch)
    for query, rank, exact, overlap, spearman in zip(queries, *got, strict=True):
        ours, truth = ([float(query @ key / key.norm()) for key in keys] for keys in (pred, target))
        orders = [sorted(range(36), key=lambda k: -similar[k]) for similar in (ours, truth)]
        home = orders[1][0]
        hits = [patch[k] == patch[home] and abs(frame[k] - frame[home]) <= 1 for k in orders[0]]
        assert rank == hits.index(True) and exact == orders[0].index(home)
        assert overlap == pytest.approx(len({*orders[0][:10]} & {*orders[1][:10]}) / 10)
        assert spearman == pytest.approx(spearman_corrcoef(torch.tensor(ours), torch.tensor(truth)).item(), abs=1e-4)
    assert got.rank.float().std() > 0
    own = metrics.query_retrieval(target, pred, target, frame, patch)
    assert all(torch.equal(a, b) for a, b in zip(own, metrics.retrieval(pred, target, frame, patch), strict=True))
    perfect = metrics.query_retrieval(queries, target, target, frame, patch)
    assert (perfect.rank == 0).all() and (perfect.overlap == 1).all() and (perfect.spearman == 1).all()


def split_positions(frames: int, a: int, b: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    frame = torch.arange(frames)
    return frame[frame % c < a], frame[frame % c >= b]


@pytest.mark.parametrize("split", [(9, 9, 10), (1, 1, 2), (6, 6, 10), (2, 4, 5)])
def test_a_paired_gap_is_that_of_a_loop(split):
    draw = torch.Generator().manual_seed(1)
    train_at, unseen_at = split_positions(47, *split)
    train, unseen = (30 + 4 * torch.randn(len(at), generator=draw, dtype=torch.float64) for at in (train_at, unseen_at))
    known, runs = dict(zip(train_at.tolist(), train.tolist(), strict=True)), {}
    for at, value in zip(unseen_at.tolist(), unseen.tolist(), strict=True):
        left, right = max((p for p in known if p < at), default=None), min((p for p in known if p > at), default=None)
        share = 0 if right is None else (at - left) / (right - left)
        around = known[left] if right is None else (1 - share) * known[left] + share * known[right]
        runs.setdefault((left, right), []).append(around - value)
    every = [d for run in runs.values() for d in run]
    mean = sum(every) / len(every)
    squares = sum(sum(d - mean for d in run) ** 2 for run in runs.values())
    error = math.sqrt(len(runs) / (len(runs) - 1) * squares) / len(every)
    mixed = torch.randperm(len(train), generator=draw)
    got = metrics.paired_gap(train_at[mixed], train[mixed], unseen_at.flip(0), unseen.flip(0))
    assert got == pytest.approx((mean, error))
    if len(runs) == len(every):
        assert got.error == pytest.approx(np.std(every, ddof=1) / math.sqrt(len(every)))


@pytest.mark.parametrize("split", [(9, 9, 10), (1, 1, 2), (6, 6, 10)])
def test_difficulty_cancels_in_a_paired_gap_and_its_error_covers_the_noise(split):
    """A true gap of 0.3 dB, difficulty over 10 dB, noise of 0.2 dB per frame: within two errors in 19 of 20 videos."""
    draw = torch.Generator().manual_seed(2)
    train_at, unseen_at = split_positions(300, *split)
    deviations = []
    for _ in range(400):
        phase = 6.3 * torch.rand((), generator=draw)
        quality = [
            30 + 5 * torch.sin(at / 40 + phase) + 0.2 * torch.randn(len(at), generator=draw)
            for at in (train_at, unseen_at)
        ]
        found = metrics.paired_gap(train_at, quality[0], unseen_at, quality[1] - 0.3)
        assert found.error < 0.1 and abs(found.gap - 0.3) < 0.25
        deviations.append((found.gap - 0.3) / found.error)
    share = sum(abs(deviation) > 2 for deviation in deviations) / len(deviations)
    assert 0.02 < share < 0.12


def test_a_single_run_of_unseen_frames_has_no_paired_gap():
    at = torch.arange(10)
    quality = torch.linspace(30, 31, 10)
    assert metrics.paired_gap(at[:7], quality[:7], at[7:], quality[7:]) is None
    assert metrics.paired_gap(at[::2], quality[::2], at[1::2], quality[1::2]) is not None


def test_bits_per_pixel():
    assert metrics.bits_per_pixel(1_500_000, 132, 640, 1280) == pytest.approx(0.111, abs=5e-4)
    assert metrics.bits_per_pixel(1, 1, 2, 4) == 1


def test_ms_ssim_in_db_by_hand():
    """10 dB for each tenth of what is missing; 100 dB where nothing is."""
    found = metrics.ms_ssim_db(torch.tensor([0.0, 0.9, 0.99, 1.0]))
    assert found.tolist() == pytest.approx([0, 10, 20, 100], abs=1e-3)


def test_psnr_of_planes_by_hand():
    """One level everywhere is 20 log10(255) dB, sixteen are 24.08 dB less; luma counts six of eight."""
    zeros = [torch.zeros(size, dtype=torch.uint8) for size in ((4, 6), (2, 3), (2, 3))]
    planes = metrics.plane_psnr([zeros[0] + 1, zeros[1] + 16, zeros[2]], zeros)
    assert planes.tolist() == pytest.approx([48.1308, 24.0484, 100], abs=1e-4)
    frames = torch.stack([planes, planes.new_tensor([40, 40, 40])])
    assert metrics.psnr_yuv(frames).tolist() == pytest.approx([(6 * 48.1308 + 24.0484 + 100) / 8, 40], abs=1e-4)
