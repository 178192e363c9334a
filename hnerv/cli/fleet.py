"""`hnerv fleet`: train many videos with Ray, on this machine or on a cluster, or as a job array without it."""

from __future__ import annotations

import argparse
import math
import re
import sys

from hnerv.command import check_threads
from hnerv.config import LogConfig
from hnerv.errors import UserError
from hnerv.flags import Parser, add_config_flags, add_segments, split_settings

USES_TORCH = False
"""Only the tasks use torch, and they set their own threads."""
THREADS_HELP = "CPU threads of torch in each run; 0: --cpus-per-task, rounded down to at least 1 (0)"
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_arguments(parser: Parser) -> None:
    """The flags of the verb and of a training run."""
    videos = "folder of videos, or JSON Lines manifest at a path or an address; with --status, a fleet folder"
    parser.add_argument("source", metavar="VIDEOS", help=videos)
    group = parser.add_argument_group("fleet")
    add = group.add_argument
    output = "fleet folder, with a run folder for each video: a path that all nodes share, or an address (s3://)"
    add("-o", "--output", metavar="FOLDER", help=output)
    preset = "preset of every video; the flags below and the manifest override it"
    add("--preset", default="", metavar="NAME", help=preset)
    address = "Ray cluster, as in ray://head:10001 or head:6379; empty: start Ray here"
    add("--address", default="", metavar="RAY", help=address)
    add("--cpus-per-task", type=float, default=1.0, metavar="N", help="CPUs per run (1)")
    add("--gpus-per-task", type=float, default=0.0, metavar="N", help="GPUs per run; 0.25: four runs share one (0)")
    memory = "memory reserved per run, as in 4G; empty: no reservation"
    add("--memory-per-task", default="", metavar="SIZE", help=memory)
    retries = "how often a run is repeated after its worker, node or storage failed (3)"
    add("--retries", type=int, default=3, metavar="N", help=retries)
    task = "train the I-th of N parts of the videos in this process, without Ray, as in a SLURM array"
    add("--task", default="", metavar="I/N", help=task)
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
        from hnerv.fleet.status import fleet_statuses
        from hnerv.fleet.table import fleet_table
        from hnerv.storage import Storage

        print(fleet_table(fleet_statuses(Storage(args.source))))
        return
    settings, logging = split_settings(vars(args))
    check(args)
    log, part = LogConfig(**logging), task_part(args.task)

    from hnerv.fleet.cluster import RayOptions
    from hnerv.fleet.driver import run_fleet
    from hnerv.fleet.manifest import FleetDefaults
    from hnerv.fleet.task import TaskOptions
    from hnerv.runs import ChunkOptions

    memory = bytes_of(args.memory_per_task)
    ray = RayOptions(args.address, args.cpus_per_task, args.gpus_per_task, memory, args.retries, args.debug)
    threads = args.threads or max(int(args.cpus_per_task), 1)
    device = "cuda" if args.gpus_per_task else "cpu"
    share = min(args.gpus_per_task, 1.0) or 1.0
    options = TaskOptions(log, device, threads, sys.argv, args.deterministic, share)
    chunks = ChunkOptions(args.segment_frames, args.segment_scenes, args.segment_init)
    run_fleet(args.source, args.output, FleetDefaults(args.preset, settings, chunks), options, ray, part)


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
    if args.task and args.address:
        raise UserError("--task works without Ray: remove --address, or --task")


def task_part(text: str) -> tuple[int, int] | None:
    """'2/8' -> (2, 8), '' -> None. Raises UserError."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if text and (not found or not 1 <= int(found[1]) <= int(found[2])):
        raise UserError(f"--task {text!r} is not a part: write it as I/N, with I from 1 to N")
    return (int(found[1]), int(found[2])) if text else None


def bytes_of(text: str) -> int:
    """'4G' -> 4000000000, '' -> 0. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)b?", text.lower().replace(" ", "") or "0")
    if not found:
        raise UserError(f"--memory-per-task {text!r} is not a size: write it as 4G or 500M")
    return int(float(found[1]) * UNITS[found[2]])
