"""`hnerv fleet`: train many videos with Ray, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from hnerv.command import check_threads, next_commands
from hnerv.config import LogConfig
from hnerv.errors import UserError
from hnerv.flags import Parser, add_config_flags, add_segments, split_settings

USES_TORCH = False
"""Only the workers use torch, and they set their own threads."""
THREADS_HELP = "CPU threads of torch in each run; 0: --cpus-per-task, rounded down to at least 1 (0)"
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_arguments(parser: Parser) -> None:
    """The flags of the verb and of a training run."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="VIDEOS",
        help="folder of videos or JSON Lines manifest; with --status, a fleet folder",
    )
    group = parser.add_argument_group("fleet")
    add = group.add_argument
    add("-o", "--output", type=Path, metavar="FOLDER", help="fleet folder, with a run folder for each video")
    add(
        "--preset",
        default="",
        metavar="NAME",
        help="preset of every video; the flags below and the manifest override it",
    )
    add(
        "--address",
        default="",
        metavar="RAY",
        help="Ray cluster, as in ray://head:10001 or head:6379; empty: start Ray here",
    )
    add("--cpus-per-task", type=float, default=1.0, metavar="N", help="CPUs per run (1)")
    add("--gpus-per-task", type=float, default=0.0, metavar="N", help="GPUs per run; 0.25: four runs share one (0)")
    add(
        "--memory-per-task", default="", metavar="SIZE", help="memory reserved per run, as in 4G; empty: no reservation"
    )
    add(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="how often a run is retried without a new checkpoint in between (3)",
    )
    add("--deterministic", action="store_true", help="bit-identical results on CUDA too; slower")
    add("--status", action="store_true", help="print the table of the fleet in VIDEOS, without Ray, and exit")
    add_segments(group)
    rejected = {
        "data": "pass the videos as VIDEOS, a folder or a manifest, without a flag",
        "exp_id": "remove it; each run is named after its video",
        "compile": "remove it; each worker would compile on its own",
    }
    add_config_flags(parser, rejected)


def run(args: argparse.Namespace) -> None:
    """Train the videos, or print the table of a fleet. Raises UserError before anything is written."""
    if args.status:
        from hnerv.fleet import table

        print(table.format_rows(table.read_rows(args.source)))
        return
    settings, logging = split_settings(vars(args))
    check(args)
    log = LogConfig(**logging)

    from hnerv.fleet.driver import TaskOptions
    from hnerv.fleet.engine import TaskResources
    from hnerv.fleet.lifecycle import RayOptions, run_fleet
    from hnerv.fleet.manifest import FleetDefaults
    from hnerv.runs import ChunkOptions

    resources = TaskResources(args.cpus_per_task, args.gpus_per_task, bytes_of(args.memory_per_task))
    threads = args.threads or max(int(args.cpus_per_task), 1)
    device = "cuda" if args.gpus_per_task else "cpu"
    share = min(args.gpus_per_task, 1.0) or 1.0
    options = TaskOptions(log, device, threads, args.retries, sys.argv, args.deterministic, share)
    chunks = ChunkOptions(args.segment_frames, args.segment_scenes, args.segment_init)
    defaults = FleetDefaults(args.preset, settings, chunks)
    run_fleet(args.source, args.output, defaults, options, RayOptions(args.address, resources, args.debug))
    print(next_commands(args.output / "NAME", args.output))


def check(args: argparse.Namespace) -> None:
    """Raises UserError for values that are wrong or conflict."""
    if args.output is None:
        raise UserError("-o is missing: pass the fleet folder")
    if not all(math.isfinite(number) for number in (args.cpus_per_task, args.gpus_per_task)):
        raise UserError("--cpus-per-task and --gpus-per-task must be finite: pass numbers such as 1 or 0.25")
    if args.cpus_per_task < 0 or args.gpus_per_task < 0 or args.retries < 0:
        raise UserError("--cpus-per-task, --gpus-per-task and --retries must be at least 0")
    check_threads(args.threads)
    if args.cpus_per_task + args.gpus_per_task == 0:
        raise UserError("--cpus-per-task 0 would run all tasks at once: set --gpus-per-task")
    if args.gpus_per_task > 1 and args.gpus_per_task % 1:
        raise UserError(f"--gpus-per-task {args.gpus_per_task:g} must be an integer or a fraction below 1")


def bytes_of(text: str) -> int:
    """'4G' -> 4000000000, '' -> 0. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)b?", text.lower().replace(" ", "") or "0")
    if not found:
        raise UserError(f"--memory-per-task {text!r} is not a size: write it as 4G or 500M")
    return int(float(found[1]) * UNITS[found[2]])
