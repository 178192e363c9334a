"""A cache of targets that two processes share, and that a killed one was writing: never a wrong embedding."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hnerv.data.clip import clip_targets, targets
from hnerv.geometry import PatchGrid

ROOT = Path(__file__).resolve().parents[3]
GRID = PatchGrid(64, 96, 2, 3)
FRAMES = torch.randint(0, 256, (50, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

WRITER = """
import os, sys
from pathlib import Path
from safetensors.torch import load_file
from hnerv.data.clip import targets
from hnerv.data.clip.weights import identify
from hnerv.geometry import PatchGrid

folder, known = Path(sys.argv[1]), load_file(sys.argv[2])["embeddings"]
spec = identify("random", "ViT-B-32", 0)
made = targets.Targets(known, spec.source, spec.kind, spec.model, spec.weights)
for _ in sys.stdin:
    child = os.fork()
    written = 0
    while not child:
        targets._write_cache(folder, "video", PatchGrid(64, 96, 2, 3), spec, made)
        written += 1
        if written == 1:
            print(os.getpid(), flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""
"""For each line that it reads: a process that writes the targets until it is killed; prints its number when it has."""


def compute(folder: Path):
    return clip_targets(FRAMES, GRID, weights="random", model="ViT-B-32", digest="video", cache_dir=folder)


@pytest.fixture
def known(tmp_path):
    """What is right, and a file of it."""
    right = compute(tmp_path / "other").embeddings
    (path,) = (tmp_path / "other" / "targets").iterdir()
    return right, path


@pytest.fixture
def writing(tmp_path, known):
    """`with writing():` another process writes the targets into tmp_path / cache, until it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "cache" / "targets", known[1]], text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    @contextlib.contextmanager
    def start():
        process.stdin.write("\n")
        child = int(process.stdout.readline())
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"

    with process:
        yield start


def test_a_cache_that_another_process_writes_meanwhile(tmp_path, writing, known, warned):
    """Each reading is whole; what either writes replaces what the other wrote."""
    spec = targets.identify("random", "ViT-B-32", 0)
    with writing():
        for _ in range(10):
            found = compute(tmp_path / "cache")
            assert torch.equal(found.embeddings, known[0])
            targets._write_cache(tmp_path / "cache" / "targets", "video", GRID, spec, found)
    assert not [text for text in warned() if "damaged" in text or "not cached" in text]


def test_a_cache_that_a_killed_process_was_writing(tmp_path, writing, known, warned):
    """Killed at random moments; what is found, whole or half, gives the right embeddings."""
    draw, folder = random.Random(0), tmp_path / "cache" / "targets"
    for _ in range(8):
        with writing():
            time.sleep(draw.random() / 50)
        assert torch.equal(compute(tmp_path / "cache").embeddings, known[0])
    assert list(folder.glob(".*.tmp")), "none was killed in the middle"
    assert not [text for text in warned() if "damaged" in text or "not cached" in text]
