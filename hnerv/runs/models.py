"""A checkpoint or a run folder -> the model as it was trained, its frames and its targets."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from hnerv.config import Config
from hnerv.data.store import FrameStore, Material, load_material
from hnerv.data.video import CLIPS
from hnerv.data.video.planes import SourcePlanes
from hnerv.data.video.raw import SUFFIX as RAW
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, build_model
from hnerv.quantise import Scale
from hnerv.rate import RateModel
from hnerv.runs.checkpoint import RATE, load_checkpoint
from hnerv.runs.chunks import chunks_of
from hnerv.runs.record import RunRecord, TargetsRecord
from hnerv.storage import is_remote

NO_TARGETS = "none"


@dataclass(frozen=True)
class OpenedModel:
    """A model without its video: the record of its run, and how far it was trained.

    `checkpoint` is the file that it came from, `folder` where its evaluation belongs, `coded_bytes` the size of a
    bitstream file and `head_bytes` that of its CLIP head, 0 for a checkpoint. `values` are {Eval/ tag: value} of the
    last evaluation in training, `learned` are {tensor: its steps} of a run with --rate-weight.
    """

    model: DualHeadHNeRV
    record: RunRecord
    checkpoint: Path
    folder: Path
    epoch: int
    step: int
    coded_bytes: int = 0
    head_bytes: int = 0
    values: dict[str, float] = field(default_factory=dict)
    learned: dict[str, Scale] | None = None


@dataclass(frozen=True, kw_only=True)
class OpenedRun(OpenedModel):
    """A model with the frames and targets of `config`, measured against the video `source`."""

    store: FrameStore
    config: Config
    source: str
    same_pixels: bool
    """Whether the video gives the pixels that were trained on."""
    planes: SourcePlanes
    """The frames in the YUV of the source, or why there are none."""


def open_run(path: Path, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = "") -> OpenedRun:
    """`open_checkpoint` and `with_material`. Raises UserError as these."""
    return with_material(open_checkpoint(path), device, data, unseen, clip_targets)


def open_checkpoint(path: Path) -> OpenedModel:
    """The model of a .pt file or a run folder (its latest.pt), on the CPU; its video is not read.

    Raises UserError when the checkpoint is missing, damaged or foreign, or its weights do not fit its configuration.
    """
    checkpoint = checkpoint_of(path)
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    state = load_checkpoint(checkpoint)
    record, progress = state["run"], state["progress"]
    model = build_model(record.model_config, record.scene)
    load_weights(model, state["model"], checkpoint)
    learned = None
    if RATE in state:
        rate_model = RateModel(model, seed=0)
        load_weights(rate_model, state[RATE], checkpoint)
        learned = rate_model.scales()
    done, values = (progress["epoch"], progress["step"]), state["evaluation"]
    return OpenedModel(model, record, checkpoint, folder, *done, values=values, learned=learned)


def checkpoint_of(path: Path) -> Path:
    """The latest.pt of a run folder; a file is returned as it is. Raises UserError for a folder of several runs."""
    if not path.is_dir():
        return path
    chunk = chunks_of(path)[0]
    if chunk.is_part:
        raise UserError(
            f"{path} holds a video in segments, but a single segment is needed: pass one, such as {chunk.path}"
        )
    runs = sorted(inner.parent.name for inner in path.glob("*/config.json"))
    if runs and not (path / "checkpoints").exists():
        raise UserError(
            f"{path} is a folder of runs, not a run: pass one of {', '.join(runs[:5])}, as in {path / runs[0]}"
        )
    return path / "checkpoints" / "latest.pt"


def checkpoints_of(path: Path) -> list[Path]:
    """As `checkpoint_of`, for every segment of a run in segments. Raises UserError."""
    return [checkpoint_of(chunk.path) for chunk in chunks_of(path)]


def is_trained(run: Path) -> bool:
    """Whether all checkpoints of a run folder exist; True for a damaged plan too, so that opening it reports that."""
    try:
        return all(path.is_file() for path in checkpoints_of(run))
    except UserError:
        return True


def with_material(
    opened: OpenedModel, device: torch.device, data: str = "", unseen: str = "", clip_targets: str = ""
) -> OpenedRun:
    """A model on the device, with the frames and targets of its run. `data` and `clip_targets` are new locations.

    `clip_targets` 'none' leaves out the targets and the CLIP head: only pixels are measured. Raises UserError when the
    video or the targets are missing, or are not those of the run.
    """
    if clip_targets == NO_TARGETS:
        opened = replace(opened, model=without_clip(opened.model), record=opened.record.without_targets())
        clip_targets = ""
    record, checkpoint = opened.record, opened.checkpoint
    data = data or _video_location(record, checkpoint)
    moved = {"data": data, "unseen": unseen, "clip_targets": clip_targets}
    moved["raw_video"] = record.video.raw_video if data.lower().endswith(RAW) else ""
    config = record.pinned(record.config).replaced({key: value for key, value in moved.items() if value})
    if unseen and config.model.embedding != "encoder":
        raise UserError(
            f"--unseen needs --embedding encoder, but {checkpoint} has a {config.model.embedding} embedding: remove "
            "--unseen"
        )
    material = load_material(config, device, progress=True)
    _check_belongs(checkpoint, record, material)
    opened.model.to(device, memory_format=torch.channels_last)
    return OpenedRun(
        **vars(opened),
        store=FrameStore(material, device),
        config=config,
        source=material.video.source,
        same_pixels=material.video.digest == record.video.digest,
        planes=material.video.planes,
    )


def without_clip(model: DualHeadHNeRV) -> DualHeadHNeRV:
    """The model without its CLIP head."""
    model.clip_head, model.scene = None, replace(model.scene, clip_dim=0)
    return model


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], checkpoint: Path) -> None:
    """Raises UserError naming the first weight that does not fit the model."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        cause = (str(error).split("\n")[1:2] or [str(error)])[0].strip()
        raise UserError(
            f"{checkpoint} has weights that do not match its configuration ({cause}): use best.pt"
        ) from error


def _video_location(record: RunRecord, checkpoint: Path) -> str:
    """Where the video is: as --data named it, or if that does not exist in this working directory, as resolved then."""
    named, resolved = record.config.video.data, record.video.source
    if named in CLIPS or is_remote(named) or Path(named).exists():
        return named
    if not Path(resolved).exists():
        raise UserError(f"{resolved}, the video of {checkpoint}, is missing: pass its new location with --data")
    return resolved


def _check_belongs(checkpoint: Path, record: RunRecord, material: Material) -> None:
    """The video must have the geometry that was trained on; other pixels of that geometry are worth a warning."""
    ours, theirs = record.scene, material.scene
    if ours != replace(theirs, fps=ours.fps, times=ours.times):
        raise UserError(
            f"{checkpoint} was trained on {ours.frames} frames of {ours.height}x{ours.width} with targets of "
            f"{ours.clip_dim} dimensions, but {material.video.source} has {theirs.frames} of "
            f"{theirs.height}x{theirs.width} with {theirs.clip_dim}: pass the video of the run with --data"
        )
    record.check_targets(checkpoint, material.targets and TargetsRecord.of(material.targets))
    if record.video.digest != material.video.digest:
        logging.getLogger("hnerv").warning(
            "the pixels of %s differ from those %s was trained on: check that it is the same video",
            material.video.source,
            checkpoint,
        )
