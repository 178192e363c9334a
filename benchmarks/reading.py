"""Compare the two readers of video files, PyAV and decord, on H.264 in MP4: time of load_video, and equal pixels.

    python benchmarks/reading.py --frames 600 --size 1080x1920 --rounds 7

The file is Big Buck Bunny, there and back, scaled to --size. Each round reads it once with each reader, each time in a
process of its own; the time is that of load_video, imports excluded. The ratio is the median over the rounds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from statistics import median

from common import child_environment

from hnerv.flags import Parser
from hnerv.geometry import parse_size

READERS = ("pyav", "decord")
READ = """
import sys, time
from hnerv.data.video import load_video
import torch
start = time.perf_counter()
video = load_video(sys.argv[1])
print(time.perf_counter() - start, video.reader, video.digest)
"""


def main() -> None:
    parser = Parser(prog="reading.py", description=__doc__)
    parser.add_argument("--frames", type=int, default=600, help="frames of the file (600)")
    parser.add_argument("--size", default="1080x1920", metavar="HxW", help="size of a frame (1080x1920)")
    parser.add_argument("--rounds", type=int, default=7, help="times that each reader reads the file (7)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bunny.mp4"
        write_video(path, args.frames, *parse_size(args.size, "--size"))
        rounds = [{reader: read(path, reader) for reader in READERS} for _ in range(args.rounds)]
    if len({digest for row in rounds for _, digest in row.values()}) > 1:
        sys.exit("the readers return different pixels: their times cannot be compared")
    for reader in READERS:
        times = sorted(row[reader][0] for row in rounds)
        print(f"{reader:6} {median(times):.2f} s ({times[0]:.2f} to {times[-1]:.2f})")
    print(f"decord / pyav {median(row['decord'][0] / row['pyav'][0] for row in rounds):.2f}")


def write_video(path: Path, count: int, height: int, width: int) -> None:
    """`count` frames of the clip, forwards and backwards in turns."""
    import av
    from hnerv.data.video.clips import clip_path

    with av.open(str(clip_path("bunny"))) as source:
        pictures = [frame.reformat(width, height, "yuv420p") for frame in source.decode(video=0)]
    there_and_back = [*pictures, *reversed(pictures)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "22", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(count):
            picture = there_and_back[number % len(there_and_back)]
            picture.pts, picture.time_base, picture.pict_type = number, Fraction(1, 24), 0
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def read(path: Path, reader: str) -> tuple[float, str]:
    """(seconds of load_video, digest of the pixels). Exits if another reader was used."""
    command, environment = [sys.executable, "-c", READ, path], child_environment(HNERV_READER=reader)
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, used, digest = output.split()
    if used != reader:
        sys.exit(f"the file was read by {used} instead of {reader}: install {reader}")
    return float(seconds), digest


if __name__ == "__main__":
    main()
