"""A run from its start to its end: of a video, of a segment of one, of a task of a fleet."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.config import Config, LogConfig
from hnerv.data.store import FrameStore, Material, load_material
from hnerv.errors import UserError
from hnerv.files import sha256_of
from hnerv.model import LATENTS, DualHeadHNeRV, build_model
from hnerv.presets import Choice
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.folder import RunFolder
from hnerv.runs.record import RunRecord
from hnerv.tracking.console import Console
from hnerv.training.checks import check_scene, check_settings
from hnerv.training.compiling import compiled
from hnerv.training.faults import device_errors
from hnerv.training.limits import Limits
from hnerv.training.report import announce
from hnerv.training.rollback import fit
from hnerv.training.signals import StopSignals
from hnerv.training.trainer import Trainer


class Finished(NamedTuple):
    """A run that was trained to its end: its record, and the {Eval/ tag: value} of its last evaluation.

    `asked` is a wish to stop that came too late for this run: it is for whoever would train another one.
    """

    record: RunRecord
    values: dict[str, float]
    asked: StopSignals | None = None


class Found(NamedTuple):
    """A video that lies elsewhere than where the run's record is to say: the file here, and what the record says."""

    path: Path
    source: str


class How(NamedTuple):
    """What does not say which run it is. `like` is the record of a run on whose targets this one is trained too.

    `initial` is a checkpoint whose weights a fresh run begins with, see `start_from`. `saved` is told of the trainer
    before its first step, and each time it has written latest.pt.
    """

    device: torch.device
    log: LogConfig
    limits: Limits
    like: RunRecord | None = None
    initial: Path | None = None
    frames: int = 0
    """How many the video has to give; 0: any number."""
    found: Found | None = None
    compile: bool = False
    gpu_share: float = 1.0
    """Part of the GPU that this run may fill, where several share it."""
    saved: Callable[[Trainer], None] = lambda trainer: None


def train_run(choice: Choice, folder: RunFolder, how: How) -> Finished:
    """Loads, builds, fits; goes on where the folder holds a checkpoint of the same run.

    Raises UserError before anything is written, RunError when the run cannot go on, Interrupted when it was stopped.
    """
    config = choice.config
    device, log, limits, like, initial, frames, found, compile_it, gpu_share, saved = how
    check_settings(config, log)
    precision = "bf16" if config.train.in_bf16(device.type) else "fp32"
    pinned = folder.pinned(config)
    material = _material(like.pinned(pinned) if like else pinned, device, found)
    check_scene(material.scene)
    if frames and material.scene.frames != frames:
        raise UserError(
            f"{config.video.data} has {material.scene.frames} frames in --frames {config.video.frames}, but {frames} "
            "were planned: repair the file, or pass an intact range under another --exp-id"
        )
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, material.scene)
    record = RunRecord.of(choice.preset, config, material, model)
    if initial:
        record = dataclasses.replace(record, initial=start_from(model, initial))
    print(announce(record, device), flush=True)
    with device_errors(config, folder.latest), folder.locked():
        trainer = Trainer(model, FrameStore(material, device, gpu_share), config, folder, record, log, limits)
        state = folder.saved_state(record)
        if state:
            trainer.load_state(state)
            print(f"resumed  {trainer.epoch} of {config.train.epochs} epochs already done", flush=True)
            if trainer.epoch < config.train.epochs and (before := folder.last_precision()) not in (None, precision):
                print(f"resumed  in {precision}, previously {before}: --precision auto follows the device", flush=True)
        trainer.saved = saved
        saved(trainer)
        console = Console(config.train.epochs, trainer.steps_per_epoch, trainer.global_step)
        with console, compiled(trainer) if compile_it else contextlib.nullcontext():
            logger = folder.claim(record, state, device, precision, log.report_to)
            fit(trainer, logger, console, log.report_to)
    return Finished(record, trainer.evaluation, trainer.asked)


def _material(config: Config, device: torch.device, found: Found | None) -> Material:
    if not found:
        return load_material(config, device, progress=True)
    material = load_material(config.replaced({"data": str(found.path)}), device, progress=True)
    return material._replace(video=material.video._replace(source=found.source))


@torch.no_grad()
def start_from(model: DualHeadHNeRV, checkpoint: Path) -> dict[str, str]:
    """Gives `model` the weights of a run of the frames before its own -> what the record says of it.

    The latents of a grid all begin as those of the other's last knot, which drew the frame before the first. What has
    another shape stays as it is. Raises UserError.
    """
    theirs = load_checkpoint(checkpoint)["model"]
    for name, value in model.state_dict().items():
        if (found := theirs.get(name)) is not None:
            _take(name, value, found)
    return {"checkpoint": checkpoint.parent.parent.name, "sha256": sha256_of(checkpoint)}


def _take(name: str, ours: Tensor, theirs: Tensor) -> None:
    if LATENTS.fullmatch(name):
        if ours.shape[1:] == theirs.shape[1:]:
            ours.copy_(theirs[-1:].expand_as(ours))
    elif ours.shape == theirs.shape:
        ours.copy_(theirs)
