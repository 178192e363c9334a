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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIZE, FPS, SCENE = (160, 320), 25, 400
"""Pixels of a frame, frames a second, frames of a scene."""


class Cost(NamedTuple):
    """Of a command: wall seconds, and the greatest resident memory of its process, in GB."""

    seconds: float
    memory: float


def main() -> None:
    """Makes the video, runs the commands, prints a table."""
    ask = parse()
    with tempfile.TemporaryDirectory(dir=ask.folder) as name:
        folder = Path(name)
        video = folder / "long.mkv"
        write_video(video, ask.frames)
        rows = list(commands(ask, folder, video))
        file = folder / "long.hnerv"
        seconds = [decode_second(file, start) for start in starts(ask.frames, 20)]
        print(f"\n{ask.frames} frames of {SIZE[0]}x{SIZE[1]}, segments of {ask.segment_frames}, {ask.epochs} epochs")
        print(f"file {file.stat().st_size:,} bytes; index {index_bytes(file):,} bytes")
        for label, cost in rows:
            print(f"{label:40}{cost.seconds:10.1f} s{cost.memory:8.2f} GB")
        print(f"decoding one second of video, 20 draws: mean {np.mean(seconds):.3f} s, maximum {max(seconds):.3f} s")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000, help="frames of the video (10000)")
    parser.add_argument("--segment-frames", type=int, default=250, help="frames of a segment (250)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each segment (2)")
    parser.add_argument("--modelsize", default="0.2", help="parameters of each segment, in millions (0.2)")
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder (default: the system's)")
    return parser.parse_args()


def write_video(path: Path, count: int) -> None:
    """Waves that drift, other ones every SCENE frames; a keyframe every ten seconds at most."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.options = "yuv420p", {"preset": "ultrafast", "crf": "20"}
        for frame in pictures(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def pictures(count: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    for k in range(count):
        draw = np.random.default_rng(k // SCENE)
        waves = [np.sin((a * x + b * y) / 20 + 0.1 * k) for a, b in draw.uniform(-2, 2, (3, 2))]
        yield (127 + 100 * np.stack(waves, -1)).astype(np.uint8)


def commands(ask: argparse.Namespace, folder: Path, video: Path) -> Iterator[tuple[str, Cost]]:
    """What a user runs, in order."""
    train = [
        ROOT / "train_patch_dual.py", "--exp-id", "long", "--output", folder, "--data", video, "--preset", "demo",
        "--crop", "", "--resize", "", "--modelsize", ask.modelsize, "--epochs", ask.epochs, "--optimizer", "adam",
        "--pixel-loss-warmup-epochs", 1, "--checkpoint-freq", ask.epochs, "--eval-freq", 0, "--images-freq", 0,
        "--no-projector", "--clip-weights", "random", "--segment-frames", ask.segment_frames,
    ]  # fmt: skip
    hnerv = ["-c", "from hnerv.cli import main; main()"]
    file, embeddings = folder / "long.hnerv", folder / "e.safetensors"
    middle = ask.frames // 2
    yield "train", measured(train)
    yield "train again, nothing left to train", measured(train)
    yield "encode --no-measure", measured([*hnerv, "encode", folder / "long", "-o", file, "--no-measure"])
    yield "info", measured([*hnerv, "info", file])
    part = [*hnerv, "decode", file, "-o", folder / "part.mkv", "--frames", f"{middle}:{middle + FPS}"]
    yield "decode one second", measured(part)
    yield "decode all to .mp4", measured([*hnerv, "decode", file, "-o", folder / "all.mp4"])
    yield "embed", measured([*hnerv, "embed", file, "-o", embeddings])
    search = [*hnerv, "search", file, "--embedding", f"{embeddings}:{middle},3", "--json"]
    yield "search, builds the index", measured(search)
    yield "search again", measured(search)


def measured(words: list) -> Cost:
    """Runs a command of this interpreter to its end; raises CalledProcessError where it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *map(str, words)], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.stderr.write(log.read().decode())
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return Cost(time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9)


def starts(frames: int, count: int) -> list[int]:
    """First frames of seconds, drawn."""
    return random.Random(0).sample(range(frames - FPS), count)


def decode_second(file: Path, start: int) -> float:
    """Seconds from opening the file to the last of a second's pictures, the interpreter's imports left out."""
    import torch

    from hnerv.codec import BitstreamFile, play_file

    begin = time.perf_counter()
    count = sum(1 for _ in play_file(BitstreamFile(file), range(start, start + FPS), torch.device("cpu")))
    assert count == FPS
    return time.perf_counter() - begin


def index_bytes(file: Path) -> int:
    """Of the segments' index."""
    from hnerv.codec import BitstreamFile

    return BitstreamFile(file).index.size


if __name__ == "__main__":
    main()
