"""Cuts of synthetic scenes that start at known frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnerv.data.cuts import MIN_CHANGE, MIN_SCENE, cuts_of, find_cuts, frame_changes, grey_cells
from hnerv.data.video import open_writer
from hnerv.timeline import Timeline


def scene(seed: int, count: int, speed: int = 2) -> list[np.ndarray]:
    """A textured picture that drifts by `speed` pixels a frame, with noise."""
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 255, (12, 24, 3)).astype(np.uint8)
    wide = np.kron(blocks, np.ones((32, 32, 1), np.uint8))
    noise = draw.integers(-6, 7, (count, 128, 192, 3))
    frames = [np.roll(wide, -speed * k, axis=1)[:128, :192] for k in range(count)]
    return [np.clip(f.astype(int) + n, 0, 255).astype(np.uint8) for f, n in zip(frames, noise, strict=True)]


def fade(frames: list[np.ndarray]) -> list[np.ndarray]:
    return [(frame * (1 - k / len(frames))).astype(np.uint8) for k, frame in enumerate(frames)]


@pytest.mark.parametrize(
    ("frames", "cuts"),
    [
        *[([*scene(1, 30, v), *scene(2, 14, v), *scene(3, 40, v)], [30, 44]) for v in (0, 2, 6)],
        (scene(4, 60, 3), []),
        (scene(4, 1), []),
        (fade(scene(6, 40, 0)), []),
        ([], []),
    ],
    ids=["still", "slow", "fast", "one scene", "one frame", "fade", "nothing"],
)
def test_scenes(frames, cuts):
    assert cuts_of(frame_changes(iter(frames))) == cuts


def test_a_flash_starts_at_most_one_scene():
    frames = scene(5, 60)
    frames[30] = np.full_like(frames[30], 255)
    assert len(cuts_of(frame_changes(iter(frames)))) <= 1


def test_the_stronger_of_two_close_cuts():
    changes = np.full(60, 1.0)
    changes[[20, 22]] = 50, 80
    assert cuts_of(changes) == [22]
    changes[:] = 1.0
    changes[[MIN_SCENE - 1, 60 - MIN_SCENE + 1]] = 90
    assert cuts_of(changes) == []


@given(st.lists(st.sampled_from([0.0, 1.0, 5.0, 13.0, 50.0]), max_size=70))
def test_a_cut_stands_out_from_its_neighbours(changes):
    """Against the median taken frame by frame."""
    cuts = cuts_of(changes)
    assert np.diff([0, *cuts, len(changes)]).min(initial=MIN_SCENE) >= MIN_SCENE or not cuts
    for k in cuts:
        usual = np.median(changes[max(k - 12, 0) : k] + changes[k + 1 : k + 13])
        assert changes[k] >= max(MIN_CHANGE, 4 * usual)


def test_cells_are_means():
    frame = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    cells = grey_cells(frame)
    assert cells.shape == (16, 16)
    assert np.isclose(cells[3, 5], frame[12:16, 30:36].mean())
    assert np.isclose(cells.mean(), frame.mean())
    assert grey_cells(frame[:5, :33]).shape == (5, 16)


def test_a_clip_without_cuts():
    """Bunny is one shot."""
    assert find_cuts("bunny", range(0, 132, 4)) == []


def test_a_file_with_cuts(tmp_path):
    path = tmp_path / "joined.mkv"
    frames = [*scene(1, 20), *scene(2, 20), *scene(7, 25)]
    with open_writer(path, (128, 192), Timeline.at_rate(24.0)) as writer:
        for frame in frames:
            writer.write(frame)
    assert find_cuts(str(path), range(65)) == [20, 40]
    assert find_cuts(str(path), range(10, 65)) == [10, 30]
    assert find_cuts(str(path), range(64, -1, -1)) == [25, 45]
