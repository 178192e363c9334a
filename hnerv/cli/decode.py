"""`hnerv decode`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.cli import add_bitstream, add_device
from hnerv.errors import UserError
from hnerv.flags import Parser

if TYPE_CHECKING:
    import numpy as np

    from hnerv.data.video import FrameWriter


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add_bitstream(parser)
    add = parser.add_argument
    output = "NAME.mp4 or NAME.mov (H.264, for viewing only), NAME.mkv (FFV1, lossless) or a folder (PNG, lossless)"
    add("-o", "--output", type=Path, required=True, metavar="PATH", help=output)
    frames = "frame range START:STOP:STEP, with their distances in time; empty: all"
    add("--frames", default="", metavar="A:B:S", help=frames)
    add("--patch", default="", metavar="P,P", help="decode only these patches, numbered row-wise from 0")
    add("--overwrite", action="store_true", help="replace an existing file, or all frames in a folder")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Decodes frame by frame into the output. Raises UserError before anything is decoded, where it can."""
    import time

    from hnerv.codec import BitstreamFile, frame_times, play_file
    from hnerv.command import pick_device
    from hnerv.data.video import check_target, open_writer, slice_positions

    device = pick_device(args.device)
    file = BitstreamFile(args.file)
    frames = slice_positions(args.frames, file.frames)
    if not frames:
        raise UserError(f"--frames {args.frames!r} selects none of the {file.frames} frames: pass a wider range")
    grid = file.grid
    patches = parse_patches(args.patch, grid.patches)
    size = grid.patch_size if patches else (grid.height, grid.width)
    outputs = {
        patch: patch_path(args.output, patch) if len(patches) > 1 else args.output for patch in patches or (None,)
    }
    for path in outputs.values():
        check_target(path, size, args.overwrite)
    start, times = time.perf_counter(), frame_times(file, frames)
    for patch, path in outputs.items():
        writer = open_writer(path, size, times, display=file.display, overwrite=args.overwrite, numbers=frames)
        save(play_file(file, frames, device, patch), writer, path.name, len(frames))
    seconds = time.perf_counter() - start
    places = ", ".join(map(str, outputs.values()))
    print(f"{len(frames)} frames of {size[0]}x{size[1]} decoded and written to {places} in {seconds:.1f} s")


def save(pictures: Iterable[np.ndarray], opened: AbstractContextManager[FrameWriter], name: str, count: int) -> None:
    """Writes the pictures (H, W, 3) as they come."""
    from tqdm import tqdm

    with opened as writer:
        for picture in tqdm(pictures, desc=name, total=count, unit="frame", disable=None):
            writer.write(picture)


def parse_patches(text: str, count: int) -> list[int]:
    """'1,3' -> [1, 3]. Raises UserError for anything else than patch numbers."""
    words = text.split(",") if text else []
    if not all(word.isascii() and word.isdecimal() and int(word) < count for word in words):
        raise UserError(f"--patch {text!r} must be a list of patches from 0 to {count - 1}, as in 1,3")
    return list(dict.fromkeys(map(int, words)))


def patch_path(output: Path, patch: int) -> Path:
    """kitchen.mp4 -> kitchen_p3.mp4: the file, or folder, of one of several patches."""
    return output.with_name(f"{output.stem}_p{patch}{output.suffix}")
