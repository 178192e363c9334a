"""Hits as pictures: a contact sheet, and the scores of a frame laid over it. Only frames that are shown are decoded.

H W frame pixels, N frames, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hnerv.codec import BitstreamFile, is_container, play, play_file
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.runs import chunks_of
from hnerv.runs.opening import open_checkpoint
from hnerv.search.index import Index
from hnerv.search.ranking import Hit, z_scores
from hnerv.search.report import patch_list
from hnerv.timeline import time_code
from hnerv.viz.image import THIN, add_spectrum, labelled, outline, png, resized, tile_sheet, tinted

TILE_WIDTH = 480


def decode_frames(path: Path, frames: Sequence[int], device: torch.device) -> dict[int, np.ndarray]:
    """{frame: (H, W, 3) uint8} of a .hnerv file, a checkpoint or a run folder; only what they need is read."""
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
    """Writes the frames of the hits as a PNG file, best first, with the patch of each outlined and others thinly.

    Raises UserError.
    """
    contact_sheet_across(path, [("", index, hit) for hit in hits], title, device)


def contact_sheet_across(path: Path, hits: Sequence[tuple[str, Index, Hit]], title: str, device: torch.device) -> None:
    """`contact_sheet` of hits in several models, each with the name that its caption shows. Raises UserError."""
    wanted: dict[Path, list[int]] = {}
    for _, index, hit in hits:
        wanted.setdefault(index.path, []).append(hit.frame)
    frames = {model: decode_frames(model, numbers, device) for model, numbers in wanted.items()}
    tiles = []
    for number, (name, index, hit) in enumerate(hits, start=1):
        picture = resized(frames[index.path][hit.frame], TILE_WIDTH)
        for patch in hit.also:
            outline(picture, _box(index, patch, TILE_WIDTH), THIN)
        outline(picture, _box(index, hit.patch, TILE_WIDTH))
        text = f"{number}. {name and f'{name}, '}{time_code(index.scene.clock.seconds(hit.frame))}, frame {hit.frame}"
        others = f", also {patch_list(hit)}" if hit.also else ""
        tiles.append((picture, f"{text}, patch {hit.patch}: {hit.score:.4f}, z {hit.z:.2f}{others}"))
    _write(path, tile_sheet(tiles, title))


def heat_map(path: Path, index: Index, scores: np.ndarray, title: str, device: torch.device) -> None:
    """Writes the frame of the best patch as a PNG file, each patch coloured by its score (N, P). Raises UserError.

    The colours span the scores of the full video, so that they also show how the frame compares with the others.
    """
    scene, width = index.scene, 2 * TILE_WIDTH
    frame = int(np.unravel_index(scores.argmax(), scores.shape)[0])
    low, high = float(scores.min()), float(scores.max())
    share = (scores[frame] - low) / max(high - low, 1e-9)
    picture = resized(decode_frames(index.path, [frame], device)[frame], width)
    picture = tinted(picture, share.reshape(scene.rows, scene.cols))
    labels = []
    for patch, z in enumerate(z_scores(scores)[frame]):
        top, left, *_ = _box(index, patch, width)
        labels.append((top + 6, left + 8, f"{patch}: {scores[frame, patch]:.4f}, z {z:.2f}"))
    picture = labelled(picture, labels)
    outline(picture, _box(index, int(scores[frame].argmax()), width))
    time = time_code(scene.clock.seconds(frame))
    caption = f"{time}, frame {frame}; colour scale of this video: {low:.4f} to {high:.4f}"
    sheet = tile_sheet([(picture, caption)], title)
    add_spectrum(sheet)
    _write(path, sheet)


def _box(index: Index, patch: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a patch in a frame that is shown `width` pixels wide."""
    grid = index.scene.grid
    top, left = grid.origin_of(patch)
    scale = width / index.scene.width
    bottom, right = top + grid.patch_size[0], left + grid.patch_size[1]
    return round(scale * top), round(scale * left), round(scale * bottom), round(scale * right)


def _write(path: Path, picture: np.ndarray) -> None:
    try:
        with replacing(path) as file:
            file.write(png(picture, compress_level=6).data)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another path or free disk space") from error
