"""Time and host memory of every command on a long synthetic video in segments, from training to search.

    python benchmarks/long.py --frames 10000 --segment-frames 250 --epochs 2

The CLIP model has random weights.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import HNERV, ROOT, child_environment, seconds_of

from hnerv.flags import Parser

HEIGHT, WIDTH, FPS, SCENE = 160, 320, 25, 400
"""Pixels of a frame, frames per second, frames of a scene."""


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_video(folder / "long.mkv", args.frames)
        rows = [(label, *run(command)) for label, command in commands(args, folder)]
        file = folder / "long.hnerv"
        seconds = decode_seconds(file, random.Random(0).sample(range(args.frames - FPS), 20))
        print(f"\n{args.frames} frames of {HEIGHT}x{WIDTH}, segments of {args.segment_frames}, {args.epochs} epochs")
        print(f"file {file.stat().st_size:,} bytes; index {index_bytes(file):,} bytes")
        for label, wall, memory in rows:
            print(f"{label:40}{wall:10.1f} s{memory:8.2f} GB")
        print(f"decoding one second of video, 20 draws: mean {np.mean(seconds):.3f} s, maximum {max(seconds):.3f} s")


def parse() -> argparse.Namespace:
    parser = Parser(prog="long.py", description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000, help="frames of the video (10000)")
    parser.add_argument("--segment-frames", type=int, default=250, help="frames of a segment (250)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each segment (2)")
    parser.add_argument("--modelsize", default="0.2", help="parameters of each segment, in millions (0.2)")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder (default: the system's)")
    return parser.parse_args()


def write_video(path: Path, count: int) -> None:
    """Drifting waves, different ones in each scene; a keyframe every ten seconds at most."""
    import av

    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "20"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for k in range(count):
            frequencies = np.random.default_rng(k // SCENE).uniform(-2, 2, (3, 2))
            waves = [np.sin((a * x + b * y) / 20 + 0.1 * k) for a, b in frequencies]
            frame = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def commands(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, list]]:
    """(label, command) of everything that a user runs, in order."""
    file, run, embeddings, middle = folder / "long.hnerv", folder / "long", folder / "e.safetensors", args.frames // 2
    flags = f"""
        --preset demo --crop= --resize= --modelsize {args.modelsize} --epochs {args.epochs} --optimizer adam
        --pixel-loss-warmup-epochs 1 --checkpoint-freq {args.epochs} --eval-freq 0 --images-freq 0 --no-projector
        --clip-weights random --segment-frames {args.segment_frames}
    """
    place = ["--exp-id", "long", "--output", folder, "--data", folder / "long.mkv"]
    train = [sys.executable, ROOT / "train_patch_dual.py", *place, *flags.split()]
    part = [file, "-o", folder / "part.mkv", "--frames", f"{middle}:{middle + FPS}"]
    search = [*HNERV, "search", file, "--embedding", f"{embeddings}:{middle},3", "--json"]
    yield "train", train
    yield "train again, nothing left to train", train
    yield "encode --no-measure", [*HNERV, "encode", run, "-o", file, "--no-measure"]
    yield "info", [*HNERV, "info", file]
    yield "decode one second", [*HNERV, "decode", *part]
    yield "decode all to .mp4", [*HNERV, "decode", file, "-o", folder / "all.mp4"]
    yield "embed", [*HNERV, "embed", file, "-o", embeddings]
    yield "search, builds the index", search
    yield "search again", search


def run(command: list) -> tuple[float, float]:
    """(wall seconds, peak resident memory in GB). Raises CalledProcessError if the command fails."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=child_environment())
        found = []
        seconds = seconds_of(lambda: found.extend(os.wait4(process.pid, 0)))
        _, status, usage = found
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.stderr.write(log.read().decode())
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return seconds, usage.ru_maxrss * 1024 / 1e9


def decode_seconds(file: Path, starts: list[int]) -> list[float]:
    """Seconds to open the file and decode FPS frames from each start, without the imports."""
    import torch

    from hnerv.codec import BitstreamFile, play_video

    def decode(start: int) -> None:
        count = sum(1 for _ in play_video(BitstreamFile(file), range(start, start + FPS), torch.device("cpu")))
        assert count == FPS

    return [seconds_of(lambda start=start: decode(start)) for start in starts]


def index_bytes(file: Path) -> int:
    """Size of the index of segments."""
    from hnerv.codec import BitstreamFile

    return BitstreamFile(file).index.size


if __name__ == "__main__":
    main()
