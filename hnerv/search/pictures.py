"""Hits as pictures: a contact sheet, and the scores of a frame laid over it. Only frames that are shown are decoded.

H W frame pixels, N frames, P patches.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hnerv.codec import BitstreamFile, is_container, play, play_file
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.runs import chunks_of
from hnerv.runs.opening import open_checkpoint
from hnerv.search.index import Index
from hnerv.search.ranking import Hit, z_scores
from hnerv.search.report import patch_list
from hnerv.timeline import time_code

TILE_WIDTH = 480
COLUMNS = 3
_MARGIN, _LINE, _FONT = 12, 22, 15
_PAPER, _INK, _FRAME = (24, 24, 26), (235, 235, 235), (255, 214, 0)
_BOLD = ((0, (0, 0, 0)), (1, _FRAME), (2, _FRAME), (3, _FRAME), (4, (0, 0, 0)))
_THIN = ((0, (0, 0, 0)), (1, _INK), (2, (0, 0, 0)))
"""Outlines, from the edge of a patch inwards: (pixels from it, colour)."""
_RAMP = np.array([[20, 40, 120], [30, 120, 180], [90, 190, 140], [245, 215, 80], [230, 70, 40]], dtype=np.float64)
"""Colours from the least to the greatest score of the video."""


def decode_frames(path: Path, frames: Sequence[int], device: torch.device) -> dict[int, np.ndarray]:
    """{frame: (H, W, 3) uint8} of a .hnerv file, a checkpoint or a run in segments; only what they need is read."""
    wanted = sorted(set(frames))
    if is_container(path):
        return dict(zip(wanted, play_file(BitstreamFile(path), wanted, device), strict=True))
    found: dict[int, np.ndarray] = {}
    for chunk in chunks_of(path):
        inner = [frame for frame in wanted if chunk.holds(frame)]
        if inner:
            model = open_checkpoint(chunk.path).model.eval()
            model = model.to(device, memory_format=torch.channels_last)
            pictures = play(model, [frame - chunk.first for frame in inner])
            found |= dict(zip(inner, pictures, strict=True))
    return found


def contact_sheet(path: Path, index: Index, hits: Sequence[Hit], title: str, device: torch.device) -> None:
    """Writes the frames of the hits as a PNG file, best first, the patch of each outlined, others of it thinly.

    Raises UserError.
    """
    contact_sheet_across(path, [("", index, hit) for hit in hits], title, device)


def contact_sheet_across(path: Path, hits: Sequence[tuple[str, Index, Hit]], title: str, device: torch.device) -> None:
    """`contact_sheet` of hits in several models, each with the name that it is to bear. Raises UserError."""
    wanted: dict[Path, list[int]] = {}
    for _, index, hit in hits:
        wanted.setdefault(index.path, []).append(hit.frame)
    pictures = {model: decode_frames(model, frames, device) for model, frames in wanted.items()}
    tiles = []
    for number, (name, index, hit) in enumerate(hits, start=1):
        grid = index.scene.grid
        image, scale = _scaled(pictures[index.path][hit.frame])
        for patch in hit.also:
            _outline(image, grid.origin_of(patch), grid.patch_size, scale, _THIN)
        _outline(image, grid.origin_of(hit.patch), grid.patch_size, scale)
        text = f"{number}. {name and f'{name}, '}{time_code(index.scene.clock.seconds(hit.frame))}, frame {hit.frame}"
        others = f", also {patch_list(hit)}" if hit.also else ""
        tiles.append((image, f"{text}, patch {hit.patch}: {hit.score:.4f}, z {hit.z:.2f}{others}"))
    _save(path, _sheet(tiles, title))


def heat_map(path: Path, index: Index, scores: np.ndarray, title: str, device: torch.device) -> None:
    """Writes the frame of the best patch as a PNG file, each patch coloured by its score (N, P). Raises UserError.

    The colours span the scores of the whole video, so that a frame's place among the others shows too.
    """
    scene = index.scene
    frame, _ = np.unravel_index(scores.argmax(), scores.shape)
    image, scale = _scaled(decode_frames(index.path, [int(frame)], device)[int(frame)], 2 * TILE_WIDTH)
    low, high = float(scores.min()), float(scores.max())
    share = (scores[frame] - low) / (high - low) if high > low else np.zeros_like(scores[frame])
    cells = _colours(share).reshape(scene.rows, scene.cols, 3)
    tint = Image.fromarray(cells).resize(image.size, Image.Resampling.NEAREST)
    image = Image.blend(image, tint, 0.45)
    pen, z = ImageDraw.Draw(image), z_scores(scores)
    for patch in range(scene.grid.patches):
        top, left = (round(scale * side) for side in scene.grid.origin_of(patch))
        text = f"{patch}: {scores[frame, patch]:.4f}, z {z[frame, patch]:.2f}"
        pen.text((left + 8, top + 6), text, font=_font(), fill=_INK, stroke_width=2, stroke_fill=(0, 0, 0))
    _outline(image, scene.grid.origin_of(int(scores[frame].argmax())), scene.grid.patch_size, scale)
    time = time_code(scene.clock.seconds(int(frame)))
    caption = f"{time}, frame {frame}; colour scale of this video: {low:.4f} to {high:.4f}"
    sheet = _sheet([(image, caption)], title)
    _legend(sheet)
    _save(path, sheet)


def _scaled(picture: np.ndarray, width: int = TILE_WIDTH) -> tuple[Image.Image, float]:
    """(H, W, 3) uint8 -> image of `width`, and what a length was multiplied by."""
    height, own = picture.shape[:2]
    size = width, max(1, round(height * width / own))
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), width / own


def _outline(
    image: Image.Image,
    origin: tuple[int, int],
    size: tuple[int, int],
    scale: float,
    lines: Sequence[tuple[int, tuple[int, int, int]]] = _BOLD,
) -> None:
    """A bright frame between two dark ones, to be seen on any picture; it lies inside the patch."""
    top, left, bottom, right = (round(scale * v) for v in (*origin, origin[0] + size[0], origin[1] + size[1]))
    pen = ImageDraw.Draw(image)
    for inset, colour in lines:
        box = left + inset, top + inset, right - 1 - inset, bottom - 1 - inset
        if box[2] > box[0] and box[3] > box[1]:
            pen.rectangle(box, outline=colour)


def _sheet(tiles: Sequence[tuple[Image.Image, str]], title: str) -> Image.Image:
    """Images of one width and their captions under a title."""
    cols = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // cols)
    width, height = tiles[0][0].width, max(image.height for image, _ in tiles)
    step = width + _MARGIN, height + _LINE + _MARGIN
    top = _MARGIN + _LINE
    sheet = Image.new("RGB", (_MARGIN + cols * step[0], top + _MARGIN + rows * step[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 2), _clipped(title, sheet.width - 2 * _MARGIN), font=_font(), fill=_FRAME)
    for number, (image, caption) in enumerate(tiles):
        row, col = divmod(number, cols)
        left, upper = _MARGIN + col * step[0], top + _MARGIN // 2 + row * step[1]
        sheet.paste(image, (left, upper))
        pen.text((left, upper + height + 2), _clipped(caption, width), font=_font(), fill=_INK)
    return sheet


def _legend(sheet: Image.Image) -> None:
    """The ramp of colours in the lower right corner."""
    bar = Image.fromarray(_colours(np.linspace(0, 1, 200))[None]).resize((200, _LINE // 2))
    sheet.paste(bar, (sheet.width - 200 - _MARGIN, sheet.height - _MARGIN - _LINE + 4))


def _colours(share: np.ndarray) -> np.ndarray:
    """Shares (M,) in [0, 1] -> (M, 3) uint8."""
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(share, stops, channel) for channel in _RAMP.T], -1).round().astype(np.uint8)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT)


def _clipped(text: str, width: int) -> str:
    """As much of one line as fits into `width` pixels."""
    text = " ".join(text.split())
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _save(path: Path, image: Image.Image) -> None:
    data = io.BytesIO()
    image.save(data, "PNG")
    try:
        with replacing(path) as file:
            file.write(data.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another path or free disk space") from error
