"""Measure training and decoding speed, logging and memory; compare a training step with its floor and a reference.

    python benchmarks/speed.py --preset demo --threads 1 --json output/speed.json
    python benchmarks/speed.py --preset bunny-1.5m --growth --plot output/speed.png
    python benchmarks/speed.py --preset demo --reference ../HNeRV

Takes the flags of train_patch_dual.py, without effect for those of the run folder, and the group `measurement`. The
CLIP loss is on. Its targets are random vectors unless --clip-targets is passed; the CLIP model itself is not timed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import (
    BLOCK,
    advance,
    alternating,
    axes_of_figure,
    clip_trainer,
    logged_epoch,
    material_of,
    peak_bytes,
    repeated,
    report,
    seconds_of,
    warm_up,
)

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.files import write_json
from hnerv.flags import train_parser
from hnerv.training.arguments import TrainArguments


def main() -> None:
    args, invocation = parse()
    with one_line_errors("speed.py", args.debug):
        found = measure(args, invocation)
        if args.plot:
            plot(found["growth"], args.plot)


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, TrainArguments]:
    """(all flags, the training that they describe)."""
    parser = train_parser()
    parser.prog, parser.usage, parser.description = "speed.py", "%(prog)s [--preset NAME] [flags]", __doc__
    own = parser.add_argument_group("measurement")
    own.add_argument("--steps", type=int, default=50, help=f"steps to time, in at least 3 blocks of {BLOCK} (50)")
    own.add_argument("--json", type=Path, metavar="OUT", help="write all numbers as JSON, after each section")
    more = "also measure with more and fewer frames, pixels and parameters"
    own.add_argument("--growth", action="store_true", help=more)
    own.add_argument("--plot", type=Path, metavar="OUT.png", help="plot the results of --growth")
    checkouts = "also compare with a checkout of haochen-rye/HNeRV or AlanjyHuang/HNeRV"
    own.add_argument("--reference", type=Path, metavar="DIR", help=checkouts)
    # With --overwrite the default preset does not depend on the runs in the output folder.
    args = parser.parse_args(["--exp-id", "speed", "--overwrite", *(sys.argv[1:] if argv is None else argv)])
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in vars(args).items() if key in Config().flat()}
    own = args.output, args.device, args.threads, True, args.debug
    return args, TrainArguments("", args.preset, given, *own, compile=args.compile)


def measure(args: argparse.Namespace, invocation: TrainArguments) -> dict:
    """All numbers. They are also printed, and written to --json after each section. Raises UserError."""
    if args.plot and not args.growth:
        raise UserError("--plot needs the measurements of --growth: pass both")
    if args.steps < 1:
        raise UserError(f"--steps {args.steps} must be at least 1")
    set_up_torch(args.threads, benchmark=True)
    from floor import floor

    from hnerv.runs.environment import environment

    device = pick_device(args.device)
    config = invocation.resolve(cuda=device.type == "cuda").config
    rounds = max(3, math.ceil(args.steps / BLOCK))
    env = environment()
    print(f"torch {env['torch']}, {env['cuda'] or 'CPU'}, {env['threads']} threads, commit {env['commit']}", flush=True)
    found: dict = {"environment": env, "config": config.to_dict()}
    with tempfile.TemporaryDirectory() as folder:
        sections = {
            "training": lambda: training(config, device, rounds, folder, invocation.compile),
            "floor": lambda: floor(config, device, rounds, folder),
        }
        if args.reference:
            from reference import KINDS, recognise

            recognise(args.reference, KINDS)  # fail before the other sections have taken minutes
            sections["reference"] = lambda: compare(args.reference, config, device, max(5, rounds), folder)
        if args.growth:
            sections["growth"] = lambda: growth(config, device, folder)
        for name, section in sections.items():
            found[name] = section()
            if name != "growth":
                report(name, {key: value for key, value in found[name].items() if key != "config"})
            if args.json:
                write_json(args.json, found)
    return found


def training(config: Config, device, rounds: int, folder: str, compile_network: bool = False) -> dict:
    """Steps as in training, an epoch with its log, decoding, memory."""
    import torch

    from hnerv.evaluation.cost import decode_fps
    from hnerv.model import coded_parameters

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = clip_trainer(config, device, folder, compile=compile_network)
    model, patches = trainer.model, trainer.model.scene.grid.patches
    warm_up(trainer)
    frames: list[int] = []
    seconds = [seconds_of(lambda: frames.append(advance(trainer, BLOCK))) for _ in range(rounds + 1)][1:]
    logged = logging_share(trainer, Path(folder))
    rates = [count * patches / time for count, time in zip(frames[1:], seconds, strict=True)]
    operators = {} if compile_network else operators_of(trainer, folder)
    trainer.refresh_evaluated()
    return {
        "parameters": sum(coded_parameters(model).values()),
        "patches_per_second": median(rates),
        "patches_per_second_range": [min(rates), max(rates)],
        "step_ms": 1e3 * median(seconds) / BLOCK,
        **logged,
        **operators,
        "decode_fps": decode_fps(model),
        "patch_ms": patch_ms(model, device),
        **peak_memory(device),
    }


def operators_of(trainer, folder: str) -> dict[str, int]:
    """Operators dispatched per step: as in training; eager, if steps are captured; eager without the CLIP head."""
    from floor import operators_per_step

    found = {"operators": operators_per_step(lambda: advance(trainer, 1))}
    if trainer.captures:
        batch = next(trainer.remaining_batches())
        found["operators_eager"] = operators_per_step(lambda: trainer.step(batch))
    if trainer.model.clip_head is not None:
        without = trainer.config.replaced({"clip_weights": "none", "clip_targets": ""})
        bare = clip_trainer(without, trainer.store.device, folder, capture=False)
        advance(bare, bare.steps_per_epoch)  # makes most blends
        found["operators_without_clip"] = operators_per_step(lambda: advance(bare, 1))
    return found


def logging_share(trainer, folder: Path, rounds: int = 3) -> dict[str, float]:
    """Seconds of full epochs with the log of a run and without, and the share of the calls that log, in percent.

    On a busy machine the difference of two epochs is below their noise; the time of the calls is not.
    """
    from hnerv.tracking import NullLogger, RunLogger, events_folder, metrics_file

    loggers = {"full": RunLogger(events_folder(folder), metrics_file(folder), 0), "none": NullLogger()}
    calls: dict[str, list[float]] = {name: [] for name in loggers}
    epochs = {name: lambda n=name: calls[n].append(logged_epoch(trainer, loggers[n])) for name in loggers}
    full, none = (median(seconds) for seconds in alternating(epochs, rounds).values())
    loggers["full"].close()
    trainer.log_to(NullLogger())
    trainer.state.epoch = 0
    return {
        "epoch_seconds": full,
        "epoch_seconds_unlogged": none,
        "logging_percent_of_epochs": 100 * (full - none) / none,
        "logging_percent": 100 * (median(calls["full"][1:]) - median(calls["none"][1:])) / none,
    }


def patch_ms(model, device, rounds: int = 5) -> float:
    """Milliseconds to decode one patch: mean over the patches of a frame, median over rounds."""
    import torch

    times, patches = torch.zeros(1, device=device), range(model.scene.grid.patches)
    with torch.no_grad():
        found = alternating({"all": lambda: [model.decode_patch(times, p) for p in patches]}, rounds)
    return 1e3 * median(found["all"]) / len(patches)


def peak_memory(device) -> dict[str, object]:
    """Peak in MiB, and which memory it is."""
    import torch

    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        return {"peak_memory_mib": peak, "peak_memory_of": "allocated by torch on the GPU"}
    of = "resident memory of the process, video and libraries included"
    return {"peak_memory_mib": peak_bytes() / 2**20, "peak_memory_of": of}


def compare(checkout: Path, config: Config, device, rounds: int, folder: str) -> dict:
    """Step and decoding of a reference and of the same network here, alternating, with all data on the device.

    `training` in patches per second, `decoding` in frames per second, with Adam and L2 in both. Theirs runs in fp32 or
    TF32, ours in the configured precision.
    """
    import torch
    from reference import KINDS, recognise, same_network

    from hnerv.evaluation.cost import gmac_per_frame
    from hnerv.model.build import solve_width
    from hnerv.model.predict import FRAMES_AT_ONCE, predict, to_uint8

    name, kind = recognise(checkout, KINDS)
    config = same_network(kind, config)
    if name.startswith("Alanjy") and config.clip.clip_weights == "none":
        raise UserError("AlanjyHuang/HNeRV has a CLIP head: remove --clip-weights none")
    scene = material_of(config, device).scene
    width = config.model.dec_width or solve_width(config.model, scene)
    config = config.replaced({"dec_width": width, **kind.fit(config, scene, width)})
    trainer = clip_trainer(config, device, folder)
    model, batch = trainer.model, next(trainer.remaining_batches())
    theirs = kind.build(checkout, config, model, batch, FRAMES_AT_ONCE)
    times = torch.arange(FRAMES_AT_ONCE, device=device, dtype=torch.float32) % scene.frames

    @torch.no_grad()
    def decode():
        return to_uint8(predict(model, times, clip=False).rgb)

    steps = {"theirs": repeated(theirs.step, times=2), "ours": repeated(trainer.step, batch, times=2)}
    return {
        "name": name,
        "config": config.to_dict(),
        "parameters": {"theirs": theirs.parameters, "ours": sum(p.numel() for p in model.parameters())},
        "gmac_per_frame": {"theirs": theirs.gmac, "ours": gmac_per_frame(model)},
        "training": ratio(alternating(steps, rounds), 2 * batch.real * scene.grid.patches),
        "decoding": ratio(alternating({"theirs": theirs.decode, "ours": decode}, rounds), FRAMES_AT_ONCE),
    }


def ratio(seconds: dict[str, list[float]], units: int) -> dict:
    """Units per second of both, and the median and range of their ratio over the rounds."""
    ratios = [theirs / ours for theirs, ours in zip(seconds["theirs"], seconds["ours"], strict=True)]
    rates = {name: units / median(values) for name, values in seconds.items()}
    return {**rates, "times": median(ratios), "range": [min(ratios), max(ratios)]}


def growth(config: Config, device, folder: str) -> list[dict]:
    """Step and decoding with one setting changed at a time. A value that the grid does not divide is skipped."""
    from hnerv.evaluation.cost import decode_fps
    from hnerv.model import coded_parameters

    scene, size = material_of(config, device).scene, config.model.modelsize
    pixels = [(int(scene.height * k), int(scene.width * k)) for k in (0.5, 1, 2)]
    # (axis of the plot, flag, its value, position on the axis)
    points = [("frames", "frames", f"0:{scene.frames * k // 4}", scene.frames * k // 4) for k in (1, 2, 4)]
    points += [("pixels", "resize", f"{height}x{width}", height * width) for height, width in pixels]
    points += [("modelsize", "modelsize", size * k, size * k) for k in (0.5, 1, 2)]
    rows = []
    for axis, field, value, number in points:
        changes = {"blend_freq": 0, field: value} | ({"dec_width": 0} if axis == "modelsize" else {})
        try:
            trainer = clip_trainer(config.replaced(changes), device, folder)
        except UserError as error:
            print(f"growth     {field} {value} skipped: {error}", flush=True)
            continue
        step = repeated(trainer.step, next(trainer.remaining_batches()), times=BLOCK)
        rows.append(
            {
                "axis": axis,
                "value": value,
                "number": number,
                "step_ms": 1e3 * median(alternating({"step": step}, 3)["step"]) / BLOCK,
                "decode_fps": decode_fps(trainer.model, seconds=0.5),
                "parameters": sum(coded_parameters(trainer.model).values()),
            }
        )
        report("growth", {f"{axis} {value}": {key: rows[-1][key] for key in ("step_ms", "decode_fps", "parameters")}})
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """A column per axis: milliseconds per step above, decoded frames per second below."""
    labels = {"frames": "frames", "pixels": "pixels per frame", "modelsize": "parameters, millions"}
    names = [name for name in labels if any(row["axis"] == name for row in rows)]
    with axes_of_figure(path, 2, len(names), size=(4 * len(names), 6)) as grid:
        for column, name in zip(grid.T, names, strict=True):
            own = [row for row in rows if row["axis"] == name]
            for cell, key, label in zip(column, ("step_ms", "decode_fps"), ("ms per step", "frames/s"), strict=True):
                cell.plot([row["number"] for row in own], [row[key] for row in own], "o-")
                cell.set(xlabel=labels[name], ylabel=label)
                cell.set_ylim(bottom=0)


if __name__ == "__main__":
    main()
