"""Every loss of the table: its properties, and its value from torch.nn.functional and torchmetrics."""

import re

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from hnerv.errors import UserError
from hnerv.losses import (
    CLIP_LOSSES,
    CLIP_TERMS,
    LOSSES,
    STILL,
    TERMS,
    Embedded,
    clip_loss,
    compares_frames,
    cosine_loss,
    formula,
    pixel_loss,
)

SIZE = (104, 112)
BETAS = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363])


def pictures(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture with texture, and the same with noise: pred, target (B, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 9, 11, generator=generator)
    target = F.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 1)
    noise = torch.randn(target.shape, generator=generator)
    return (target + 0.05 * noise).clamp(0, 1), target


def reference_ssim(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """torchmetrics, without the border in which it reflects the picture."""
    whole = structural_similarity_index_measure(pred, target, data_range=1.0, return_full_image=True)[1]
    return whole[..., 5:-5, 5:-5].mean()


def reference_ms_ssim(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    betas = tuple((BETAS / BETAS.sum()).tolist())
    return multiscale_structural_similarity_index_measure(pred, target, data_range=1.0, betas=betas)


def reference_fft(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    difference = torch.fft.fft2(pred.double()) - torch.fft.fft2(target.double())
    return (difference.real.abs().mean() + difference.imag.abs().mean()) / 2


REFERENCE = {
    "L1": F.l1_loss,
    "L2": F.mse_loss,
    "S": lambda pred, target: 1 - reference_ssim(pred, target),
    "M": lambda pred, target: 1 - reference_ms_ssim(pred, target),
    "FFT": reference_fft,
}
MIXES = {
    "L1": "1 L1",
    "L2": "1 L2",
    "SSIM": "1 S",
    "Fusion1": "0.3 L2, 0.7 S",
    "Fusion2": "0.3 L1, 0.7 S",
    "Fusion3": "0.5 L2, 0.5 S",
    "Fusion4": "0.5 L1, 0.5 S",
    "Fusion5": "0.7 L2, 0.3 S",
    "Fusion6": "0.7 L1, 0.3 S",
    "Fusion7": "0.7 L2, 0.3 L1",
    "Fusion8": "0.5 L2, 0.5 L1",
    "Fusion9": "0.9 L1, 0.1 S",
    "Fusion10": "0.7 L1, 0.3 M",
    "Fusion11": "0.9 L1, 0.1 M",
    "Fusion12": "0.8 L1, 0.2 M",
    "Fusion10_freq": "42 L1, 18 M, 1 FFT",
    "L1_freq": "0.006 L1, 0.00015 FFT",
}
"""Of HNeRV and Boosting-NeRV, and ours, written down a second time."""


@pytest.mark.parametrize("name", MIXES)
def test_agrees_with_torchmetrics(name):
    pred, target = pictures()
    mix = [part.split() for part in MIXES[name].split(", ")]
    expected = sum(float(weight) * REFERENCE[term](pred, target) for weight, term in mix)
    scale = max(1, sum(float(weight) for weight, _ in mix))
    assert pixel_loss(name, pred, target).item() == pytest.approx(float(expected), abs=1e-4 * scale)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", ["noise", "equal", "grey", "negative"])
def test_zero_at_equality_positive_elsewhere_with_finite_gradients(name, case):
    """The negative of a picture has contrasts below 0 at every scale, where MS-SSIM is 0 to a power below 1."""
    noisy, target = pictures(batch=1)
    cases = {"noise": noisy, "equal": target, "grey": torch.full_like(target, 0.5), "negative": 1 - target}
    pred = cases[case].clone().requires_grad_()
    loss = pixel_loss(name, pred, target)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32 and pred.grad.isfinite().all()
    assert case in ("equal", "grey") or pred.grad.abs().sum() > 0
    assert loss.item() == pytest.approx(0, abs=1e-5) if case == "equal" else loss > 0


@pytest.mark.parametrize("name", LOSSES)
def test_the_formula_of_the_help_and_half_precision(name):
    """The text that --help shows, read back, is the loss; pictures in bf16 are compared in fp32."""
    pred, target = (x.bfloat16() for x in pictures(batch=1))
    parts = [re.fullmatch(r"(?:([\d.]+) )?(.+)", part).groups() for part in formula(name).split(" + ")]
    total = sum(float(weight or 1) * TERMS[term](pred.float(), target.float()).item() for weight, term in parts)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = pixel_loss(name, pred, target)
    assert mixed.dtype == torch.float32 and mixed.item() == pytest.approx(total, rel=1e-5)


def test_names_and_formulas():
    assert set(MIXES) <= set(LOSSES)
    assert formula("Fusion1") == "0.3 L2 + 0.7 (1 - SSIM)"
    assert formula("Fusion10_freq") == "42 L1 + 18 (1 - MS-SSIM) + L1(FFT)"
    for call in (formula, lambda name: pixel_loss(name, *pictures())):
        with pytest.raises(UserError) as error:
            call("Fusion99")
        assert str(error.value) == f"--pixel-loss 'Fusion99' is not a known pixel loss: choose from {', '.join(LOSSES)}"


def test_cosine_loss():
    pred = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [-1.0, 0.0]]])
    target = torch.tensor([[[3.0, 4.0], [0.0, 5.0]], [[1.0, 1.0], [1.0, 0.0]]])
    assert cosine_loss(pred, target).item() == pytest.approx((0 + 1 + (1 - 0.5**0.5) + 2) / 4, abs=1e-6)
    for scale in (7.0, 1.0, 0.0):
        given = (scale * target).requires_grad_()
        loss = cosine_loss(given, target)
        loss.backward()
        assert loss.item() == pytest.approx(0 if scale else 1, abs=1e-6) and given.grad.isfinite().all()


def embedded(seed: int, frames: int = 3) -> Embedded:
    draw = torch.Generator().manual_seed(seed)
    return Embedded(*(F.normalize(torch.randn(frames, 4, 16, generator=draw), dim=-1) for _ in range(2)))


@pytest.mark.parametrize("name", CLIP_LOSSES)
def test_a_clip_loss_is_zero_where_all_is_true_and_has_finite_gradients(name):
    here, near = embedded(0), embedded(1)
    found = clip_loss(name, here, near)
    assert found > 0 and found.dtype == torch.float32
    exact = [Embedded(e.target.clone().requires_grad_(), e.target) for e in (here, near)]
    loss = clip_loss(name, *exact)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert all(e.pred.grad is None or e.pred.grad.isfinite().all() for e in exact)
    assert (exact[1].pred.grad is not None) == compares_frames(name)
    assert compares_frames(name) or clip_loss(name, here) == found


def test_motion_by_hand():
    """What is common to both frames costs nothing; a difference is weighed by the true one."""
    here, near = embedded(2, 4), embedded(3)
    total = 0.0
    for b in range(3):  # the fourth is a blend
        for p in range(4):
            found = [float(x) for x in here.pred[b, p] - near.pred[b, p]]
            true = [float(x) for x in here.target[b, p] - near.target[b, p]]
            error = sum((f - t) ** 2 for f, t in zip(found, true, strict=True))
            total += error / (sum(t**2 for t in true) + STILL) / 12
    assert CLIP_TERMS["motion"](here, near).item() == pytest.approx(total, rel=1e-5)
    shift = 0.3 * torch.ones(16)
    moved = (Embedded(e.target + shift, e.target) for e in (here, near))
    assert CLIP_TERMS["motion"](*moved).item() == pytest.approx(0, abs=1e-6)
    assert clip_loss("motion", here, near).item() == pytest.approx(cosine_loss(*here).item() + 0.05 * total, rel=1e-5)
