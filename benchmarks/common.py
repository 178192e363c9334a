"""Shared by the benchmarks: trainers, timing in alternating rounds, processes of this checkout, Markdown tables.

Whatever the benchmarks use of `hnerv.training.trainer.Trainer` beyond single steps is in this module. Imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hnerv.config import Config

ROOT = Path(__file__).resolve().parent.parent
HNERV = [sys.executable, "-c", "from hnerv.cli import main; main()"]
"""The console script, run from the checkout; arguments follow."""
BLOCK = 10
"""Steps timed together."""
CLIP_DIM = 512


def build_trainer(config: Config, material, store, folder: str, **options):
    """A Trainer with seeded weights. It writes into `folder`, which the caller deletes. `options` are the Trainer's."""
    import torch

    from hnerv.model import build_model
    from hnerv.runs.folder import RunFolder
    from hnerv.runs.record import RunRecord
    from hnerv.training.optim import build_optimizer
    from hnerv.training.trainer import Trainer

    torch.manual_seed(config.train.seed)
    model = build_model(config.model, material.scene).to(store.device, memory_format=torch.channels_last)
    record = RunRecord.of("", config, material, model)
    optimizer = build_optimizer(model, config.train)
    return Trainer(model, optimizer, store, config, RunFolder(Path(folder), False), record, **options)


def clip_trainer(config: Config, device, folder: str, **options):
    """A Trainer on the video of `config`. Its CLIP loss, if there is a head, is on from the first step."""
    from hnerv.data.store import training_store

    config = config.replaced({"pixel_loss_warmup_epochs": 0, "clip_ramp_epochs": 0, "params_freq": 1})
    material = material_of(config, device)
    return build_trainer(config, material, training_store(material, config, device), folder, **options)


def material_of(config: Config, device):
    """As `hnerv.data.store.load_material`, but without running the CLIP model: its targets are random vectors."""
    import torch
    import torch.nn.functional as F

    from hnerv.data.clip import Targets
    from hnerv.data.store import load_material

    if config.clip.clip_weights == "none" or config.clip.clip_targets:
        return load_material(config, device)
    material = load_material(config.replaced({"clip_weights": "none"}), device)
    scene, generator = material.scene, torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(scene.frames, scene.grid.patches, CLIP_DIM, generator=generator), dim=-1)
    targets = Targets(vectors, "random vectors", "random", "", "random vectors")
    return material._replace(targets=targets, scene=dataclasses.replace(scene, clip_dim=CLIP_DIM))


def advance(trainer, count: int) -> int:
    """Run the next `count` steps as `fit` does, across epochs -> number of training frames in them."""
    sizes, frames = trainer.batches.sizes.tolist(), 0
    for _ in range(count):
        trainer.state.step_in_epoch %= trainer.steps_per_epoch
        if trainer.state.step_in_epoch == 0:
            trainer.state.times.clear()
            trainer.begin_epoch()
        frames += sizes[trainer.state.step_in_epoch]
        trainer.advance()
    return frames


def warm_up(trainer) -> None:
    """Capture every kind of step. The rarest one, the last of an epoch, occurs once per epoch."""
    if trainer.captures:
        advance(trainer, 3 * trainer.steps_per_epoch)


def logged_epoch(trainer, logger) -> float:
    """Run the first epoch again and log it -> seconds that logging took. The wait for the last step is not counted."""
    trainer.log_to(logger)
    trainer.state.epoch = trainer.state.step_in_epoch = 0
    began = time.perf_counter()
    advance(trainer, trainer.steps_per_epoch)
    trainer.training_step.records.cpu()
    start = time.perf_counter()
    trainer.close_epoch(began)
    logger.position()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the current CUDA device, if it is in use."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object]) -> float:
    """Wall time of a call, including the work that it started on the device."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def alternating(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in turns, so that a slow phase of the machine affects all. The first round is dropped."""
    turns = [{name: seconds_of(call) for name, call in calls.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in calls}


def repeated(call: Callable[..., object], *args: object, times: int = BLOCK) -> Callable[[], None]:
    """A function that calls `call(*args)` several times."""

    def run() -> None:
        for _ in range(times):
            call(*args)

    return run


def machine_rates(device, dtype=None) -> dict[str, float]:
    """Rates of a matrix product in `dtype` (fp32) and of a copy far larger than the caches, read and written bytes."""
    import torch

    side, numbers = (8192, 1 << 28) if device.type == "cuda" else (1024, 1 << 25)
    a = torch.randn(side, side, device=device, dtype=dtype or torch.float32)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    calls = {"product": lambda: a @ a, "copy": lambda: target.copy_(source)}
    best = {name: min(seconds) for name, seconds in alternating(calls, 5).items()}
    return {"gmac_per_second": side**3 / best["product"] / 1e9, "gb_per_second": 8 * numbers / best["copy"] / 1e9}


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child_environment(*folders: Path, **more: str) -> dict[str, str]:
    """For processes that import this checkout, and modules of more folders. They load no models from the network."""
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    path = os.pathsep.join(map(os.path.abspath, [ROOT, *given, *folders]))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def report(title: str, values: dict) -> None:
    """Print a line for each value; those of nested dictionaries with both names."""
    for name, value in values.items():
        if isinstance(value, dict):
            report(title, {f"{name} {key}": inner for key, inner in value.items()})
        else:
            numbers = value if isinstance(value, list) else [value]
            shown = [f"{n:,.3f}" if isinstance(n, float) else f"{n:,}" if isinstance(n, int) else n for n in numbers]
            print(f"{title:10} {name:28} {' to '.join(shown)}", flush=True)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without a final newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


@contextlib.contextmanager
def axes_of_figure(path: Path, *shape: int, size: tuple[float, float]):
    """Axes (rows, columns) of a figure that is written to `path` at the end of the block."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
