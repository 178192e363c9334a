"""Cuts of synthetic scenes, whose places are known."""

from __future__ import annotations

import numpy as np
import pytest

from hnerv.data.cuts import SHORTEST, cuts_of, differences, find_cuts, grey_cells


def scene(seed: int, count: int, speed: int = 2) -> list[np.ndarray]:
    """A textured picture that drifts by `speed` pixels a frame, with noise."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 255, (12, 24, 3)).astype(np.uint8)
    wide = np.kron(blocks, np.ones((32, 32, 1), np.uint8))
    noise = draw.integers(-6, 7, (count, 128, 192, 3))
    frames = [np.roll(wide, -speed * k, axis=1)[:128, :192] for k in range(count)]
    return [np.clip(f.astype(int) + n, 0, 255).astype(np.uint8) for f, n in zip(frames, noise, strict=True)]


@pytest.mark.parametrize("speed", [0, 2, 6])
def test_scenes_that_were_joined(speed):
    frames = [*scene(1, 30, speed), *scene(2, 14, speed), *scene(3, 40, speed)]
    assert cuts_of(differences(iter(frames))) == [30, 44]


def test_one_scene_has_no_cut():
    assert cuts_of(differences(iter(scene(4, 60, 3)))) == []
    assert cuts_of(differences(iter(scene(4, 1)))) == []
    assert cuts_of([]) == []


def test_a_flash_is_no_scene():
    frames = scene(5, 60)
    frames[30] = np.full_like(frames[30], 255)
    assert len(cuts_of(differences(iter(frames)))) <= 1


def test_a_fade_is_none_either():
    black = [(f * (1 - k / 40)).astype(np.uint8) for k, f in enumerate(scene(6, 40, 0))]
    assert cuts_of(differences(iter(black))) == []


def test_of_two_that_are_close_the_stronger():
    changes = np.full(60, 1.0)
    changes[[20, 22]] = 50, 80
    assert cuts_of(changes) == [22]
    changes[:] = 1.0
    changes[[SHORTEST - 1, 60 - SHORTEST + 1]] = 90
    assert cuts_of(changes) == []


def test_cells_are_means():
    frame = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    cells = grey_cells(frame)
    assert cells.shape == (16, 16)
    assert np.isclose(cells[3, 5], frame[12:16, 30:36].mean())
    assert np.isclose(cells.mean(), frame.mean())
    assert grey_cells(frame[:5, :33]).shape == (5, 16)


def test_a_clip_without_cuts():
    """Bunny's 132 frames are one shot."""
    assert find_cuts("bunny", range(132)) == []


def test_a_file_with_cuts(tmp_path):
    from hnerv.timeline import Timeline
    from hnerv.data.video import open_writer

    path = tmp_path / "joined.mkv"
    frames = [*scene(1, 20), *scene(2, 20), *scene(7, 25)]
    with open_writer(path, (128, 192), Timeline.at_rate(24.0)) as writer:
        for frame in frames:
            writer.write(frame)
    assert find_cuts(str(path), range(65)) == [20, 40]
    assert find_cuts(str(path), range(10, 65)) == [10, 30]
