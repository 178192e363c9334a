"""Pictures of hits: a contact sheet, and a heat map of scores over a frame. Only the frames shown are decoded.

H W frame pixels, N frames, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hnerv.codec import open_stored, play_video
from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.search.hits import SearchHit, patch_list
from hnerv.search.index import Index
from hnerv.search.ranking import z_scores
from hnerv.timeline import time_code
from hnerv.viz.image import THIN, add_spectrum, labelled, outline, png, resized, tile_sheet, tinted

TILE_WIDTH = 480


def decode_frames(path: Path, frames: Sequence[int], device: torch.device) -> dict[int, np.ndarray]:
    """{frame: (H, W, 3) uint8} of a .hnerv file, a checkpoint or a run folder. Only the sections needed are read."""
    wanted = sorted(set(frames))
    return dict(zip(wanted, play_video(open_stored(path), wanted, device), strict=True))


def contact_sheet(path: Path, hits: Sequence[SearchHit], title: str, device: torch.device) -> None:
    """Write the frames of the hits as a PNG file, best first: hit patches outlined, other patches thinly.

    Raises UserError.
    """
    wanted: dict[Path, list[int]] = {}
    for hit in hits:
        wanted.setdefault(hit.index.path, []).append(hit.frame)
    frames = {model: decode_frames(model, numbers, device) for model, numbers in wanted.items()}
    tiles = []
    for number, hit in enumerate(hits, start=1):
        picture = resized(frames[hit.index.path][hit.frame], TILE_WIDTH)
        for patch in hit.also:
            outline(picture, _patch_bounds(hit.index, patch, TILE_WIDTH), THIN)
        outline(picture, _patch_bounds(hit.index, hit.patch, TILE_WIDTH))
        text = f"{number}. {hit.video and f'{hit.video}, '}{hit.time_code}, frame {hit.frame}"
        others = f", also {patch_list(hit)}" if hit.also else ""
        tiles.append((picture, f"{text}, patch {hit.patch}: {hit.score:.4f}, z {hit.z:.2f}{others}"))
    _write_png(path, tile_sheet(tiles, title))


def heat_map(path: Path, index: Index, scores: np.ndarray, title: str, device: torch.device) -> None:
    """Write the frame of the best patch as a PNG file, each patch coloured by its score (N, P). Raises UserError.

    The colour scale spans the scores of the full video, so the colours also rank the frame within the video.
    """
    scene, width = index.scene, 2 * TILE_WIDTH
    frame = int(np.unravel_index(scores.argmax(), scores.shape)[0])
    low, high = float(scores.min()), float(scores.max())
    share = (scores[frame] - low) / max(high - low, 1e-9)
    picture = resized(decode_frames(index.path, [frame], device)[frame], width)
    picture = tinted(picture, share.reshape(scene.rows, scene.cols))
    labels = []
    for patch, z in enumerate(z_scores(scores)[frame]):
        top, left, *_ = _patch_bounds(index, patch, width)
        labels.append((top + 6, left + 8, f"{patch}: {scores[frame, patch]:.4f}, z {z:.2f}"))
    picture = labelled(picture, labels)
    outline(picture, _patch_bounds(index, int(scores[frame].argmax()), width))
    time = time_code(scene.clock.seconds(frame))
    caption = f"{time}, frame {frame}; colour scale of this video: {low:.4f} to {high:.4f}"
    sheet = tile_sheet([(picture, caption)], title)
    add_spectrum(sheet)
    _write_png(path, sheet)


def _patch_bounds(index: Index, patch: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) in pixels of a patch in a frame drawn `width` pixels wide."""
    grid = index.scene.grid
    top, left = grid.origin_of(patch)
    scale = width / index.scene.width
    bottom, right = top + grid.patch_size[0], left + grid.patch_size[1]
    return round(scale * top), round(scale * left), round(scale * bottom), round(scale * right)


def _write_png(path: Path, picture: np.ndarray) -> None:
    try:
        with replacing(path) as file:
            file.write(png(picture, compress_level=6).data)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another path or free disk space") from error
