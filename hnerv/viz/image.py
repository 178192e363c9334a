"""Pictures, uint8 arrays (H, W, 3): captions, colour scales, sheets, and their bytes as PNG, GIF and WebP.

Pillow alone, because a training run draws them at every evaluation.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hnerv.viz.colour import BLACK, CHALK, DARK, INK, SPECTRUM, WHITE, YELLOW, map_colours

LARGEST, SMALLEST = 320, 192
"""Pixels of the longer side of a frame within a picture; small frames grow by a factor, so that captions fit."""
FONT_SIZE, MARGIN = 12, 6
ERROR_TOP = 0.1
"""Absolute difference, as a share of the value range, at the end of the scale of an error map."""

THICK = ((0, BLACK), (1, YELLOW), (2, YELLOW), (3, YELLOW), (4, BLACK))
THIN = ((0, BLACK), (1, CHALK), (2, BLACK))
"""Outlines as (pixels inside the box, colour): a bright line between dark ones stands out on any picture."""

TILE_COLUMNS, TILE_GAP, TILE_LINE, TILE_FONT = 3, 12, 22, 15
"""Layout of a sheet of tiles."""


class Encoded(NamedTuple):
    """A picture as TensorBoard stores it: `data` is the content of a PNG or GIF file."""

    height: int
    width: int
    data: bytes


def png(picture: np.ndarray, compress_level: int = 3) -> Encoded:
    """(H, W, 3) -> PNG. The default level is fast; Pillow's own, 6, gives slightly smaller files."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=compress_level)
    return Encoded(*picture.shape[:2], file.getvalue())


def webp_uri(picture: np.ndarray, quality: int) -> str:
    """(H, W, 3) -> data URI of a lossy WebP file, quality 0 to 100."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def gif(pictures: Sequence[np.ndarray], fps: float) -> Encoded:
    """Pictures of one size -> a looping animation. All share one palette, made from the first, middle and last."""
    samples = np.concatenate([pictures[i][::2, ::2] for i in (0, len(pictures) // 2, -1)])
    palette = Image.fromarray(samples).quantize(256, Image.Quantize.MEDIANCUT)
    frames = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    file = io.BytesIO()
    frames[0].save(
        file, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, optimize=False
    )
    return Encoded(*pictures[0].shape[:2], file.getvalue())


def shown_scale(height: int, width: int) -> float:
    """Factor that shows a frame within a picture: below 1 down to LARGEST, else the integer that reaches SMALLEST."""
    longer = max(height, width)
    return LARGEST / longer if longer > LARGEST else float(max(1, -(-SMALLEST // longer)))


def shown_frame(frame: np.ndarray) -> np.ndarray:
    """A frame as it appears within a picture: averaged where it shrinks, in blocks where it grows."""
    scale = shown_scale(*frame.shape[:2])
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(frame).resize(size, method))


def resized(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture at `width` pixels with its aspect ratio kept, resampled smoothly (Lanczos)."""
    size = width, max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def error_map(truth: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Absolute difference, mean of the channels; from ERROR_TOP on, it has the brightest colour."""
    return map_colours(np.abs(truth.astype(np.float32) - rgb).mean(2) / 255 / ERROR_TOP)


def captioned(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """The picture with lines of text above it, on paper wide enough for both."""
    font = _font()
    width = max([picture.shape[1], *(round(font.getlength(line)) + 2 * MARGIN for line in lines)])
    top = len(lines) * (FONT_SIZE + 4) + MARGIN
    sheet = Image.new("RGB", (width, top + picture.shape[0]), WHITE)
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        pen.text((MARGIN, 3 + i * (FONT_SIZE + 4)), line, INK, font)
    sheet.paste(Image.fromarray(picture), (0, top))
    return np.asarray(sheet)


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """In a row with a margin between them, their lower edges aligned."""
    height = max(picture.shape[0] for picture in pictures)
    cells = []
    for picture in pictures:
        padding = ((height - picture.shape[0], 0), (0, MARGIN if len(cells) < len(pictures) - 1 else 0), (0, 0))
        cells.append(np.pad(picture, padding, constant_values=255))
    return np.concatenate(cells, axis=1)


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """One above the other, each with a margin below it, their left edges aligned."""
    width = max(picture.shape[1] for picture in pictures)
    padding = [((0, MARGIN), (0, width - picture.shape[1]), (0, 0)) for picture in pictures]
    return np.concatenate([np.pad(p, pad, constant_values=255) for p, pad in zip(pictures, padding, strict=True)])


def scale_bar(low: float, high: float, form: str, unit: str = "") -> np.ndarray:
    """The colours from `low` to `high`, with both ends written."""
    bar = np.tile(map_colours(np.linspace(0, 1, 120))[None], (FONT_SIZE, 1, 1))
    font, labels = _font(), (format(low, form), f"{high:{form}} {unit}".rstrip())
    left = round(font.getlength(labels[0])) + 2 * MARGIN
    sheet = Image.new("RGB", (left + 120 + MARGIN + round(font.getlength(labels[1])) + MARGIN, FONT_SIZE + 6), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 1), labels[0], INK, font)
    sheet.paste(Image.fromarray(bar), (left, 3))
    pen.text((left + 120 + MARGIN, 1), labels[1], INK, font)
    return np.asarray(sheet)


def cell_map(values: np.ndarray, low: float, high: float, form: str, cell: tuple[int, int]) -> np.ndarray:
    """values (rows, columns) -> a cell of (height, width) pixels each, its value written into it."""
    share = (values - low) / max(high - low, 1e-9)
    sheet = Image.fromarray(np.repeat(np.repeat(map_colours(share), cell[0], axis=0), cell[1], axis=1))
    pen = ImageDraw.Draw(sheet)
    for (row, column), value in np.ndenumerate(values):
        text = format(value, form) if np.isfinite(value) else "-"
        middle = ((column + 0.5) * cell[1], (row + 0.5) * cell[0])
        pen.text(middle, text, INK if share[row, column] > 0.6 else WHITE, _font(), anchor="mm")
    return np.asarray(sheet)


def outline(picture: np.ndarray, box: tuple[int, int, int, int], lines: Sequence[tuple[int, tuple]] = THICK) -> None:
    """Draws lines of one pixel inside the box (top, left, bottom, right; the last two excluded), in place."""
    for inset, colour in lines:
        top, left, bottom, right = box[0] + inset, box[1] + inset, box[2] - 1 - inset, box[3] - 1 - inset
        if top < bottom and left < right:
            picture[[top, bottom], left : right + 1] = colour
            picture[top : bottom + 1, [left, right]] = colour


def tinted(picture: np.ndarray, share: np.ndarray, weight: float = 0.45) -> np.ndarray:
    """The picture mixed with the SPECTRUM colours of `share` (rows, columns), values in [0, 1], stretched over it."""
    tint = Image.fromarray(map_colours(share, SPECTRUM)).resize(picture.shape[1::-1], Image.Resampling.NEAREST)
    return np.array(Image.blend(Image.fromarray(picture), tint, weight))


def labelled(picture: np.ndarray, labels: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """The picture with texts at (top, left), outlined so that they read on any ground."""
    sheet = Image.fromarray(picture)
    pen = ImageDraw.Draw(sheet)
    for top, left, text in labels:
        pen.text((left, top), text, CHALK, _font(TILE_FONT), stroke_width=2, stroke_fill=BLACK)
    return np.array(sheet)


def tile_sheet(tiles: Sequence[tuple[np.ndarray, str]], title: str) -> np.ndarray:
    """Pictures of one width, each with its caption below, in rows under a title, on dark paper."""
    columns = min(TILE_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = tiles[0][0].shape[1], max(len(picture) for picture, _ in tiles)
    step = width + TILE_GAP, height + TILE_LINE + TILE_GAP
    top = TILE_GAP + TILE_LINE
    sheet = Image.new("RGB", (TILE_GAP + columns * step[0], top + TILE_GAP + rows * step[1]), DARK)
    pen, font = ImageDraw.Draw(sheet), _font(TILE_FONT)
    pen.text((TILE_GAP, TILE_GAP - 2), _clipped(title, sheet.width - 2 * TILE_GAP), YELLOW, font)
    for number, (picture, caption) in enumerate(tiles):
        row, column = divmod(number, columns)
        left, upper = TILE_GAP + column * step[0], top + TILE_GAP // 2 + row * step[1]
        sheet.paste(Image.fromarray(picture), (left, upper))
        pen.text((left, upper + height + 2), _clipped(caption, width), CHALK, font)
    return np.array(sheet)


def add_spectrum(sheet: np.ndarray, width: int = 200) -> None:
    """Draws the SPECTRUM colours into the lower right corner of a sheet of tiles, in place."""
    top = len(sheet) - TILE_GAP - TILE_LINE + 4
    sheet[top : top + TILE_LINE // 2, -width - TILE_GAP : -TILE_GAP] = map_colours(np.linspace(0, 1, width), SPECTRUM)


def _clipped(text: str, width: int) -> str:
    """As much of one line as fits into `width` pixels."""
    text, font = " ".join(text.split()), _font(TILE_FONT)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


@functools.cache
def _font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
