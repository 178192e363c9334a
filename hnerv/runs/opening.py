"""A checkpoint or a run folder -> the model as it was trained, its frames and its targets."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from hnerv.config import Config
from hnerv.data.store import FrameStore, Material, load_material
from hnerv.data.video import CLIPS, is_remote
from hnerv.data.video.raw import SUFFIX as RAW
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, build_model
from hnerv.runs import is_segmented
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.record import RunRecord, TargetsRecord

NO_TARGETS = "none"


class OpenedRun(NamedTuple):
    """`record` is what the run says of itself (config.json); `folder` is where its evaluation belongs."""

    model: DualHeadHNeRV
    store: FrameStore
    config: Config
    record: RunRecord
    folder: Path
    checkpoint: Path
    """The file that the model came from."""
    epoch: int
    step: int
    source: str
    """The video measured against."""
    same_pixels: bool
    """Whether it gives the pixels that were trained on."""
    coded_bytes: int = 0
    """Size of the file, where it is a bitstream."""


class Origin(NamedTuple):
    """Where a model comes from: file, folder of its evaluation, epoch, step, size if it is coded."""

    path: Path
    folder: Path
    epoch: int
    step: int
    coded_bytes: int = 0


def open_run(path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = "") -> OpenedRun:
    """Opens a .pt file or a run folder (its latest.pt). `data` and `clip_targets` say where these are now.

    Raises UserError when the checkpoint, its video or its targets are missing or do not belong together.
    """
    checkpoint = checkpoint_of(path)
    found = open_checkpoint(checkpoint)
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    origin = Origin(checkpoint, folder, found.epoch, found.step)
    return with_material(found.model, found.record, origin, device, data, unseen, clip_targets)


class Checkpoint(NamedTuple):
    """A model, the record of its run, and how far it was trained; without its video."""

    model: DualHeadHNeRV
    record: RunRecord
    epoch: int
    step: int


def open_checkpoint(checkpoint: Path) -> Checkpoint:
    """From the checkpoint alone, on the CPU. Raises UserError when it is missing, corrupt or foreign."""
    state = load_checkpoint(checkpoint)
    progress = state["progress"]
    return Checkpoint(restore_model(state, checkpoint), state["run"], progress["epoch"], progress["step"])


def checkpoint_of(path: Path) -> Path:
    """A run folder means its latest.pt. Raises UserError for a folder of runs."""
    if not path.is_dir():
        return path
    if is_segmented(path):
        one = path / "segments" / "00000"
        raise UserError(f"{path} holds a video in segments, but a single segment is needed: pass one, such as {one}")
    runs = sorted(inner.parent.name for inner in path.glob("*/config.json"))
    if runs and not (path / "checkpoints").exists():
        raise UserError(
            f"{path} is a folder of runs, not a run: pass one of {', '.join(runs[:5])}, as in {path / runs[0]}"
        )
    return path / "checkpoints" / "latest.pt"


def with_material(
    model: DualHeadHNeRV,
    record: RunRecord,
    origin: Origin,
    device: torch.device,
    data: str = "",
    unseen: str = "",
    clip_targets: str = "",
) -> OpenedRun:
    """A model and the record of its run, with the frames and targets that these name. Raises UserError.

    `clip_targets` 'none' leaves the targets out, and the CLIP head with them: pixels alone are measured.
    """
    if clip_targets == NO_TARGETS:
        model, record, clip_targets = without_clip(model), record.without_targets(), ""
    config = record.pinned(record.config)
    data = data or _found_again(config, record, origin)
    raw_video = record.video.raw_video if data.lower().endswith(RAW) else ""
    config = _moved(config, data=data, unseen=unseen, clip_targets=clip_targets, raw_video=raw_video)
    if unseen and config.model.embedding != "encoder":
        raise UserError(
            f"--unseen needs --embedding encoder, but {origin.path} has a {config.model.embedding} embedding: remove "
            "--unseen"
        )
    material = load_material(config, device, progress=True)
    _check_belongs(origin.path, record, material)
    model.to(device, memory_format=torch.channels_last)
    store, same = FrameStore(material, device), material.video.digest == record.video.digest
    source = material.video.source
    path, folder, epoch, step, coded_bytes = origin
    return OpenedRun(model, store, config, record, folder, path, epoch, step, source, same, coded_bytes)


def without_clip(model: DualHeadHNeRV) -> DualHeadHNeRV:
    """The model without its CLIP head."""
    model.clip_head, model.scene = None, replace(model.scene, clip_dim=0)
    return model


def restore_model(state: dict, checkpoint: Path) -> DualHeadHNeRV:
    """The model of a checkpoint, from the checkpoint alone, on the CPU. Raises UserError when its parts do not fit."""
    record = state["run"]
    model = build_model(record.model_config, record.scene)
    load_weights(model, state, checkpoint)
    return model


def load_weights(model: DualHeadHNeRV, state: dict, checkpoint: Path) -> None:
    """Raises UserError naming the first weight that does not fit the model."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        cause = (str(error).split("\n")[1:2] or [str(error)])[0].strip()
        raise UserError(
            f"{checkpoint} has weights that do not match its configuration ({cause}): use best.pt"
        ) from error


def _found_again(config: Config, record: RunRecord, origin: Origin) -> str:
    """The path that the run resolved, where what was typed then means nothing in this working directory."""
    typed, resolved = config.video.data, record.video.source
    if typed in CLIPS or is_remote(typed) or Path(typed).exists():
        return typed
    if not Path(resolved).exists():
        raise UserError(f"{resolved}, the video of {origin.path}, is missing: pass its new location with --data")
    return resolved


def _moved(config: Config, **changes: str) -> Config:
    return config.replaced({key: value for key, value in changes.items() if value})


def _check_belongs(checkpoint: Path, record: RunRecord, found: Material) -> None:
    """The video must have the geometry that was trained on; other pixels of that geometry are worth a warning."""
    ours, theirs = record.scene, found.scene
    if ours != replace(theirs, fps=ours.fps, times=ours.times):
        raise UserError(
            f"{checkpoint} was trained on {ours.frames} frames of {ours.height}x{ours.width} with targets of "
            f"{ours.clip_dim} dimensions, but {found.video.source} has {theirs.frames} of "
            f"{theirs.height}x{theirs.width} with {theirs.clip_dim}: pass the video of the run with --data"
        )
    record.check_targets(checkpoint, found.targets and TargetsRecord.of(found.targets))
    if record.video.digest != found.video.digest:
        logging.getLogger("hnerv").warning(
            "the pixels of %s differ from those %s was trained on: check that it is the same video",
            found.video.source,
            checkpoint,
        )
