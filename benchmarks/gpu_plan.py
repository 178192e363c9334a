"""The parts of `gpu.py`: their commands, their estimated time, and the PSNR to compare their training with."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """`need`: estimated seconds on an H100. `commands` run one after the other, their fields filled by `gpu.py`.

    `targets`: {source: dB} of a training; empty for other parts. Its run folder has the name of the part.
    """

    need: float
    commands: tuple[str, ...]
    preset: str = "bunny-1.5m"
    split: str = "1_1_1"
    targets: dict[str, float] = {}
    environment: dict[str, str] = {}


TRAIN = (
    "python train_patch_dual.py --exp-id {name} --output {work} {preset} --data-split {split} {clip} "
    "--eval-freq {eval_freq} --images-freq 0 --checkpoint-seconds 10 {train_flags} "
)
CODEC = (
    "hnerv encode {work}/{run} -o {work}/{run}.hnerv --overwrite --device {device}",
    "python benchmarks/gpu_parts.py codec {work}/{run}.hnerv --device {device} --every {every} --json {json}",
)
RATE_CODEC = "hnerv encode {work}/{name} -o {work}/{name}.hnerv --overwrite --no-measure --device {device}"
# The steps of a split without unseen frames are all of one kind, so a profile compiles once.
PROFILE = ("python benchmarks/gpu_parts.py profile {preset} --data-split {split} {clip} --json {json}",)
PYTEST = (
    "python -m pytest -o 'addopts=--import-mode=importlib --strict-markers -p gpu_tests' "
    "-m cuda -v --tb=short -p no:cacheprovider -W default {tests}",
)
SPEED = ("python benchmarks/speed.py {preset} --steps {steps} --json {json}",)
TARGETS = {
    "bunny-0.75m": {"HNeRV paper": 32.81, "aim": 36.5},
    "bunny-1.5m": {"HNeRV paper": 35.57, "aim": 38.5},
    "bunny-3m": {"HNeRV paper": 37.43, "aim": 40.5},
    "bunny-1.5m-codec": {"x264 medium, 580,937 bytes": 37.44, "SVT-AV1 6, 388,430 bytes": 37.54},
}
"""Preset -> dB on all frames of Bunny. HNeRV paper: table 2; x264 and SVT-AV1: `hnerv compare`."""
PARTS = {
    "env": Part(20, ("python benchmarks/gpu_parts.py env --device {device} --json {json}",)),
    "full": Part(200, (TRAIN,), targets=TARGETS["bunny-1.5m"]),
    "codec": Part(40, CODEC),
    "full-0.75m": Part(130, (TRAIN,), "bunny-0.75m", targets=TARGETS["bunny-0.75m"]),
    "rate": Part(260, (TRAIN, RATE_CODEC), "bunny-1.5m-codec", targets=TARGETS["bunny-1.5m-codec"]),
    "full-3m": Part(330, (TRAIN,), "bunny-3m", targets=TARGETS["bunny-3m"]),
    "tests": Part(200, PYTEST, environment={"HNERV_TEST_CUDA": "1"}),
    "profile": Part(100, PROFILE),
    "speed": Part(60, SPEED),
    "full-fast": Part(115, (TRAIN,), "bunny-1.5m-fast", targets=TARGETS["bunny-1.5m"]),
    "profile-fast": Part(60, PROFILE, "bunny-1.5m-fast"),
    "split": Part(200, (TRAIN,), split="9_9_10", targets=TARGETS["bunny-1.5m"]),
}
"""In the order in which they run, the most valuable first."""
FIRST = ("env", "full", "codec", "full-0.75m")
"""The parts of a command without --parts."""
GPU = {"device": "cuda", "tiny": "", "eval_freq": 25, "every": 4, "steps": 100}
REHEARSAL = {
    "device": "cpu",
    "tiny": "--frames 0:10 --epochs 2 --modelsize 0.1 --resize 80x160 --grid-knots 5 --pixel-loss-warmup-epochs 0",
    "eval_freq": 1,
    "every": 2,
    "steps": 10,
}
"""Fields of the commands that depend on the device. `tiny`: settings that a rehearsal adds to its presets."""
