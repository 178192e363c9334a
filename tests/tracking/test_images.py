"""Colours, sizes and bytes of pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hnerv.tracking import images
from hnerv.tracking.images import (
    captioned,
    cell_map,
    colours,
    display_scale,
    gif,
    png,
    resized,
    scale_bar,
    side_by_side,
    stacked,
)


def opened(encoded):
    return Image.open(io.BytesIO(encoded.data))


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)


def test_a_png_is_the_picture(picture):
    encoded = png(picture)
    assert (encoded.height, encoded.width) == (10, 20)
    assert (np.asarray(opened(encoded)) == picture).all()


def test_a_gif_plays_its_frames_in_order():
    frames = [np.full((8, 12, 3), value, np.uint8) for value in (10, 120, 240)]
    film = opened(gif(frames, fps=10))
    assert (film.n_frames, film.info["duration"], film.info["loop"]) == (3, 100, 0)
    for i, frame in enumerate(frames):
        film.seek(i)
        assert np.abs(np.asarray(film.convert("RGB")).astype(int) - frame).max() <= 4


def test_a_gif_of_one_frame(picture):
    assert opened(gif([picture], fps=10)).size == (20, 10)


def test_colours_begin_dark_end_bright_and_rise_evenly():
    table = colours(np.linspace(0, 1, 256)).astype(float)
    lightness = table @ [0.2126, 0.7152, 0.0722]
    assert lightness[0] < 5 and lightness[-1] > 240 and (np.diff(lightness) >= 0).all()
    assert (colours(np.array([-1.0, 2.0])) == colours(np.array([0.0, 1.0]))).all()
    assert colours(np.array([np.nan, np.inf])).tolist() == [list(images.MISSING)] * 2


@pytest.mark.parametrize(
    ("size", "scale"), [((160, 320), 1), ((640, 1280), 0.25), ((32, 64), 3), ((320, 160), 1), ((200, 100), 1)]
)
def test_frames_are_shown_neither_large_nor_tiny(size, scale):
    assert display_scale(*size) == scale
    height, width = (round(side * scale) for side in size)
    assert resized(np.zeros((*size, 3), np.uint8), scale).shape == (height, width, 3)


def test_shrinking_averages_and_growing_repeats():
    board = np.indices((8, 8)).sum(0) % 2 * np.uint8(200)
    board = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    assert (resized(board, 0.5) == 100).all()
    assert (resized(board, 3) == np.repeat(np.repeat(board, 3, 0), 3, 1)).all()


def test_a_caption_stands_above_and_is_not_cut(picture):
    long = captioned(picture, ["a caption that is much wider than the picture"])
    assert long.shape[1] > 200 and (long[-10:, :20] == picture).all() and (long[-10:, 20:] == 255).all()
    assert (long[:-10] < 100).any(), "there is ink"
    assert captioned(picture, ["a", "b"]).shape[0] > captioned(picture, ["a"]).shape[0]


def test_rows_and_columns(picture):
    tall = np.zeros((30, 5, 3), np.uint8)
    row = side_by_side([picture, tall])
    assert row.shape == (30, 25 + images.MARGIN, 3)
    assert (row[-10:, :20] == picture).all() and (row[:, -5:] == 0).all() and (row[:20, :20] == 255).all()
    column = stacked([picture, tall])
    assert column.shape[1] == 20 and (column[:10] == picture).all() and (column[16:46, :5] == 0).all()


def test_cells_are_coloured_by_value_and_written():
    values = np.array([[1.0, 2.0], [3.0, np.nan]])
    cells = cell_map(values, 1, 3, ".1f", (30, 50))
    assert cells.shape == (60, 100, 3)
    corners = cells[::30, ::50]
    assert (corners[0, 0] == colours(np.zeros(()))).all() and (corners[1, 0] == colours(np.ones(()))).all()
    assert corners[1, 1].tolist() == list(images.MISSING)
    for row, column in np.ndindex(2, 2):
        cell = cells[30 * row : 30 * row + 30, 50 * column : 50 * column + 50].reshape(-1, 3)
        assert len(np.unique(cell, axis=0)) > 1, "a number is written into it"


def test_equal_values_have_a_map_too():
    assert cell_map(np.full((1, 2), 5.0), 5.0, 5.0, ".0f", (20, 30)).shape == (20, 60, 3)


def test_a_scale_bar_goes_from_one_end_of_the_colours_to_the_other():
    bar = scale_bar(0, 10, ".0f", "dB")
    row = bar[8].astype(int)
    for end in (0.0, 1.0):
        assert (np.abs(row - colours(np.array(end))).sum(1) == 0).any()
