"""Colours, sizes and bytes of pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hnerv.viz import image
from hnerv.viz.colour import BLACK, INFERNO, MISSING, SPECTRUM, YELLOW, map_colours


def opened(encoded):
    return Image.open(io.BytesIO(encoded.data))


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("level", [3, 6])
def test_a_png_is_the_picture(picture, level):
    encoded = image.png(picture, level)
    assert (encoded.height, encoded.width) == (10, 20)
    assert (np.asarray(opened(encoded)) == picture).all()


def test_a_gif_plays_its_frames_in_order():
    frames = [np.full((8, 12, 3), value, np.uint8) for value in (10, 120, 240)]
    animation = opened(image.gif(frames, fps=10))
    assert (animation.n_frames, animation.info["duration"], animation.info["loop"]) == (3, 100, 0)
    for i, frame in enumerate(frames):
        animation.seek(i)
        assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - frame).max() <= 4
    assert opened(image.gif(frames[:1], fps=10)).size == (12, 8)


def test_inferno_begins_dark_ends_bright_and_rises_evenly():
    table = map_colours(np.linspace(0, 1, 256)).astype(float)
    lightness = table @ [0.2126, 0.7152, 0.0722]
    assert lightness[0] < 5 and lightness[-1] > 240 and (np.diff(lightness) >= 0).all()


@pytest.mark.parametrize("anchors", [INFERNO, SPECTRUM])
def test_a_map_passes_through_its_anchors_and_clamps(anchors):
    found = map_colours(np.linspace(0, 1, len(anchors)), anchors).astype(int)
    assert np.abs(found - anchors).max() <= 2  # a table of 256 colours
    assert map_colours(np.array([-1.0, 2.0]), anchors).tolist() == [list(anchors[0]), list(anchors[-1])]
    assert map_colours(np.array([np.nan, np.inf]), anchors).tolist() == [list(MISSING)] * 2


@pytest.mark.parametrize(
    ("size", "scale"), [((160, 320), 1), ((640, 1280), 0.25), ((32, 64), 3), ((320, 160), 1), ((200, 100), 1)]
)
def test_frames_are_shown_neither_large_nor_tiny(size, scale):
    assert image.shown_scale(*size) == scale
    assert image.shown_frame(np.zeros((*size, 3), np.uint8)).shape == (*(round(side * scale) for side in size), 3)


def test_shrinking_averages_and_growing_repeats():
    board = np.repeat((np.indices((640, 640)).sum(0) % 2 * 200).astype(np.uint8)[..., None], 3, axis=2)
    assert (image.shown_frame(board) == 100).all()
    small = board[:64, :64]
    assert (image.shown_frame(small) == np.repeat(np.repeat(small, 3, 0), 3, 1)).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 90))
def test_resizing_keeps_the_aspect_ratio(height, width, new):
    found = image.resized(np.full((height, width, 3), 7, np.uint8), new)
    assert found.shape == (max(1, round(height * new / width)), new, 3) and (found == 7).all()


def test_a_caption_stands_above_and_is_not_cut(picture):
    long = image.captioned(picture, ["a caption that is much wider than the picture"])
    assert long.shape[1] > 200 and (long[-10:, :20] == picture).all() and (long[-10:, 20:] == 255).all()
    assert (long[:-10] < 100).any(), "there is ink"
    assert image.captioned(picture, ["a", "b"]).shape[0] > image.captioned(picture, ["a"]).shape[0]


def test_rows_and_columns(picture):
    tall = np.zeros((30, 5, 3), np.uint8)
    row = image.side_by_side([picture, tall])
    assert row.shape == (30, 25 + image.MARGIN, 3)
    assert (row[-10:, :20] == picture).all() and (row[:, -5:] == 0).all() and (row[:20, :20] == 255).all()
    column = image.stacked([picture, tall])
    assert column.shape[1] == 20 and (column[:10] == picture).all() and (column[16:46, :5] == 0).all()


def test_cells_are_coloured_by_value_and_written():
    cells = image.cell_map(np.array([[1.0, 2.0], [3.0, np.nan]]), 1, 3, ".1f", (30, 50))
    assert cells.shape == (60, 100, 3)
    assert cells[::30, ::50].tolist() == map_colours(np.array([[0, 0.5], [1, np.nan]])).tolist()
    for row, column in np.ndindex(2, 2):
        cell = cells[30 * row : 30 * row + 30, 50 * column : 50 * column + 50].reshape(-1, 3)
        assert len(np.unique(cell, axis=0)) > 1, "a number is written into it"
    assert image.cell_map(np.full((1, 2), 5.0), 5.0, 5.0, ".0f", (20, 30)).shape == (20, 60, 3)


def test_a_scale_bar_goes_from_one_end_of_the_colours_to_the_other():
    row = image.scale_bar(0, 10, ".0f", "dB")[8].astype(int)
    for end in INFERNO[0], INFERNO[-1]:
        assert (np.abs(row - end).sum(1) == 0).any()


def test_an_outline_lies_inside_its_box(picture):
    sheet = np.zeros((20, 30, 3), np.uint8)
    image.outline(sheet, (2, 3, 18, 27), [(0, YELLOW)])
    rows, columns = np.nonzero((sheet == YELLOW).all(-1))
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == (2, 3, 17, 26) and len(rows) == 2 * 24 + 2 * 14
    tiny = picture.copy()
    image.outline(tiny, (0, 0, 1, 1), [(0, BLACK)])
    assert (tiny == picture).all(), "no room for a line"


def test_a_tint_is_a_weighted_mean():
    found = image.tinted(np.full((2, 4, 3), 100, np.uint8), np.array([[0.0, 1.0]]), 0.25)
    expected = 75 + np.array([SPECTRUM[0], SPECTRUM[-1]]) / 4
    assert np.abs(found[:, ::2] - expected).max() <= 1 and (found[:, ::2] == found[:, 1::2]).all()


def test_tiles_stand_in_rows_of_three_under_a_title(picture):
    sheet = image.tile_sheet([(picture, f"caption {i}") for i in range(4)], "a title " * 50)
    assert sheet.shape == (12 + 22 + 12 + 2 * (10 + 22 + 12), 12 + 3 * (20 + 12), 3)
    for row, column in ((0, 0), (0, 1), (0, 2), (1, 0)):
        top, left = 40 + row * 44, 12 + column * 32
        assert (sheet[top : top + 10, left : left + 20] == picture).all()
