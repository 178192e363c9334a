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

from ladder import CLIP_LADDER, LADDER, SCALES

from hnerv.command import one_line_errors, set_up_torch
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.flags import Parser


class Job(NamedTuple):
    """One training: settings {field: value} over the defaults; `seconds` 0: the settings' epochs."""

    variant: str
    settings: dict[str, object]
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


def parse() -> argparse.Namespace:
    parser = Parser(prog="quality.py", description=__doc__)
    parser.add_argument("--scale", default="proxy", choices=tuple(SCALES), help="base settings of all variants (proxy)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help=f"variants to train (all): {', '.join(LADDER)}"
    )
    parser.add_argument(
        "--clip-targets",
        default="",
        metavar="FILE",
        help=f"target file; trains the variants of the CLIP head instead: {', '.join(CLIP_LADDER)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of every variant (0 1 2)")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of every variant; 0: as set by --scale (0)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0,
        help="training time of every variant instead of epochs, processor time on the CPU; 0: use epochs (0)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings to run in parallel (1)")
    parser.add_argument("--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (auto)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training (1)")
    parser.add_argument("--out", type=Path, default=Path("output/quality"), help="results folder (output/quality)")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_args()


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
    return [
        Job(name, common | ladder[name] | {"seed": seed}, args.seconds, args.device, args.threads,
            folder / f"{name.replace(' ', '_')}-{seed}.json")
        for seed in args.seeds
        for name in names
    ]  # fmt: skip


def done(job: Job) -> bool:
    """Whether the row is there, of the same configuration and budget."""
    if not job.path.is_file():
        return False
    row, config = read_json(job.path), Config().replaced(job.settings).to_dict()
    return row["config"] == json.loads(json.dumps(config)) and row["budget_seconds"] == job.seconds


def run(job: Job) -> str:
    """Trains one variant and writes its row; in a process of its own."""
    set_up_torch(job.threads)
    import torch

    from hnerv.command import pick_device
    from hnerv.data.store import FrameStore, load_material
    from hnerv.model import coded_parameters

    device = pick_device(job.device)
    config = Config().replaced(job.settings)
    material = load_material(config, device)
    store = FrameStore(material, device)
    with tempfile.TemporaryDirectory() as folder:
        if job.seconds:
            trainer = new_trainer(config, material.scene, store, folder)
            config = config.replaced({"epochs": max(2, round(job.seconds / epoch_seconds(trainer)))})
        trainer = new_trainer(config, material.scene, store, folder)
        curve = recorder(clock_of(device))
        trainer.fit(curve, Silence())
    values = {name.removeprefix("Eval/Frame/"): v for name, v in trainer.evaluation.items() if "/Frame/" in name}
    row = {
        "variant": job.variant,
        "config": Config().replaced(job.settings).to_dict(),
        "budget_seconds": job.seconds,
        "epochs": config.train.epochs,
        "parameters": sum(coded_parameters(trainer.model).values()),
        "seconds": curve.seconds,
        "curve": curve.points,
        **values,
        **blends(trainer.model, store),
        "torch": torch.__version__,
    }
    write_json(job.path, row)
    return f"{job.variant}, seed {config.train.seed}: " + ", ".join(
        f"{k} {row[k]:{form}}" for k, form in COLUMNS.items() if k in row
    )


def new_trainer(config, scene, store, folder: str):
    """A Trainer from its seed on, that keeps its checkpoints in a folder to be thrown away."""
    import torch

    from hnerv.model import build_model
    from hnerv.training import RunFolder, Trainer

    torch.manual_seed(config.train.seed)
    record = {"config": config.to_dict(), "targets": None}
    return Trainer(build_model(config.model, scene), store, config, RunFolder(Path(folder), False), record)


def clock_of(device):
    """Processor time on the CPU, which other processes hardly change; wall time on CUDA."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def epoch_seconds(trainer) -> float:
    """Seconds of an epoch: the median of nine rounds of ten steps, so that a burst of other work counts little."""
    clock = clock_of(trainer.store.device)
    batches = itertools.chain.from_iterable(trainer.remaining_batches() for _ in itertools.count())
    rounds = []
    for _ in range(10):
        start = clock()
        for batch in itertools.islice(batches, 10):
            trainer.step(batch).cpu()
        rounds.append((clock() - start) / 10)
    return median(rounds[1:]) * trainer.steps_per_epoch


def recorder(clock: Callable[[], float]):
    """A logger that keeps what the plot needs: `points` (training seconds, seen, unseen psnr_frame) and `seconds`.

    Evaluations are not counted.
    """
    from hnerv.tracking import NullLogger

    class Curve(NullLogger):
        seconds = 0.0

        def __init__(self) -> None:
            self.points: list[list[float | None]] = []
            self.mark = clock()

        def record(self, kind: str, values: dict[str, object]) -> None:
            now = clock()
            if kind == "train":
                self.seconds += now - self.mark
            else:
                pair = [values.get(f"Eval/Frame/{split}_psnr_frame") for split in ("train", "val")]
                self.points.append([self.seconds, *pair])
            self.mark = now

    return Curve()


class Silence:
    """A console that says nothing: `run` prints one line when a training is done."""

    def step(self) -> None: ...

    def epoch(self, *_: object) -> None: ...

    def evaluation(self, *_: object) -> None: ...


def blends(model, store) -> dict[str, float]:
    """psnr_frame of the linear blend of an unseen frame's two nearest training frames: of the sources, and decoded.

    A model below the second has learned nothing between frames. Empty where there are no two neighbours.
    """
    import torch

    from hnerv.metrics import frame_mse, psnr
    from hnerv.model.predict import round8

    scene = model.scene
    inner = [t for t in scene.val if scene.train[0] < t < scene.train[-1]]
    found = {"blend_of_sources": [], "blend_of_decoded": []}
    with torch.no_grad():
        for t in inner:
            before, after = max(s for s in scene.train if s < t), min(s for s in scene.train if s > t)
            where = torch.tensor([before, t, after])
            share = (t - before) / (after - before)
            frames = store.frames(where)
            decoded = model(where.to(store.device).float(), clip=False).rgb
            for name, (a, _, b) in zip(found, (frames.split(1), decoded.split(1)), strict=True):
                found[name].append(psnr(frame_mse(round8(torch.lerp(a, b, share)), frames[1:2])).item())
    return {name: sum(values) / len(values) for name, values in found.items() if values}


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
"""What the table shows of a row, and to how many digits."""


def table(rows: list[dict]) -> str:
    """Markdown: a line per variant, mean and deviation over seeds."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [f"| variant | seeds | epochs | parameters | {' | '.join(columns)} |", "|---" * (len(columns) + 4) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [variant, str(len(own)), str(own[0]["epochs"]), f"{own[0]['parameters']:,}"]
        for name in columns:
            values = [row[name] for row in own if name in row]
            spread = f" ± {stdev(values):{COLUMNS[name]}}" if len(values) > 1 else ""
            cells.append(f"{mean(values):{COLUMNS[name]}}{spread}" if values else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """psnr_frame over training seconds, the first seed of each variant: training solid, unseen dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    for row in {row["variant"]: row for row in reversed(rows)}.values():
        seconds, seen, unseen = zip(*row["curve"], strict=True)
        (line,) = axes.plot(seconds, seen, label=row["variant"])
        if unseen[0] is not None:
            axes.plot(seconds, unseen, "--", color=line.get_color())
    axes.set(xlabel="training time, s", ylabel="psnr_frame, dB (training solid, unseen dashed)")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
