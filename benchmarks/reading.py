"""Compare the two readers of video files, PyAV and decord, on H.264 in MP4: time of load_video, and equal pixels.

    python benchmarks/reading.py --frames 600 --size 1080x1920 --rounds 7

The file is Big Buck Bunny, played forwards and backwards, scaled to --size. Each round reads it once with each reader,
in a new process each time. The time is that of load_video without imports, the ratio the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from statistics import median

from hnerv.data.video.sources import clip_path
from hnerv.geometry import parse_size

READ = """
import sys, time
from hnerv.data.video import load_video
import torch
start = time.perf_counter()
video = load_video(sys.argv[1])
print(time.perf_counter() - start, video.reader, video.digest)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--size", default="1080x1920", metavar="HxW")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bunny.mp4"
        write_video(path, args.frames, *parse_size(args.size, "--size"))
        rounds = [{reader: measure(path, reader) for reader in ("pyav", "decord")} for _ in range(args.rounds)]
    if len({digest for times in rounds for _, digest in times.values()}) > 1:
        sys.exit("the readers gave different pixels: not comparable")
    for reader in ("pyav", "decord"):
        times = sorted(times[reader][0] for times in rounds)
        print(f"{reader:6} {median(times):.2f} s ({times[0]:.2f} to {times[-1]:.2f})")
    print(f"decord / pyav {median(times['decord'][0] / times['pyav'][0] for times in rounds):.2f}")


def write_video(path: Path, frames: int, height: int, width: int) -> None:
    """Write the clip forwards and backwards until there are enough frames."""
    import av

    with av.open(str(clip_path("bunny"))) as source:
        pictures = [frame.reformat(width, height, "yuv420p") for frame in source.decode(video=0)]
    pictures += pictures[::-1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "22", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            picture = pictures[number % len(pictures)]
            picture.pts, picture.time_base, picture.pict_type = number, Fraction(1, 24), 0
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def measure(path: Path, reader: str) -> tuple[float, str]:
    """Seconds of load_video, and the digest of the pixels. Exits if the file was read by another reader."""
    environment = os.environ | {"HNERV_READER": reader}
    done = subprocess.run(
        [sys.executable, "-c", READ, path], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    time, used, digest = done.stdout.split()
    if used != reader:
        sys.exit(f"{reader}: the file was read by {used}: not comparable")
    return float(time), digest


if __name__ == "__main__":
    main()
