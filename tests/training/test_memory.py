"""A video that is larger than its share of memory trains in less memory than its frames take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COUNT, HEIGHT, WIDTH = 800, 320, 640
ROOM = 350 << 20
"""Bytes of private memory that a run may take on top of what the imports and a first, small run took."""

PROGRAM = """
import json, re, resource, runpy, sys
from pathlib import Path
from hnerv.data.video import loader

folder, held, room, *words = sys.argv[1:]
loader.IN_MEMORY = int(held)

def run(name, *more):
    sys.argv = ["train_patch_dual.py", "--output", folder, "--exp-id", name, *words, *more, "--max-minutes", "1e-9"]
    try:
        runpy.run_path("train_patch_dual.py", run_name="__main__")
    except SystemExit as end:
        return end.code

assert run("small", "--frames", "0:6") == 124
taken = int(re.search(r"VmData:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(room), -1))
sys.exit(run("large"))
"""


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its frames take 492 MB."""
    import av
    import numpy as np

    path = tmp_path_factory.mktemp("long") / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for i in range(COUNT):
            frame = np.full((HEIGHT * 3 // 2, WIDTH), i % 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "yuv420p")))
        container.mux(stream.encode())
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the test reads Linux's /proc")
@pytest.mark.parametrize("held", [0, 1 << 40], ids=["in a file", "in memory"])
def test_training_takes_less_than_the_frames(tmp_path, flags, long_video, held):
    """Frames held in memory do not fit into what is left, or the limit would show nothing."""
    words = flags(data=long_video, clip_targets=None, clip_weights="random", grid="1x2", batch_size=1, blend_freq=0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, str(held), str(ROOM), *words, "--threads", "1", "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HNERV_CACHE": str(tmp_path / "cache")},
    )
    if held:
        assert done.returncode not in (0, 124) and "memory" in done.stderr.lower(), done.stderr
    else:
        assert done.returncode == 124, done.stderr
    assert COUNT * HEIGHT * WIDTH * 3 > ROOM
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_file()] == []
