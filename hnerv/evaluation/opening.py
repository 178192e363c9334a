"""A checkpoint or a run folder -> the model as it was trained, its frames and its targets."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from hnerv.checkpoint import load_checkpoint
from hnerv.config import Config
from hnerv.dataset import FrameStore, check_targets, load_material, pin_targets
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, Scene, build_model
from hnerv.video import CLIPS


class OpenedRun(NamedTuple):
    """`record` is what the run says of itself (config.json); `folder` is where its evaluation belongs."""

    model: DualHeadHNeRV
    store: FrameStore
    config: Config
    record: dict
    folder: Path
    checkpoint: Path
    epoch: int
    step: int
    source: str
    """The video measured against."""
    same_pixels: bool
    """Whether it gives the pixels that were trained on."""


def open_run(path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = "") -> OpenedRun:
    """Opens a .pt file or a run folder (its latest.pt). `data` and `clip_targets` say where these are now.

    Raises UserError when the checkpoint, its video or its targets are missing or do not belong together.
    """
    checkpoint = path / "checkpoints" / "latest.pt" if path.is_dir() else path
    state = load_checkpoint(checkpoint)
    record = state["run"]
    config = pin_targets(Config.from_dict(record["config"]), record)
    config = _moved(config, data or _found_again(config, record), unseen, clip_targets)
    if unseen and config.model.embedding != "encoder":
        raise UserError(f"--unseen is for the encoder, {checkpoint} has a {config.model.embedding} embedding: drop it")
    model = restore_model(state, checkpoint)
    material = load_material(config, device, progress=True)
    _check_belongs(checkpoint, record, material.describe())
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    model.to(device, memory_format=torch.channels_last)
    epoch, step = state["progress"]["epoch"], state["progress"]["step"]
    store, same = FrameStore(material, device), material.video.digest == record["video"]["digest"]
    return OpenedRun(model, store, config, record, folder, checkpoint, epoch, step, material.video.source, same)


def restore_model(state: dict, checkpoint: Path) -> DualHeadHNeRV:
    """The model of a checkpoint, from the checkpoint alone, on the CPU. Raises UserError when its parts do not fit."""
    record = state["run"]
    config = replace(Config.from_dict(record["config"]).model, dec_width=record["model"]["width"])
    model = build_model(config, Scene.from_dict(record["scene"]))
    load_weights(model, state, checkpoint)
    return model


def load_weights(model: DualHeadHNeRV, state: dict, checkpoint: Path) -> None:
    """Raises UserError naming the first weight that does not fit the model."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        cause = (str(error).split("\n")[1:2] or [str(error)])[0].strip()
        raise UserError(f"{checkpoint}: weights and configuration do not fit ({cause}): take best.pt") from error


def _found_again(config: Config, record: dict) -> str:
    """The path that the run resolved, where what was typed then means nothing in this working directory."""
    typed = config.video.data
    return typed if typed in CLIPS or Path(typed).exists() else record["video"]["source"]


def _moved(config: Config, data: str, unseen: str, clip_targets: str) -> Config:
    changes = {"data": data, "unseen": unseen, "clip_targets": clip_targets}
    return config.replaced({key: value for key, value in changes.items() if value})


def _check_belongs(checkpoint: Path, record: dict, found: dict) -> None:
    """The video must have the geometry that was trained on; other pixels of that geometry are worth a warning."""
    ours, theirs = Scene.from_dict(record["scene"]), Scene.from_dict(found["scene"])
    if ours != replace(theirs, fps=ours.fps):
        raise UserError(
            f"{checkpoint} was trained on {ours.frames} frames of {ours.height}x{ours.width} with targets of "
            f"{ours.clip_dim} dimensions, {found['video']['source']} gives {theirs.frames} of "
            f"{theirs.height}x{theirs.width} with {theirs.clip_dim}: give the video of the run by --data"
        )
    check_targets(checkpoint, record, found)
    if record["video"]["digest"] != found["video"]["digest"]:
        logging.getLogger("hnerv").warning(
            "%s gives other pixels than %s was trained on: is it the same video?", found["video"]["source"], checkpoint
        )
