"""Pictures between two frames: moved ones against the scene that moved, still ones against their blend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hnerv.metrics import frame_mse, psnr
from hnerv.model.predict import round8
from hnerv.motion import between, motion


def scene(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(1, 3, height, width) in [0, 1]: noise in which neighbours are alike, of several grains as pictures have."""
    draw = torch.Generator().manual_seed(seed)
    grains = (torch.rand(1, 3, height // n + 2, width // n + 2, generator=draw) for n in (5, 12, 30))
    return sum(F.interpolate(grain, size=(height, width), mode="bicubic") for grain in grains).div(3).clamp(0, 1)


def views(down: int, right: int, share: float) -> tuple[torch.Tensor, ...]:
    """A window of 80x120 onto a scene that moves so: earlier, later, and in between (both parts whole pixels)."""
    whole = scene(120, 160)
    places = [(20 - round(part * down), 20 - round(part * right)) for part in (0, 1, share)]
    return tuple(whole[..., y : y + 80, x : x + 120] for y, x in places)


@pytest.mark.parametrize(
    ("down", "right", "share"),
    [(2, 0, 0.5), (0, -4, 0.5), (6, 2, 0.5), (-3, 6, 1 / 3), (8, -4, 0.25), (-6, -9, 2 / 3), (12, 12, 0.5)],
)
def test_what_moves_is_drawn_where_it_is_then(down, right, share):
    low, high, truth = views(down, right, share)
    found = between(low, high, torch.tensor([share]))
    inner = (..., slice(12, -12), slice(12, -12))  # of what enters at the border one frame knows nothing
    quality, blend = (psnr(frame_mse(x[inner], truth[inner])).item() for x in (found, torch.lerp(low, high, share)))
    assert quality > 35 and quality > blend + 8
    flow = motion(low, high, torch.tensor([share]))[inner]
    assert flow[:, 0].median() == pytest.approx(down, abs=0.5) and flow[:, 1].median() == pytest.approx(right, abs=0.5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_still_and_fading_pictures_are_blends(share):
    part, picture = torch.tensor([share]), scene(80, 120)
    low, high = torch.full((1, 3, 40, 60), 0.2), torch.full((1, 3, 40, 60), 0.9)
    assert torch.allclose(between(low, high, part), torch.lerp(low, high, share), atol=1e-5)
    assert torch.equal(motion(picture, picture, part), torch.zeros(1, 2, 80, 120))
    assert torch.allclose(between(picture, picture, part), picture, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (4, 8), (41, 97), (160, 81)])
def test_any_size(size):
    low, high = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(1))
    found = between(low, high, torch.tensor([0.5]))
    assert found.shape == low.shape and found.min() >= 0 and found.max() <= 1


def test_each_of_a_batch_is_what_it_is_alone():
    pairs, shares = [views(2, 4, 0.5), views(-4, 6, 0.5)], torch.tensor([0.5, 0.25])
    low, high = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    alone = torch.cat([between(*pair[:2], share[None]) for pair, share in zip(pairs, shares, strict=True)])
    assert torch.allclose(between(low, high, shares), alone, atol=1e-5)


def test_noise_moves_little():
    """On two pictures of one still scene, 5 grey levels of noise on each."""
    draw, picture = torch.Generator().manual_seed(2), scene(80, 120)
    low, high = (picture + 5 / 255 * torch.randn(picture.shape, generator=draw) for _ in range(2))
    found, blend = between(low, high, torch.tensor([0.5])), torch.lerp(low, high, 0.5)
    quality, expected = (psnr(frame_mse(round8(x), picture)).item() for x in (found, blend))
    assert quality > expected - 1.5
