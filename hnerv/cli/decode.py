"""`hnerv decode`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hnerv.cli import add_device, add_model
from hnerv.errors import UserError
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add_model(parser)
    add = parser.add_argument
    output = "NAME.mp4 or NAME.mov (H.264, for viewing only), NAME.mkv (FFV1, lossless) or a folder (PNG, lossless)"
    add("-o", "--output", type=Path, required=True, metavar="PATH", help=output)
    frames = "frame range START:STOP:STEP, with their distances in time; empty: all"
    add("--frames", default="", metavar="A:B:S", help=frames)
    add("--patch", default="", metavar="P,P", help="decode only these patches, numbered row-wise from 0")
    add("--overwrite", action="store_true", help="replace an existing file, or all frames in a folder")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Decode frame by frame into the output. Raises UserError, if possible before anything is decoded."""
    import time

    import hnerv
    from hnerv.data.video import slice_positions

    video = hnerv.open(args.path, args.device)
    frames = slice_positions(args.frames, len(video))
    if not frames:
        raise UserError(f"--frames {args.frames!r} selects none of the {len(video)} frames: pass a wider range")
    patches = parse_patches(args.patch, video.num_patches)
    outputs = {
        patch: patch_path(args.output, patch) if len(patches) > 1 else args.output for patch in patches or (None,)
    }
    for patch, path in outputs.items():
        video.check_output(path, patch, args.overwrite)
    start = time.perf_counter()
    for patch, path in outputs.items():
        video.save(path, frames, patch, args.overwrite)
    seconds = time.perf_counter() - start
    height, width = video.patch_size if patches else video.shape[1:3]
    places = ", ".join(map(str, outputs.values()))
    print(f"{len(frames)} frames of {height}x{width} decoded and written to {places} in {seconds:.1f} s")


def parse_patches(text: str, count: int) -> list[int]:
    """'1,3' -> [1, 3]. Raises UserError for anything else than patch numbers."""
    words = text.split(",") if text else []
    if not all(word.isascii() and word.isdecimal() and int(word) < count for word in words):
        raise UserError(f"--patch {text!r} must be a list of patches from 0 to {count - 1}, as in 1,3")
    return list(dict.fromkeys(map(int, words)))


def patch_path(output: Path, patch: int) -> Path:
    """kitchen.mp4 -> kitchen_p3.mp4: the file, or folder, of one of several patches."""
    return output.with_name(f"{output.stem}_p{patch}{output.suffix}")
