"""Numbers as pictures, and pictures as bytes: colour maps, captions, PNG and GIF. Pillow alone, to draw them fast.

Pictures are uint8 arrays (H, W, 3).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LARGEST = 320
"""Pixels of the longer side of a frame inside a picture: more is scaled down."""
SMALLEST = 192
"""Frames under it are enlarged by a whole number, so that captions fit."""

FONT_SIZE = 12
MARGIN = 6
PAPER, INK, MARK = (255, 255, 255), (20, 20, 20), (213, 94, 0)
MISSING = (200, 200, 200)
ANCHORS = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Dark violet over red to pale yellow: the lightness rises evenly, so it reads with any colour vision, and printed."""


class Encoded(NamedTuple):
    """A picture as TensorBoard stores it: `data` are the bytes of a PNG or GIF file."""

    height: int
    width: int
    data: bytes


def png(picture: np.ndarray) -> Encoded:
    """(H, W, 3) -> PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=3)
    return Encoded(*picture.shape[:2], file.getvalue())


def gif(pictures: Sequence[np.ndarray], fps: float) -> Encoded:
    """Pictures of one size -> an animation that repeats. All share the palette of their first, middle and last."""
    some = np.concatenate([pictures[i][::2, ::2] for i in (0, len(pictures) // 2, -1)])
    palette = Image.fromarray(some).quantize(256, Image.Quantize.MEDIANCUT)
    nearest = _nearest(palette)
    frames = [Image.fromarray(nearest[_at_5_bits(picture)]) for picture in pictures]
    for frame in frames:
        frame.putpalette(palette.getpalette())
    file = io.BytesIO()
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, optimize=False
    )
    return Encoded(*pictures[0].shape[:2], file.getvalue())


def _at_5_bits(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> number of the colour (H, W) among 32 x 32 x 32."""
    red, green, blue = np.moveaxis(picture >> 3, -1, 0).astype(np.uint16)
    return red << 10 | green << 5 | blue


def _nearest(palette: Image.Image) -> np.ndarray:
    """Colour of 5 bits a channel -> index of the palette (32768,): one search for all frames, several times faster."""
    number = np.arange(1 << 15)
    channels = [((number >> shift & 31) << 3 | 4).astype(np.uint8) for shift in (10, 5, 0)]
    every = Image.fromarray(np.stack(channels, axis=-1).reshape(128, 256, 3))
    return np.asarray(every.quantize(palette=palette, dither=Image.Dither.NONE)).ravel()


def colours(share: np.ndarray) -> np.ndarray:
    """Values in [0, 1], any shape, outside clamped -> uint8 (..., 3); grey where not a number."""
    known = np.isfinite(share)
    index = (np.where(known, share, 0).clip(0, 1) * 255).round().astype(int)
    return np.where(known[..., None], _table()[index], np.uint8(MISSING))


@functools.cache
def _table() -> np.ndarray:
    place = np.linspace(0, len(ANCHORS) - 1, 256)
    columns = [np.interp(place, range(len(ANCHORS)), column) for column in zip(*ANCHORS, strict=True)]
    return np.stack(columns, axis=-1).round().astype(np.uint8)


def display_scale(height: int, width: int) -> float:
    """By how much a frame is scaled inside a picture: at most 1/k down to LARGEST, or k up to SMALLEST."""
    longer = max(height, width)
    return LARGEST / longer if longer > LARGEST else float(max(1, -(-SMALLEST // longer)))


def resized(picture: np.ndarray, scale: float) -> np.ndarray:
    """Averaged where it shrinks, in blocks where it grows."""
    size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size, method))


def captioned(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """The picture with lines of text above it, on paper wide enough for both."""
    font = _font()
    width = max([picture.shape[1], *(round(font.getlength(line)) + 2 * MARGIN for line in lines)])
    top = len(lines) * (FONT_SIZE + 4) + MARGIN
    sheet = Image.new("RGB", (width, top + picture.shape[0]), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((MARGIN, 3 + i * (FONT_SIZE + 4)), line, INK, font)
    sheet.paste(Image.fromarray(picture), (0, top))
    return np.asarray(sheet)


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """In a row with a margin between them, their lower edges aligned."""
    height = max(p.shape[0] for p in pictures)
    cells = []
    for picture in pictures:
        cells += [
            np.pad(picture, ((height - picture.shape[0], 0), (0, 0), (0, 0)), constant_values=255),
            np.full((height, MARGIN, 3), 255, np.uint8),
        ]
    return np.concatenate(cells[:-1], axis=1)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One above the other, their left edges aligned."""
    width = max(p.shape[1] for p in pictures)
    return np.concatenate(
        [np.pad(p, ((0, MARGIN), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    )


def scale_bar(low: float, high: float, form: str, unit: str = "") -> np.ndarray:
    """The colours from low to high, with both ends written."""
    bar = np.tile(colours(np.linspace(0, 1, 120))[None], (FONT_SIZE, 1, 1))
    font, words = _font(), (format(low, form), f"{high:{form}} {unit}".rstrip())
    left = round(font.getlength(words[0])) + 2 * MARGIN
    sheet = Image.new("RGB", (left + 120 + MARGIN + round(font.getlength(words[1])) + MARGIN, FONT_SIZE + 6), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 1), words[0], INK, font)
    sheet.paste(Image.fromarray(bar), (left, 3))
    draw.text((left + 120 + MARGIN, 1), words[1], INK, font)
    return np.asarray(sheet)


def cell_map(values: np.ndarray, low: float, high: float, form: str, cell: tuple[int, int]) -> np.ndarray:
    """values (rows, columns) -> a cell of (height, width) pixels each, its value written into it."""
    share = (values - low) / max(high - low, 1e-9)
    sheet = Image.fromarray(np.repeat(np.repeat(colours(share), cell[0], axis=0), cell[1], axis=1))
    draw = ImageDraw.Draw(sheet)
    for (row, column), value in np.ndenumerate(values):
        text = format(value, form) if np.isfinite(value) else "-"
        middle = ((column + 0.5) * cell[1], (row + 0.5) * cell[0])
        draw.text(middle, text, INK if share[row, column] > 0.6 else PAPER, _font(), anchor="mm")
    return np.asarray(sheet)


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
