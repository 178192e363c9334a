"""Measure training and decoding speed, logging and memory; compare a training step with its floor and a reference.

    python benchmarks/speed.py --preset demo --threads 1 --json output/speed.json
    python benchmarks/speed.py --preset bunny-1.5m --growth --plot output/speed.png
    python benchmarks/speed.py --preset demo --reference ../HNeRV

Takes the flags of train_patch_dual.py, without effect for those of the run folder, and the group `measurement`. The
CLIP loss is on. Its targets are random vectors unless --clip-targets is passed; the CLIP model itself is not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from floor import floor
from growth import growth, plot
from timing import BLOCK, advance, alternating, material_of, repeated, seconds_of, trainer_of, warm_up

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.files import write_json
from hnerv.flags import Invocation, train_parser


def main() -> None:
    args, ask = parse()
    with one_line_errors("speed.py", args.debug):
        found = measure(args, ask)
        if args.plot:
            plot(found["growth"], args.plot)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Invocation]:
    """This script's own flags, and what train_patch_dual.py would be asked for."""
    parser = train_parser()
    parser.prog, parser.usage, parser.description = "speed.py", "%(prog)s [--preset NAME] [flags]", __doc__
    own = parser.add_argument_group("measurement")
    own.add_argument("--steps", type=int, default=50, help=f"steps to time, in at least 3 blocks of {BLOCK} (50)")
    own.add_argument("--json", type=Path, metavar="OUT", help="write all numbers as JSON, after each section")
    own.add_argument(
        "--growth", action="store_true", help="also measure with more and fewer frames, pixels and parameters"
    )
    own.add_argument("--plot", type=Path, metavar="OUT.png", help="plot the results of --growth")
    own.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="also compare with a checkout of haochen-rye/HNeRV or AlanjyHuang/HNeRV",
    )
    # An output folder that is overwritten is not looked into for a preset.
    args = parser.parse_args(["--exp-id", "speed", "--overwrite", *(sys.argv[1:] if argv is None else argv)])
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in vars(args).items() if key in Config().flat()}
    own = args.output, args.device, args.threads, True, args.debug
    return args, Invocation("", args.preset, given, *own, compile=args.compile)


def measure(args: argparse.Namespace, ask: Invocation) -> dict:
    """Prints as it goes, and writes --json after each section -> all numbers. Raises UserError."""
    if args.plot and not args.growth:
        raise UserError("--plot needs the measurements of --growth: pass both")
    if args.steps < 1:
        raise UserError(f"--steps {args.steps} must be at least 1")
    set_up_torch(args.threads, benchmark=True)
    from hnerv.runs.folder import environment

    device = pick_device(args.device)
    config = ask.resolve(cuda=device.type == "cuda").config
    if args.reference:
        from reference import recognise

        recognise(args.reference)  # before minutes are spent
    rounds = max(3, math.ceil(args.steps / BLOCK))
    env = environment()
    print(f"torch {env['torch']}, {env['cuda'] or 'CPU'}, {env['threads']} threads, commit {env['commit']}", flush=True)
    found: dict = {"environment": env, "config": config.to_dict()}
    with tempfile.TemporaryDirectory() as folder:
        sections = {
            "training": lambda: training(config, device, rounds, folder, ask.compile),
            "floor": lambda: floor(config, device, rounds, folder),
        }
        if args.reference:
            sections["reference"] = lambda: compare(args.reference, config, device, max(5, rounds), folder)
        if args.growth:
            sections["growth"] = lambda: growth(config, device, folder)
        for name, section in sections.items():
            found[name] = section()
            if args.json:
                write_json(args.json, found)
    return found


def training(config: Config, device, rounds: int, folder: str, compile_it: bool = False) -> dict:
    """Steps as they come in training, an epoch with its log, decoding, memory."""
    import torch

    from hnerv.evaluation.cost import decode_fps
    from hnerv.model import coded_parameters
    from hnerv.training.compiling import compiled

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = trainer_of(config, device, folder)
    model, patches = trainer.model, trainer.model.scene.grid.patches
    with compiled(trainer) if compile_it else contextlib.nullcontext():
        blocks = timed_blocks(trainer, rounds, device)
        logged = logging_share(trainer, device, Path(folder))
    rates = [frames * patches / seconds for frames, seconds in blocks]
    found = {
        "parameters": sum(coded_parameters(model).values()),
        "patches_per_second": median(rates),
        "patches_per_second_range": [min(rates), max(rates)],
        "step_ms": 1e3 * median(seconds for _, seconds in blocks) / BLOCK,
        **logged,
        **({} if compile_it else operators_of(trainer, folder)),
    }
    trainer.refresh_codes()
    found |= {"decode_fps": decode_fps(model), "patch_ms": patch_ms(model, device), **peak_memory(device)}
    low, high = found["patches_per_second_range"]
    print(
        f"training   {found['patches_per_second']:.1f} patches/s ({low:.1f} to {high:.1f}), {found['step_ms']:.1f} ms "
        f"per step, {config.train.optimizer}, {found['parameters']:,} parameters\n"
        f"operators  {operators_line(found)}\n"
        f"epoch      {found['epoch_seconds']:.2f} s with full logging, {found['epoch_seconds_unlogged']:.2f} s without "
        f"({found['logging_percent_of_epochs']:+.2f} %); the calls that log take {found['logging_percent']:.2f} %\n"
        f"decode     {found['decode_fps']:.1f} frames/s in batches, {found['patch_ms']:.2f} ms for a single patch\n"
        f"memory     {found['peak_memory_mib']:.0f} MiB at peak, {found['peak_memory_of']}",
        flush=True,
    )
    return found


def timed_blocks(trainer, rounds: int, device) -> list[tuple[int, float]]:
    """`rounds` times BLOCK steps as they come in training -> (training frames in them, seconds); one is not counted."""
    frames: list[int] = []
    warm_up(trainer)
    seconds = [seconds_of(lambda: frames.append(advance(trainer, BLOCK)), device) for _ in range(rounds + 1)]
    return list(zip(frames, seconds, strict=True))[1:]


def operators_of(trainer, folder: str) -> dict[str, int]:
    """Operators that torch dispatches in a warm step, views aside: as training runs it, and eagerly where that differs;
    and of the same network without its CLIP head.
    """
    from operators import operators_per_step

    found = {"operators": operators_per_step(lambda: advance(trainer, 1))}
    if trainer.captures:
        batch = next(trainer.remaining_batches())
        found["operators_eager"] = operators_per_step(lambda: trainer.step(batch))
    if trainer.model.clip_head is not None:
        bare = trainer.config.replaced({"clip_weights": "none", "clip_targets": ""})
        twin = trainer_of(bare, trainer.store.device, folder)
        twin.captures = False
        advance(twin, twin.steps_per_epoch)  # makes most blends
        found["operators_without_clip"] = operators_per_step(lambda: advance(twin, 1))
    return found


def operators_line(found: dict) -> str:
    """For people."""
    if "operators" not in found:
        return "not counted for a compiled network"
    more = {"operators_eager": "per eager step", "operators_without_clip": "per eager step without the CLIP head"}
    words = [f"{found[key]} {what}" for key, what in more.items() if key in found]
    return ", ".join([f"{found['operators']} dispatched per step, views excluded", *words])


def logging_share(trainer, device, folder: Path, rounds: int = 3) -> dict[str, float]:
    """Full epochs with the log of a run, flushed, and without; and what the calls that log take of one, in percent.

    The difference of two epochs drowns in their noise on a busy machine, the time of the calls does not.
    """
    from hnerv.tracking import NullLogger, RunLogger, events_folder, metrics_file

    loggers = {"full": RunLogger(events_folder(folder), metrics_file(folder), 0), "none": NullLogger()}
    closing: dict[str, list[float]] = {name: [] for name in loggers}

    def epoch(name: str) -> None:
        trainer.logger, trainer.epoch, trainer.step_in_epoch = loggers[name], 0, 0
        advance(trainer, trainer.steps_per_epoch)
        sync_seconds = seconds_of(trainer.training_step.records.cpu, device)  # the rest of the last step is no logging
        start = time.perf_counter()
        trainer.close_epoch(sync_seconds)
        trainer.logger.position()
        closing[name].append(time.perf_counter() - start)

    found = alternating({name: lambda name=name: epoch(name) for name in loggers}, rounds, device)
    loggers["full"].close()
    trainer.logger, trainer.epoch = NullLogger(), 0
    full, none = median(found["full"]), median(found["none"])
    calls = median(closing["full"][1:]) - median(closing["none"][1:])
    return {
        "epoch_seconds": full,
        "epoch_seconds_unlogged": none,
        "logging_percent_of_epochs": 100 * (full - none) / none,
        "logging_percent": 100 * calls / none,
    }


def patch_ms(model, device, rounds: int = 5) -> float:
    """Mean over the patches of a frame, median over rounds."""
    import torch

    times = torch.zeros(1, device=device)
    patches = range(model.scene.grid.patches)
    with torch.no_grad():
        found = alternating({"all": lambda: [model.decode_patch(times, p) for p in patches]}, rounds, device)
    return 1e3 * median(found["all"]) / len(patches)


def peak_memory(device) -> dict[str, object]:
    """MiB, and of what."""
    import torch

    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        return {"peak_memory_mib": peak, "peak_memory_of": "allocated by torch on the GPU"}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return {"peak_memory_mib": peak, "peak_memory_of": "resident memory of the process, video and libraries included"}


def compare(checkout: Path, config: Config, device, rounds: int, folder: str) -> dict:
    """Theirs and ours at the same network, step and decode, in turns; both from data on the device."""
    import torch
    from reference import recognise, same_network

    from hnerv.evaluation.cost import gmac_per_frame
    from hnerv.model.build import solve_width
    from hnerv.model.predict import FRAMES_AT_ONCE, predict, to_uint8

    name, kind = recognise(checkout)
    config = same_network(kind, config)
    if name.startswith("Alanjy") and config.clip.clip_weights == "none":
        raise UserError("AlanjyHuang/HNeRV has a CLIP head: remove --clip-weights none")
    scene = material_of(config, device).scene
    width = config.model.dec_width or solve_width(config.model, scene)
    config = config.replaced({"dec_width": width, **kind.fit(config, scene, width)})
    trainer = trainer_of(config, device, folder)
    model, batch = trainer.model, next(trainer.remaining_batches())
    theirs = kind.build(checkout, config, model, batch, FRAMES_AT_ONCE)
    times = torch.arange(FRAMES_AT_ONCE, device=device, dtype=torch.float32) % scene.frames

    @torch.no_grad()
    def decode():
        return to_uint8(predict(model, times, clip=False).rgb)

    calls = {"theirs": repeated(theirs.step, times=2), "ours": repeated(trainer.step, batch, times=2)}
    patches = scene.grid.patches
    found = {
        "name": name,
        "config": config.to_dict(),
        "parameters": {"theirs": theirs.parameters, "ours": sum(p.numel() for p in model.parameters())},
        "gmac_per_frame": {"theirs": theirs.gmac, "ours": gmac_per_frame(model)},
        "training": ratio(alternating(calls, rounds, device), 2 * batch.real * patches),
        "decoding": ratio(alternating({"theirs": theirs.decode, "ours": decode}, rounds, device), FRAMES_AT_ONCE),
    }
    sizes, gmac = found["parameters"], found["gmac_per_frame"]
    print(
        f"reference  {name}, width {width}: {sizes['theirs']:,} parameters and {gmac['theirs']:.3f} GMAC per frame, "
        f"ours {sizes['ours']:,} and {gmac['ours']:.3f}; both with Adam and L2, "
        f"theirs in fp32 or TF32, ours in {'bf16' if config.train.in_bf16(device.type) else 'fp32'}"
    )
    for what, unit in (("training", "patches"), ("decoding", "frames")):
        row = found[what]
        print(
            f"{what:10} {row['times']:.2f} x the {unit}/s of the reference ({row['range'][0]:.2f} to "
            f"{row['range'][1]:.2f} over {rounds} rounds): ours {row['ours']:.1f}, theirs {row['theirs']:.1f}",
            flush=True,
        )
    return found


def ratio(seconds: dict[str, list[float]], units: int) -> dict:
    """Units per second of both, and the median and range of their ratio over the rounds."""
    ratios = [theirs / ours for theirs, ours in zip(seconds["theirs"], seconds["ours"], strict=True)]
    rates = {name: units / median(values) for name, values in seconds.items()}
    return {**rates, "times": median(ratios), "range": [min(ratios), max(ratios)]}


if __name__ == "__main__":
    main()
