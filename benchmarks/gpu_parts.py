"""Parts of `gpu.py` that run as scripts: machine facts, a profile of training steps, one file on two devices.

    python benchmarks/gpu_parts.py env --device cuda --json output/env.json
    python benchmarks/gpu_parts.py profile --preset bunny-1.5m --json output/profile.json
    python benchmarks/gpu_parts.py codec output/full.hnerv --device cuda --json output/codec.json

Each measurement is written immediately, so that a killed process leaves the earlier ones. `profile` takes the flags of
speed.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.errors import RunError, UserError
from hnerv.files import write_json
from hnerv.flags import Parser

STEPS = 20
"""Steps of a profile."""
HEAVIEST = 10
LAUNCHES = (
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch",
    "cudaMemcpyAsync", "cudaMemsetAsync",
)  # fmt: skip
"""Calls of the CUDA runtime and driver that start work on the device."""


class Variant(NamedTuple):
    """How the steps of a profile run."""

    captured: bool
    compiled: bool


VARIANTS = {
    "eager": Variant(captured=False, compiled=False),
    "captured": Variant(captured=True, compiled=False),
    "captured, compiled": Variant(captured=True, compiled=True),
}


def main() -> None:
    """The first word says which part."""
    parts = {"env": env, "profile": profile, "codec": codec}
    if len(sys.argv) < 2 or sys.argv[1] not in parts:
        sys.exit(f"gpu_parts.py: error: pass one of {', '.join(parts)} as the first argument")
    with one_line_errors(f"gpu_parts.py {sys.argv[1]}", debug=True):
        parts[sys.argv[1]](sys.argv[2:])


def env(words: list[str]) -> None:
    """What the machine is, and its two ceilings: a copy and a matrix product."""
    parser = Parser(prog="gpu_parts.py env")
    parser.add_argument("--device", default="cuda", help="device to measure (cuda)")
    parser.add_argument("--json", type=Path, required=True, help="output file")
    args = parser.parse_args(words)
    set_up_torch(0)
    import torch
    from floor import machine_rates

    from hnerv.runs.environment import environment

    device = pick_device(args.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {**environment(device), "cores": cores, "triton": None}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["triton"] = metadata.version("triton")
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {
            "memory_gib": facts.total_memory / 2**30,
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
        }
    write_json(args.json, found)
    rates = machine_rates(device, torch.bfloat16)
    found |= {"copy_gb_per_second": rates["gb_per_second"], "product_tflops": 2 * rates["gmac_per_second"] / 1e3}
    write_json(args.json, found)
    print(found)


def profile(words: list[str]) -> None:
    """STEPS training steps of each of VARIANTS. Raises RunError at the end where one failed."""
    import speed

    args, invocation = speed.parse(words)
    set_up_torch(args.threads, benchmark=True)
    device = pick_device(args.device)
    config = invocation.resolve(cuda=device.type == "cuda").config
    found: dict = {"steps": STEPS, "device": device.type, "variants": {}}
    failed = []
    for name, variant in VARIANTS.items():
        try:
            row = profiled_variant(config, device, variant)
        except Exception as error:
            import traceback

            traceback.print_exc()
            failed.append(name)
            row = {"not_measured": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        found["variants"][name] = row
        write_json(args.json, found)
        print(name, {key: value for key, value in row.items() if key != "heaviest"}, flush=True)
    if failed:
        raise RunError(f"{' and '.join(failed)} failed")


def profiled_variant(config, device, variant: Variant) -> dict:
    """A variant's times; {"not_measured": why} where it does not exist on this device."""
    from timing import advance, trainer_of, warm_up

    from hnerv.training.compiling import compiled

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, device, folder)
        if variant == VARIANTS["captured"] and not trainer.captures:
            return {"not_measured": "steps are captured only on CUDA"}
        trainer.captures = trainer.captures and variant.captured
        start = time.perf_counter()
        with compiled(trainer) if variant.compiled else contextlib.nullcontext():
            advance(trainer, STEPS // 2)
            warm_up(trainer)
            warm = time.perf_counter() - start
            return {"warm_up_seconds": warm, "captures": trainer.captures, **step_times(trainer, device)}


def step_times(trainer, device) -> dict:
    """Of one step, in ms: by the clock in a row of STEPS, of the host alone, on the device; launches; HEAVIEST kernels.

    On the CPU operators take the place of kernels and of launches.
    """
    from timing import advance, seconds_of

    wall = median(seconds_of(lambda: advance(trainer, STEPS), device) for _ in range(3)) / STEPS
    host = median(host_seconds(trainer, device) for _ in range(STEPS))
    events = profiled(lambda: seconds_of(lambda: advance(trainer, STEPS), device), device)
    on_cuda = device.type == "cuda"
    work = [event for event in events if (event.device_type.name == "CUDA") == on_cuda]
    spent = {id(event): event.self_device_time_total if on_cuda else event.self_cpu_time_total for event in work}
    heaviest = sorted(work, key=lambda event: -spent[id(event)])[:HEAVIEST]
    launches = sum(event.count for event in (events if on_cuda else work) if not on_cuda or event.key in LAUNCHES)
    return {
        "step_ms": 1e3 * wall,
        "host_ms": 1e3 * host,
        "device_ms": sum(spent.values()) / 1e3 / STEPS,
        "launches": launches / STEPS,
        "kernels": sum(event.count for event in work) / STEPS,
        "heaviest": [[event.key, spent[id(event)] / 1e3 / STEPS, event.count / STEPS] for event in heaviest],
    }


def host_seconds(trainer, device) -> float:
    """Until a step has been handed to an idle device."""
    import torch
    from timing import advance

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    advance(trainer, 1)
    return time.perf_counter() - start


def profiled(call, device) -> list:
    """Events of a call by name, annotations left out: their time is that of the kernels within."""
    import torch.profiler as profiler

    activities = [profiler.ProfilerActivity.CPU] + [profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    with profiler.profile(activities=activities, acc_events=True) as recorded:
        call()
    labels = ("Optimizer.", "ProfilerStep", "Torch-Compiled Region", "## ")
    events = recorded.key_averages()
    return [event for event in events if not event.is_user_annotation and not event.key.startswith(labels)]


def codec(words: list[str]) -> None:
    """A .hnerv file decoded on a device, twice, and on the CPU: weights and pixels compared."""
    parser = Parser(prog="gpu_parts.py codec")
    parser.add_argument("file", type=Path, help=".hnerv file")
    parser.add_argument("--device", default="cuda", help="device to compare with the CPU (cuda)")
    parser.add_argument("--every", type=int, default=4, metavar="N", help="decode every N-th frame (4)")
    parser.add_argument("--json", type=Path, required=True, help="output file")
    args = parser.parse_args(words)
    set_up_torch(0)
    import torch

    from hnerv.codec import Bitstream

    device, stream = pick_device(args.device), Bitstream(args.file)
    if args.every < 1:
        raise UserError(f"--every {args.every} must be at least 1")
    here, there = stream.model(), stream.model().to(device, memory_format=torch.channels_last)
    weights = there.cpu().state_dict()
    same = all(torch.equal(value, weights[name]) for name, value in here.state_dict().items())
    frames = range(0, stream.scene.frames, args.every)
    found = {"bytes": args.file.stat().st_size, "note": stream.encoder, "same_weights": same, "frames": len(frames)}
    write_json(args.json, found)
    there.to(device, memory_format=torch.channels_last)
    first, _ = played(there, frames)
    again, found["device_fps"] = played(there, frames)
    found["same_twice"] = bool((first == again).all())
    cpu, found["cpu_fps"] = played(here, frames)
    levels = abs(first.astype("int16") - cpu)
    found |= {"largest_difference": int(levels.max()), "share_of_pixels": float((levels.max(-1) > 0).mean())}
    write_json(args.json, found)
    print(found)


def played(model, frames: range):
    """(frames (N, H, W, 3) uint8 in memory, frames per second)."""
    import numpy as np

    from hnerv.codec import play

    start = time.perf_counter()
    pictures = np.stack(list(play(model, frames)))
    return pictures, len(frames) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
