"""What each part of the rate is worth: trainings of demo-codec without it, and its file without parts of the coder.

    python benchmarks/rate.py --epochs 40 --jobs 2

Prints a table: bytes and psnr_frame of the decoded file, mean over all frames. Equal epochs, weight of the rate and
seed. Finished trainings in --out are skipped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from common import build_trainer, markdown
from quality import NoConsole

from hnerv.command import one_line_errors, set_up_torch
from hnerv.files import read_json, write_json
from hnerv.flags import Parser
from hnerv.presets import Choice


class Variant(NamedTuple):
    """Settings that differ from demo-codec; parts of the RateModel with a number per tensor; context of the latents."""

    settings: dict[str, object]
    single: tuple[str, ...] = ()
    context: bool = True


BASE: dict[str, object] = {"clip_weights": "none"}
"""Settings of all variants that differ from demo-codec."""
VARIANTS = {
    "rate left to the encoder, 8 bits": Variant({"rate_weight": 0.0}),
    "one step and one scale per tensor, no context": Variant({}, ("steps", "densities"), False),
    "+ scales per row and column": Variant({}, ("steps",), False),
    "+ steps per row and column": Variant({}, (), False),
    "+ context of the grids (all)": Variant({}),
    "all, with noise to the end": Variant({"rounding_start": 1.0}),
    "all, rounded from the start": Variant({"rounding_start": 0.0}),
}
"""Name -> training. The names with + add to the one before."""


def main() -> None:
    args = parse()
    with one_line_errors("rate.py", args.debug):
        jobs = [(name, args.epochs, path_of(args.out, name, args.epochs)) for name in args.only or VARIANTS]
        with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
            for line in pool.imap_unordered(run, [job for job in jobs if not job[2].is_file()]):
                print(line, flush=True)
        rows = [row for *_, path in jobs for row in read_json(path)]
        print(markdown(["variant", "bytes", "psnr_frame, dB"], [[n, f"{b:,}", f"{p:.2f}"] for n, b, p in rows]))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="rate.py", description=__doc__)
    add = parser.add_argument
    add("--epochs", type=int, default=40, help="epochs of every training (40)")
    add("--only", nargs="+", choices=tuple(VARIANTS), metavar="NAME", help="variants to train (all)")
    add("--jobs", type=int, default=1, help="trainings to run in parallel, one thread each (1)")
    add("--out", type=Path, default=Path("output/rate"), help="results folder (output/rate)")
    add("--debug", action="store_true", help="print the traceback of an error")
    return parser.parse_args(argv)


def path_of(out: Path, name: str, epochs: int) -> Path:
    """The result of a variant."""
    return out / f"{name.replace(' ', '_').replace(',', '').replace('+', 'plus')}-{epochs}.json"


def run(job: tuple[str, int, Path]) -> str:
    """Train a variant in its own process and write its rows (name, bytes, PSNR) -> a line to print."""
    name, epochs, path = job
    set_up_torch(1)
    import torch

    from hnerv.data.store import load_material, training_store

    variant = VARIANTS[name]
    settings = {**BASE, "epochs": epochs, "eval_freq": 0, **variant.settings}
    config, device = Choice.of("demo-codec", settings).config, torch.device("cpu")
    material = load_material(config, device)
    store = training_store(material, config, device)
    with tempfile.TemporaryDirectory() as folder, patch("hnerv.training.rate.RateModel", reduced(variant)):
        trainer = build_trainer(config, material, store, folder)
        trainer.fit(NoConsole())
        trained = trainer.evaluated.state_dict()
        coder = coders() if variant == VARIANTS["+ context of the grids (all)"] else {"": None}
        rows = []
        for label, change in coder.items():
            trainer.evaluated.load_state_dict(trained)
            size, quality = coded(trainer, Path(folder, "coded.hnerv"), change)
            rows.append([f"{name}{label}", size, quality])
    write_json(path, rows)
    return f"{name}: {rows[0][1]:,} bytes, {rows[0][2]:.2f} dB"


def reduced(variant: Variant):
    """The RateModel of a variant."""
    from hnerv.rate import LatentDensity, OuterSum, RateModel

    class Reduced(RateModel):
        def __init__(self, model, seed: int) -> None:
            super().__init__(model, seed)
            for part in variant.single:
                modules = getattr(self, part)
                for number, module in enumerate(modules):
                    if isinstance(module, OuterSum):
                        modules[number] = OuterSum(1, 1, module.rows[0].item())
            for density in self.densities if not variant.context else ():
                if isinstance(density, LatentDensity):
                    for weights in (density.previous, density.near, density.activity):
                        weights.requires_grad_(False)

    return Reduced


@contextmanager
def tables_without_vectors() -> Iterator[None]:
    """A scale class or a histogram per tensor."""
    import numpy as np

    from hnerv.codec import weights
    from hnerv.codec.entropy import Density, index_of

    def fit(symbols, *guides):
        index = index_of(int(np.abs(symbols).max(initial=0)))
        fits = [weights._Fit(symbols, Density(logistic, index), guides) for logistic in (False, True)]
        return min((found.classes(()) for found in fits), key=lambda pair: pair[1])

    with patch("hnerv.codec.records.fit_classes", fit):
        yield


def coders() -> dict[str, Callable | None]:
    """{end of the name: the coder without a part}."""
    return {
        "": None,
        ", coded without scales per row and column": tables_without_vectors,
        ", coded without context": lambda: patch("hnerv.codec.records.fit_context", lambda symbols: None),
    }


def coded(trainer, path: Path, change: Callable | None) -> tuple[int, float]:
    """Bytes of the file, and the mean psnr_frame of all frames decoded from it."""
    from hnerv.codec import Options, encode_run, open_single_chunk, write_bitstream
    from hnerv.evaluation import evaluate

    learned = trainer.rate.estimate.scales() if trainer.rate else None
    with change() if change else nullcontext():
        write_bitstream(path, [encode_run(trainer.evaluated, trainer.record, Options(), None, {}, learned=learned)])
    report = evaluate(open_single_chunk(path).model(), trainer.store)
    return path.stat().st_size, report.train.psnr_frame.mean().item()


if __name__ == "__main__":
    main()
