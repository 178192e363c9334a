"""Train a ladder of variants on one clip with equal budgets; write a table and a plot of PSNR over training time.

    python benchmarks/quality.py --scale proxy --seeds 0 1 2 --jobs 2
    python benchmarks/quality.py --scale bunny-1.5m-1_1_1 --only default --seeds 0
    python benchmarks/quality.py --only default --epochs 30 --seconds 60 --reference ../HiNeRV ../HNeRV

With both --epochs and --seconds, every variant is trained twice. --reference adds trainings of published
implementations, see reference_training.py, with as nearly as possible the parameters of the first variant.

Results are kept in --out and finished trainings are skipped: run the same command to resume.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

from common import axes_of_figure, build_trainer, markdown
from variants import CLIP_LADDER, FRONTIER, LADDER, SCALES, Settings

from hnerv.command import one_line_errors, set_up_torch
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.flags import Parser


class Job(NamedTuple):
    """One training. `settings` differ from the defaults; with `seconds` above 0, time replaces the epochs of these.

    With `checkout`, a published implementation is trained, with the parameters of the variant that has these settings.
    """

    variant: str
    settings: Settings
    seconds: float
    device: str
    threads: int
    path: Path
    checkout: Path | None = None


class Trained(NamedTuple):
    """A finished training: values of its row, and `decode`: positions (B,) -> frames (B, 3, H, W) in [0, 1]."""

    row: dict[str, object]
    decode: Callable


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
        plot(rows, folder / "psnr.png", args.frontier)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="quality.py", description=__doc__)
    add = parser.add_argument
    add("--scale", default="proxy", choices=tuple(SCALES), help="base settings of all variants (proxy)")
    add("--only", nargs="+", default=[], metavar="NAME", help=f"variants to train (all): {', '.join(LADDER)}")
    heads = f"target file; trains the variants of the CLIP head instead: {', '.join(CLIP_LADDER)}"
    add("--clip-targets", default="", metavar="FILE", help=heads)
    sizes = f"train both decoders in several sizes instead: {', '.join(FRONTIER)}"
    add("--frontier", action="store_true", help=sizes)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of every variant (0 1 2)")
    add("--epochs", type=int, default=0, help="epochs of every variant; 0: as set by --scale (0)")
    budget = "training time of every variant, processor time on the CPU, instead of epochs, or again if --epochs is set"
    add("--seconds", type=float, default=0, help=f"{budget}; 0: use epochs (0)")
    checkouts = (
        "checkouts of hmkx/HiNeRV or haochen-rye/HNeRV to train as well, with the parameters of the first variant"
    )
    add("--reference", nargs="+", type=Path, default=[], metavar="DIR", help=checkouts)
    add("--jobs", type=int, default=1, help="trainings to run in parallel (1)")
    add("--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (auto)")
    add("--threads", type=int, default=1, help="CPU threads of each training (1)")
    add("--out", type=Path, default=Path("output/quality"), help="results folder (output/quality)")
    add("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> list[Job]:
    """Every variant and reference with every seed and budget. Raises UserError for an unknown one."""
    if args.frontier and (args.clip_targets or args.scale.startswith("bunny")):
        raise UserError(
            "--frontier has no CLIP head and layouts for 160x320: remove --clip-targets, or the --scale of bunny"
        )
    ladder = CLIP_LADDER if args.clip_targets else FRONTIER if args.frontier else LADDER
    names = args.only or list(ladder)
    if unknown := [name for name in names if name not in ladder]:
        raise UserError(f"--only {', '.join(unknown)} does not exist: choose from {', '.join(ladder)}")
    folder = args.out / f"{args.scale}{'-clip' * bool(args.clip_targets)}{'-frontier' * args.frontier}"
    common = SCALES[args.scale] | ({"epochs": args.epochs} if args.epochs else {})
    if args.clip_targets:
        common |= {"clip_weights": "auto", "clip_targets": args.clip_targets}
    checkouts = references(args) if args.reference else {}
    variants = [*((name, ladder[name], None) for name in names)]
    variants += [(name, ladder[names[0]], checkout) for name, checkout in checkouts.items()]
    budgets = [0.0, args.seconds] if args.epochs and args.seconds else [args.seconds]
    jobs = []
    for seed, seconds, (name, changes, checkout) in itertools.product(args.seeds, budgets, variants):
        budget = f"-{seconds:g}s" if seconds else ""
        path = folder / f"{name.replace(' ', '_').replace('/', '_')}{budget}-{seed}.json"
        settings = common | changes | {"seed": seed}
        jobs.append(Job(name, settings, seconds, args.device, args.threads, path, checkout))
    return jobs


def references(args: argparse.Namespace) -> dict[str, Path]:
    """{name: checkout}. Raises UserError for folders that are none, or are twice the same."""
    from reference import recognise
    from reference_training import TRAININGS

    if args.clip_targets:
        raise UserError("--reference has no CLIP head: remove --clip-targets")
    found = {recognise(folder, TRAININGS)[0]: folder for folder in args.reference}
    if len(found) < len(args.reference):
        raise UserError(f"--reference has several checkouts of the same code: pass one of each, {', '.join(found)}")
    return found


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
    from hnerv.data.store import load_material, training_store

    device = pick_device(job.device)
    config = Config().replaced(job.settings)
    material = load_material(config, device)
    store = training_store(material, config, device)
    # Other processes hardly change the processor time; with CUDA it leaves out the device.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    trained = (train_reference if job.checkout else train_variant)(job, config, material, store, clock)
    row = {
        "variant": job.variant,
        "config": config.to_dict(),
        "budget_seconds": job.seconds,
        **trained.row,
        **bars(material.scene, trained.decode, store),
        "torch": torch.__version__,
    }
    write_json(job.path, row)
    shown = (f"{name} {row[name]:{form}}" for name, form in COLUMNS.items() if name in row)
    return f"{label(row)}, seed {config.train.seed}: {', '.join(shown)}"


def train_variant(job: Job, config: Config, material, store, clock: Callable[[], float]) -> Trained:
    """Train one of our models."""
    from hnerv.model import coded_parameters

    with tempfile.TemporaryDirectory() as folder:
        if job.seconds:
            trainer = build_trainer(config, material, store, folder)
            trainer.batches.make_all()  # once for a training, however long
            batches = itertools.chain.from_iterable(trainer.remaining_batches() for _ in itertools.count())
            epoch = epoch_seconds(trainer.step, batches, trainer.steps_per_epoch, clock)
            config = config.replaced({"epochs": epochs_within(job.seconds, epoch)})
        curve = curve_logger(clock)
        trainer = build_trainer(config, material, store, folder, logger=curve)
        trainer.fit(NoConsole())
    model, measured = trainer.evaluated, trainer.state.evaluation
    row = {
        "epochs": config.train.epochs,
        "parameters": sum(coded_parameters(model).values()),
        "seconds": curve.seconds,
        "curve": curve.points,
        **{name.removeprefix("Eval/Frame/"): value for name, value in measured.items() if "/Frame/" in name},
    }
    return Trained(row, lambda where: model(where.to(store.device).float(), clip=False).rgb)


def train_reference(job: Job, config: Config, material, store, clock: Callable[[], float]) -> Trained:
    """Train a published implementation, with the budget, evaluations and parameters of our variant with `config`."""
    from reference_training import commit_of, psnr_frames, public_training

    from hnerv.model import build_model, coded_parameters

    parameters = sum(coded_parameters(build_model(config.model, material.scene)).values())
    given = job.checkout, material, store, parameters, config.train.seed
    epochs, every = config.train.epochs, config.train.eval_freq
    if job.seconds:
        training = public_training(*given)
        batches = itertools.chain.from_iterable(training.batches() for _ in itertools.count())
        # The rate of the ramp's start hardly changes the weights, and no step takes longer for its rate.
        epoch = epoch_seconds(lambda batch: training.step(batch, 0.0), batches, training.steps_per_epoch, clock)
        epochs = epochs_within(job.seconds, epoch)
    training, curve, measured = public_training(*given), curve_logger(clock), {}
    total, step = epochs * training.steps_per_epoch, itertools.count()
    for epoch in range(1, epochs + 1):
        for batch in training.batches():
            loss = training.step(batch, next(step) / total)
        loss.cpu()  # waits for the device
        curve.record("train", {})
        if epoch == epochs or (every and epoch % every == 0):
            splits = {"train": material.scene.train, "val": material.scene.val}
            measured = {f"{name}_psnr_frame": psnr_frames(training, store, at) for name, at in splits.items() if at}
            curve.record("eval", {f"Eval/Frame/{name}": value for name, value in measured.items()})
    row = {
        "epochs": epochs,
        "parameters": training.parameters,
        "seconds": curve.seconds,
        "curve": curve.points,
        **measured,
        "layout": training.layout,
        "commit": commit_of(job.checkout),
    }
    return Trained(row, training.decode)


def epochs_within(seconds: float, epoch: float) -> int:
    """Epochs of `epoch` seconds each that come closest to `seconds`, at least 2."""
    return max(2, round(seconds / epoch))


def epoch_seconds(step: Callable, batches: Iterable, steps_per_epoch: int, clock: Callable[[], float]) -> float:
    """Seconds of an epoch from the median of nine rounds of ten steps: a burst of other work changes it little."""
    rounds = []
    for _ in range(10):
        start = clock()
        for batch in itertools.islice(batches, 10):
            step(batch).cpu()
        rounds.append((clock() - start) / 10)
    return median(rounds[1:]) * steps_per_epoch


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


def bars(scene, decode: Callable, store) -> dict[str, float]:
    """psnr_frame of unseen frames against interpolations of their two nearest training frames.

    Linear or along the motion; of the source frames, uncompressed, or of the frames that the model decodes. A model
    below the interpolations of its own frames has learned nothing between frames. Empty without unseen frames between
    training frames.
    """
    import torch

    from hnerv.metrics import frame_mse, psnr
    from hnerv.model.predict import round8
    from hnerv.motion import between

    train, found = scene.train, {}
    with torch.no_grad():
        for t in (t for t in scene.val if train[0] < t < train[-1]):
            before, after = max(s for s in train if s < t), min(s for s in train if s > t)
            share = (t - before) / (after - before)
            where = torch.tensor([before, t, after])
            frames = store.frames(where)
            for name, pictures in (("sources", frames), ("decoded", round8(decode(where)))):
                low, _, high = pictures.split(1)
                pair = torch.lerp(low, high, share), between(low, high, torch.tensor([share], device=low.device))
                for kind, picture in zip(("blend", "motion"), pair, strict=True):
                    value = psnr(frame_mse(round8(picture), frames[1:2])).item()
                    found.setdefault(f"{kind}_of_{name}", []).append(value)
    return {name: mean(values) for name, values in found.items()}


COLUMNS = {
    "train_psnr_frame": ".2f",
    "val_psnr_frame": ".2f",
    "blend_of_decoded": ".2f",
    "motion_of_decoded": ".2f",
    "blend_of_sources": ".2f",
    "motion_of_sources": ".2f",
    "train_clip_sim_centred": ".4f",
    "val_clip_sim_centred": ".4f",
    "train_clip_retrieval": ".3f",
    "val_clip_retrieval": ".3f",
    "seconds": ".0f",
}
"""Values of a row in the table, with their format."""


def table(rows: list[dict]) -> str:
    """A line per variant and budget, mean ± standard deviation over seeds."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = []
    for variant in dict.fromkeys(map(label, rows)):
        own = [row for row in rows if label(row) == variant]
        cells = [variant, str(len(own)), str(own[0]["epochs"]), f"{own[0]['parameters']:,}"]
        for name in columns:
            values = [row[name] for row in own if name in row]
            spread = f" ± {stdev(values):{COLUMNS[name]}}" if len(values) > 1 else ""
            cells.append(f"{mean(values):{COLUMNS[name]}}{spread}" if values else "-")
        lines.append(cells)
    return markdown(["variant", "seeds", "epochs", "parameters", *columns], lines) + "\n"


def label(row: dict) -> str:
    """Name of a row: the variant, and its budget if that is a time."""
    return row["variant"] + (f", {row['budget_seconds']:g} s" if row["budget_seconds"] else "")


def network_of(row: dict) -> str:
    """Our decoder or the reference, and the budget if that is a time: what a line of the frontier has in common."""
    ours = "layout" not in row
    return label(row | {"variant": row["config"]["model"]["decoder"]} if ours else row)


def plot(rows: list[dict], path: Path, sizes: bool = False) -> None:
    """psnr_frame over training time, the first seed of each variant: training frames solid, unseen ones dashed.

    With `sizes`, for --frontier, also the last psnr_frame of training frames over the parameters, a line per network.
    """
    first = {label(row): row for row in reversed(rows)}
    with axes_of_figure(path, 1, 1 + sizes, size=(9 + 5 * sizes, 6)) as (panels,):
        for name, row in first.items():
            seconds, seen, unseen = zip(*row["curve"], strict=True)
            (line,) = panels[0].plot(seconds, seen, label=name)
            if unseen[0] is not None:
                panels[0].plot(seconds, unseen, "--", color=line.get_color())
        panels[0].set(xlabel="training time, s", ylabel="psnr_frame, dB (training solid, unseen dashed)")
        for network in dict.fromkeys(map(network_of, rows)) if sizes else ():
            own = [row for row in first.values() if network_of(row) == network]
            points = sorted((row["parameters"] / 1e6, row["train_psnr_frame"]) for row in own)
            panels[1].plot(*zip(*points, strict=True), "o-", label=network)
            panels[1].set(xlabel="coded parameters, millions", ylabel="psnr_frame of training frames, dB")
        for axes in panels:
            axes.legend()


if __name__ == "__main__":
    main()
