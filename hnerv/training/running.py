"""A run from its start to its end: of a video, of a segment of one, of a task of a fleet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from hnerv.config import Config, LogConfig
from hnerv.dataset import FrameStore, Material, load_material
from hnerv.flags import Choice
from hnerv.model import build_model
from hnerv.tracking.console import Console
from hnerv.training.checks import check_scene, check_settings
from hnerv.training.faults import device_errors
from hnerv.training.folder import RunFolder
from hnerv.training.limits import Limits
from hnerv.training.report import announce, run_record
from hnerv.training.rollback import fit
from hnerv.training.trainer import Trainer


class Finished(NamedTuple):
    """A run that was trained to its end: its record, and the {Eval/ tag: value} of its last evaluation."""

    record: dict
    values: dict[str, float]


class Found(NamedTuple):
    """A video that lies elsewhere than where the run's record is to say: the file here, and what the record says."""

    path: Path
    source: str


def train_run(
    choice: Choice, folder: RunFolder, device: torch.device, log: LogConfig, limits: Limits,
    found: Found | None = None, saved: Callable[[Trainer], None] = lambda trainer: None,
) -> Finished:  # fmt: skip
    """Loads, builds, fits; goes on where the folder holds a checkpoint of the same run.

    `saved` is told of the trainer before its first step, and each time it has written latest.pt.
    Raises UserError before anything is written, RunError when the run cannot go on, Interrupted when it was stopped.
    """
    config = choice.config
    check_settings(config, log)
    material = _material(folder.pinned(config), device, found)
    check_scene(material.scene)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, material.scene)
    record = run_record(choice.preset, config, material, model)
    print(announce(record, device), flush=True)
    with device_errors(config, folder.latest), folder.locked():
        trainer = Trainer(model, FrameStore(material, device), config, folder, record, log, limits)
        state = folder.saved_state(record)
        if state:
            trainer.load_state(state)
            print(f"resumed  {trainer.epoch} of {config.train.epochs} epochs were done", flush=True)
        trainer.saved = saved
        saved(trainer)
        with Console(config.train.epochs, trainer.steps_per_epoch, trainer.global_step) as console:
            fit(trainer, folder.claim(record, state, log.report_to), console, log.report_to)
    return Finished(record, trainer.evaluation)


def _material(config: Config, device: torch.device, found: Found | None) -> Material:
    if not found:
        return load_material(config, device, progress=True)
    material = load_material(config.replaced({"data": str(found.path)}), device, progress=True)
    return material._replace(video=material.video._replace(source=found.source))
