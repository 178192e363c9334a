"""Train a ladder of variants on one clip with equal budgets; write a table and a plot of PSNR over training time.

    python benchmarks/quality.py --scale proxy --seeds 0 1 2 --jobs 2
    python benchmarks/quality.py --scale bunny-1.5m-1_1_1 --only default --seeds 0

Results are kept in --out and finished trainings are skipped: run the same command to resume.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

from common import axes_of_figure, build_trainer, markdown

from hnerv.command import one_line_errors, set_up_torch
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.flags import Parser
from hnerv.presets import preset

Settings = dict[str, object]
NO_CLIP: Settings = {"clip_weights": "none"}
PROXY: Settings = {**preset("demo"), "modelsize": 0.2, "epochs": 30, "eval_freq": 5, **NO_CLIP}
SCALES: dict[str, Settings] = {
    "proxy": PROXY,
    "proxy-1_1_2": {**PROXY, "data_split": "1_1_2"},
    "demo": {**preset("demo"), **NO_CLIP},
    **{
        f"{name}-{split}": {**preset(name), "eval_freq": 25, **NO_CLIP, "data_split": split}
        for name in ("bunny-1.5m", "bunny-3m")
        for split in ("1_1_1", "9_9_10", "1_1_2", "6_6_10")  # those of the published tables
    },
}
"""Name -> settings that differ from the defaults of `hnerv.config`."""

PE: Settings = {"embedding": "pe", "pe": "1.25_80"}
ENCODER: Settings = {"embedding": "encoder", "clip_loss": "cosine"}
PUBLISHED: Settings = {
    "act": "gelu",
    "bilinear_init": False,
    "optimizer": "adam",
    "lr": 0.001,
    "lr_type": "cosine_0.1_1_0.1",
    "batch_size": 1,
    "pixel_loss": "Fusion6",
    "blend_freq": 0,
    "grad_clip": 0.0,
}
"""The recipe of HNeRV and of its patch-based fork with a CLIP head (AlanjyHuang/HNeRV), on our layout of the stages."""

LADDER: dict[str, Settings] = {
    "default": {},
    "pe 1.25": PE,
    "pe 1.25 without blends": {**PE, "blend_freq": 0},
    "pe 1.25 as published": {**PE, **PUBLISHED},
    "pe 1.05": {"embedding": "pe", "pe": "1.05_80"},
    "encoder": ENCODER,
    "encoder as published": {**ENCODER, **PUBLISHED},
    "gelu": {"act": "gelu"},
    "no bilinear init": {"bilinear_init": False},
    "adam": {"optimizer": "adam"},
    "frequency loss": {"pixel_loss": "Fusion10_freq"},
    "L1": {"pixel_loss": "L1"},
    "codes at the same rate": {"embed_lr_factor": 1.0},
    "codes at 10 x the rate": {"embed_lr_factor": 10.0},
    "one frame a step": {"batch_size": 1},
    "four frames a step": {"batch_size": 4},
    "lr 0.004": {"lr": 0.004},
    "no blends": {"blend_freq": 0},
    "blends in every second step": {"blend_freq": 2},
    "bf16": {"precision": "bf16"},
}
"""Variant -> the settings that it changes."""

CLIP_LADDER: dict[str, Settings] = {
    "no CLIP head": {"clip_targets": "", **NO_CLIP},
    "CLIP head": {},
    "lambda 0.01": {"clip_loss_weight": 0.01},
    "cosine alone": {"clip_loss": "cosine"},
    "lambda 0.05": {"clip_loss_weight": 0.05},
    "site 2": {"clip_site": 2},
    "one mean a patch": {"clip_pool": 1},
    "ramp": {"clip_ramp_epochs": 10},
}
"""Variants for --clip-targets."""


class Job(NamedTuple):
    """One training. `settings` differ from the defaults; with `seconds` above 0, time replaces the epochs of these."""

    variant: str
    settings: Settings
    seconds: float
    device: str
    threads: int
    path: Path


def main() -> None:
    args = parse()
    with one_line_errors("quality.py", args.debug):
        jobs = plan(args)
        todo = [job for job in jobs if not done(job)]
        print(f"{len(jobs)} trainings, {len(jobs) - len(todo)} of them already finished", flush=True)
        with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
            for line in pool.imap_unordered(run, todo):
                print(line, flush=True)
        rows, folder = [read_json(job.path) for job in jobs], jobs[0].path.parent
        text = table(rows)
        (folder / "table.md").write_text(text)
        print(text)
        plot(rows, folder / "psnr.png")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="quality.py", description=__doc__)
    add = parser.add_argument
    add("--scale", default="proxy", choices=tuple(SCALES), help="base settings of all variants (proxy)")
    add("--only", nargs="+", default=[], metavar="NAME", help=f"variants to train (all): {', '.join(LADDER)}")
    heads = f"target file; trains the variants of the CLIP head instead: {', '.join(CLIP_LADDER)}"
    add("--clip-targets", default="", metavar="FILE", help=heads)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of every variant (0 1 2)")
    add("--epochs", type=int, default=0, help="epochs of every variant; 0: as set by --scale (0)")
    budget = "training time of every variant instead of epochs, processor time on the CPU; 0: use epochs (0)"
    add("--seconds", type=float, default=0, help=budget)
    add("--jobs", type=int, default=1, help="trainings to run in parallel (1)")
    add("--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (auto)")
    add("--threads", type=int, default=1, help="CPU threads of each training (1)")
    add("--out", type=Path, default=Path("output/quality"), help="results folder (output/quality)")
    add("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> list[Job]:
    """Every variant with every seed. Raises UserError for an unknown variant."""
    ladder = CLIP_LADDER if args.clip_targets else LADDER
    names = args.only or list(ladder)
    if unknown := [name for name in names if name not in ladder]:
        raise UserError(f"--only {', '.join(unknown)} does not exist: choose from {', '.join(ladder)}")
    folder = args.out / (f"{args.scale}-clip" if args.clip_targets else args.scale)
    common = SCALES[args.scale] | ({"epochs": args.epochs} if args.epochs else {})
    if args.clip_targets:
        common |= {"clip_weights": "auto", "clip_targets": args.clip_targets}
    jobs = []
    for seed, name in itertools.product(args.seeds, names):
        path, settings = folder / f"{name.replace(' ', '_')}-{seed}.json", common | ladder[name] | {"seed": seed}
        jobs.append(Job(name, settings, args.seconds, args.device, args.threads, path))
    return jobs


def done(job: Job) -> bool:
    """Whether there is a result with the same configuration and budget."""
    if not job.path.is_file():
        return False
    row, config = read_json(job.path), Config().replaced(job.settings).to_dict()
    return row["config"] == json.loads(json.dumps(config)) and row["budget_seconds"] == job.seconds


def run(job: Job) -> str:
    """Train one variant, in its own process, and write its row -> a line to print."""
    set_up_torch(job.threads)
    import torch

    from hnerv.command import pick_device
    from hnerv.data.store import FrameStore, load_material
    from hnerv.model import coded_parameters

    device = pick_device(job.device)
    config = Config().replaced(job.settings)
    material = load_material(config, device)
    store = FrameStore(material, device)
    # Other processes hardly change the processor time; with CUDA it leaves out the device.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        if job.seconds:
            trainer = build_trainer(config, material, store, folder)
            config = config.replaced({"epochs": max(2, round(job.seconds / epoch_seconds(trainer, clock)))})
        curve = curve_logger(clock)
        trainer = build_trainer(config, material, store, folder, logger=curve)
        trainer.fit(NoConsole())
    values = {name.removeprefix("Eval/Frame/"): v for name, v in trainer.state.evaluation.items() if "/Frame/" in name}
    row = {
        "variant": job.variant,
        "config": Config().replaced(job.settings).to_dict(),
        "budget_seconds": job.seconds,
        "epochs": config.train.epochs,
        "parameters": sum(coded_parameters(trainer.model).values()),
        "seconds": curve.seconds,
        "curve": curve.points,
        **values,
        **blends(trainer.evaluated, store),
        "torch": torch.__version__,
    }
    write_json(job.path, row)
    shown = (f"{name} {row[name]:{form}}" for name, form in COLUMNS.items() if name in row)
    return f"{job.variant}, seed {config.train.seed}: {', '.join(shown)}"


def epoch_seconds(trainer, clock: Callable[[], float]) -> float:
    """Seconds of an epoch from the median of nine rounds of ten steps: a burst of other work changes it little."""
    batches = itertools.chain.from_iterable(trainer.remaining_batches() for _ in itertools.count())
    rounds = []
    for _ in range(10):
        start = clock()
        for batch in itertools.islice(batches, 10):
            trainer.step(batch).cpu()
        rounds.append((clock() - start) / 10)
    return median(rounds[1:]) * trainer.steps_per_epoch


def curve_logger(clock: Callable[[], float]):
    """A logger with the training time so far, `seconds`, and `points`: (seconds, training, unseen psnr_frame).

    Evaluations are not timed.
    """
    from hnerv.tracking import NullLogger

    class CurveLogger(NullLogger):
        def __init__(self) -> None:
            self.points: list[list[float | None]] = []
            self.seconds, self.mark = 0.0, clock()

        def record(self, kind: str, values: dict[str, object]) -> None:
            now = clock()
            if kind == "train":
                self.seconds += now - self.mark
            else:
                pair = [values.get(f"Eval/Frame/{split}_psnr_frame") for split in ("train", "val")]
                self.points.append([self.seconds, *pair])
            self.mark = now

    return CurveLogger()


class NoConsole:
    """A console that prints nothing."""

    def step(self) -> None: ...

    def epoch(self, *_: object) -> None: ...

    def evaluation(self, *_: object) -> None: ...

    def print_line(self, line: str) -> None: ...


def blends(model, store) -> dict[str, float]:
    """psnr_frame of unseen frames against the linear blend of their two nearest training frames: sources, and decoded.

    A model below the blend of decoded frames has learned nothing between frames. Empty without unseen frames between
    training frames.
    """
    import torch

    from hnerv.metrics import frame_mse, psnr
    from hnerv.model.predict import round8

    train = model.scene.train
    found = {"blend_of_sources": [], "blend_of_decoded": []}
    with torch.no_grad():
        for t in (t for t in model.scene.val if train[0] < t < train[-1]):
            before, after = max(s for s in train if s < t), min(s for s in train if s > t)
            share = (t - before) / (after - before)
            where = torch.tensor([before, t, after])
            frames = store.frames(where)
            decoded = model(where.to(store.device).float(), clip=False).rgb
            for values, (a, _, b) in zip(found.values(), (frames.split(1), decoded.split(1)), strict=True):
                values.append(psnr(frame_mse(round8(torch.lerp(a, b, share)), frames[1:2])).item())
    return {name: mean(values) for name, values in found.items() if values}


COLUMNS = {
    "train_psnr_frame": ".2f",
    "val_psnr_frame": ".2f",
    "blend_of_decoded": ".2f",
    "blend_of_sources": ".2f",
    "train_clip_sim_centred": ".4f",
    "val_clip_sim_centred": ".4f",
    "train_clip_retrieval": ".3f",
    "val_clip_retrieval": ".3f",
    "seconds": ".0f",
}
"""Values of a row in the table, with their format."""


def table(rows: list[dict]) -> str:
    """A line per variant, mean ± standard deviation over seeds."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [variant, str(len(own)), str(own[0]["epochs"]), f"{own[0]['parameters']:,}"]
        for name in columns:
            values = [row[name] for row in own if name in row]
            spread = f" ± {stdev(values):{COLUMNS[name]}}" if len(values) > 1 else ""
            cells.append(f"{mean(values):{COLUMNS[name]}}{spread}" if values else "-")
        lines.append(cells)
    return markdown(["variant", "seeds", "epochs", "parameters", *columns], lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """psnr_frame over training time, the first seed of each variant: training frames solid, unseen ones dashed."""
    with axes_of_figure(path, size=(9, 6)) as ((axes,),):
        for row in {row["variant"]: row for row in reversed(rows)}.values():
            seconds, seen, unseen = zip(*row["curve"], strict=True)
            (line,) = axes.plot(seconds, seen, label=row["variant"])
            if unseen[0] is not None:
                axes.plot(seconds, unseen, "--", color=line.get_color())
        axes.set(xlabel="training time, s", ylabel="psnr_frame, dB (training solid, unseen dashed)")
        axes.legend()


if __name__ == "__main__":
    main()
