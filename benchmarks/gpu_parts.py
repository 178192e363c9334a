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
import traceback
from importlib import metadata
from pathlib import Path
from statistics import median

from common import advance, clip_trainer, machine_rates, seconds_of, synchronize, warm_up

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.errors import RunError, UserError
from hnerv.files import write_json
from hnerv.flags import Parser

STEPS = 20
"""Steps of a profile."""
HEAVIEST = 10
LAUNCHES = {
    *("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"),
    *("cudaMemcpyAsync", "cudaMemsetAsync"),
}
"""Calls of the CUDA runtime and driver that start work on the device."""
VARIANTS = {"eager": (False, False), "captured": (True, False), "captured, compiled": (True, True)}
"""Name -> (steps are captured, the network is compiled)."""


def main() -> None:
    parts = {"env": env, "profile": profile, "codec": codec}
    if len(sys.argv) < 2 or sys.argv[1] not in parts:
        sys.exit(f"gpu_parts.py: error: pass one of {', '.join(parts)} as the first argument")
    with one_line_errors(f"gpu_parts.py {sys.argv[1]}", debug=True):
        parts[sys.argv[1]](sys.argv[2:])


def part_parser(name: str) -> Parser:
    parser = Parser(prog=f"gpu_parts.py {name}")
    parser.add_argument("--device", default="cuda", help="device to measure (cuda)")
    parser.add_argument("--json", type=Path, required=True, help="output file")
    return parser


def env(argv: list[str]) -> None:
    """Facts of the machine, and the rates of a copy and of a matrix product."""
    args = part_parser("env").parse_args(argv)
    set_up_torch(0)
    import torch

    from hnerv.runs.environment import environment

    device = pick_device(args.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {**environment(device), "cores": cores, "triton": None}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["triton"] = metadata.version("triton")
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {"memory_gib": facts.total_memory / 2**30, "capability": f"{facts.major}.{facts.minor}"}
        found["multiprocessors"] = facts.multi_processor_count
    write_json(args.json, found)
    rates = machine_rates(device, torch.bfloat16)
    found |= {"copy_gb_per_second": rates["gb_per_second"], "product_tflops": 2 * rates["gmac_per_second"] / 1e3}
    write_json(args.json, found)
    print(found)


def profile(argv: list[str]) -> None:
    """STEPS training steps of each of VARIANTS. Raises RunError at the end if one failed."""
    import speed

    args, invocation = speed.parse(argv)
    set_up_torch(args.threads, benchmark=True)
    device = pick_device(args.device)
    config = invocation.resolve(cuda=device.type == "cuda").config
    found: dict = {"steps": STEPS, "device": device.type, "variants": {}}
    failed = []
    for name, (captured, compiled) in VARIANTS.items():
        try:
            row = profiled_variant(config, device, captured, compiled)
        except Exception as error:
            traceback.print_exc()
            failed.append(name)
            row = {"not_measured": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        found["variants"][name] = row
        write_json(args.json, found)
        print(name, {key: value for key, value in row.items() if key != "heaviest"}, flush=True)
    if failed:
        raise RunError(f"{' and '.join(failed)} failed")


def profiled_variant(config, device, captured: bool, compile_network: bool) -> dict:
    """Times of a variant; {"not_measured": why} if the device cannot run it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = clip_trainer(config, device, folder, capture=captured, compile=compile_network)
        if captured and not compile_network and not trainer.captures:
            return {"not_measured": "steps are captured only on CUDA"}
        start = time.perf_counter()
        advance(trainer, STEPS // 2)
        warm_up(trainer)
        warm = time.perf_counter() - start
        return {"warm_up_seconds": warm, "captures": trainer.captures, **step_times(trainer, device)}


def step_times(trainer, device) -> dict:
    """Times of one step in ms: wall, of the host alone, of the device; launches; HEAVIEST kernels.

    On the CPU operators take the place of kernels and of launches.
    """

    def host_seconds() -> float:
        """Time until a step has been submitted to an idle device."""
        synchronize()
        start = time.perf_counter()
        advance(trainer, 1)
        return time.perf_counter() - start

    wall = median(seconds_of(lambda: advance(trainer, STEPS)) for _ in range(3)) / STEPS
    host = median(host_seconds() for _ in range(STEPS))
    on_cuda = device.type == "cuda"
    events = profiler_events(lambda: seconds_of(lambda: advance(trainer, STEPS)), on_cuda)
    work = [event for event in events if (event.device_type.name == "CUDA") == on_cuda]
    spent = {id(event): event.self_device_time_total if on_cuda else event.self_cpu_time_total for event in work}
    heaviest = sorted(work, key=lambda event: -spent[id(event)])[:HEAVIEST]
    launches = [event for event in events if event.key in LAUNCHES] if on_cuda else work
    return {
        "step_ms": 1e3 * wall,
        "host_ms": 1e3 * host,
        "device_ms": sum(spent.values()) / 1e3 / STEPS,
        "launches": sum(event.count for event in launches) / STEPS,
        "kernels": sum(event.count for event in work) / STEPS,
        "heaviest": [[event.key, spent[id(event)] / 1e3 / STEPS, event.count / STEPS] for event in heaviest],
    }


def profiler_events(call, on_cuda: bool) -> list:
    """Events of a call by name. Annotations are left out: their time is that of the kernels within."""
    import torch.profiler as profiler

    activities = [profiler.ProfilerActivity.CPU] + [profiler.ProfilerActivity.CUDA] * on_cuda
    with profiler.profile(activities=activities, acc_events=True) as recorded:
        call()
    labels = ("Optimizer.", "ProfilerStep", "Torch-Compiled Region", "## ")
    events = recorded.key_averages()
    return [event for event in events if not event.is_user_annotation and not event.key.startswith(labels)]


def codec(argv: list[str]) -> None:
    """Decode a .hnerv file on a device, twice, and on the CPU; compare weights and pixels."""
    parser = part_parser("codec")
    parser.add_argument("file", type=Path, help=".hnerv file")
    parser.add_argument("--every", type=int, default=4, metavar="N", help="decode every N-th frame (4)")
    args = parser.parse_args(argv)
    if args.every < 1:
        raise UserError(f"--every {args.every} must be at least 1")
    set_up_torch(0)
    import numpy as np
    import torch

    from hnerv.codec import open_single_chunk, play

    def played(model) -> tuple[np.ndarray, float]:
        """(frames (N, H, W, 3) uint8 in memory, frames per second)."""
        start = time.perf_counter()
        pictures = np.stack(list(play(model, frames)))
        return pictures, len(frames) / (time.perf_counter() - start)

    stream = open_single_chunk(args.file)
    frames = range(0, stream.scene.frames, args.every)
    on_cpu, on_device = stream.model(), stream.model().to(pick_device(args.device), memory_format=torch.channels_last)
    weights = on_device.state_dict()
    same = all(torch.equal(value, weights[name].cpu()) for name, value in on_cpu.state_dict().items())
    found = {"bytes": args.file.stat().st_size, "note": stream.encoder, "same_weights": same, "frames": len(frames)}
    write_json(args.json, found)
    first, _ = played(on_device)
    again, found["device_fps"] = played(on_device)
    cpu, found["cpu_fps"] = played(on_cpu)
    levels = abs(first.astype(np.int16) - cpu)
    found |= {"same_twice": bool((first == again).all()), "largest_difference": int(levels.max())}
    found["share_of_pixels"] = float((levels.max(-1) > 0).mean())
    write_json(args.json, found)
    print(found)


if __name__ == "__main__":
    main()
