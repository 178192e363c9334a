"""The record of a run: what identifies it, in config.json, in every checkpoint and in every .hnerv file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from hnerv import __version__
from hnerv.config import Config, ModelConfig
from hnerv.data.clip import Targets
from hnerv.data.store import Material
from hnerv.data.video import Video
from hnerv.data.video.colour import Display
from hnerv.errors import UserError
from hnerv.files import read_json
from hnerv.geometry import CropPlan
from hnerv.model import DualHeadHNeRV, Scene, coded_parameters
from hnerv.model.build import MAX_WIDTH

NO_TARGETS = "none (RGB head alone)"
PARTS = {"config", "video", "scene", "targets", "model"}


@dataclass(frozen=True)
class VideoRecord:
    """The video of a run. `source` is its resolved path, `digest` the sha256 of its frames as they were trained on.

    `raw_video` is the geometry of a raw file, '' for others.
    """

    source: str
    digest: str
    crop: CropPlan
    reader: str = ""
    display: Display = Display()
    raw_video: str = ""

    @classmethod
    def of(cls, video: Video) -> VideoRecord:
        return cls(video.source, video.digest, video.crop, video.reader, video.display, video.raw_video)

    def to_dict(self) -> dict:
        """Plain dictionary. Inverse of `from_dict`."""
        data = {"source": self.source, "digest": self.digest, "reader": self.reader, "crop": [*self.crop]}
        return data | {"display": self.display.to_dict()} | ({"raw_video": self.raw_video} if self.raw_video else {})

    @classmethod
    def from_dict(cls, data: dict) -> VideoRecord:
        """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        crop, reader, raw_video = data["crop"], data.get("reader", ""), data.get("raw_video", "")
        if not isinstance(crop, list | tuple) or [type(side) for side in crop] != [int] * 6:
            raise TypeError("invalid crop")
        if any(type(text) is not str for text in (data["source"], data["digest"], reader, raw_video)):
            raise TypeError("invalid video entry")
        display = Display.from_dict(data.get("display", {}))
        return cls(data["source"], data["digest"], CropPlan(*crop), reader, display, raw_video)


@dataclass(frozen=True)
class TargetsRecord:
    """The targets of the CLIP head; the fields are those of `data.clip.Targets`."""

    source: str
    kind: str
    weights: str
    model: str = ""

    @classmethod
    def of(cls, targets: Targets) -> TargetsRecord:
        return cls(targets.source, targets.kind, targets.weights, targets.model)

    @property
    def fingerprint(self) -> str:
        """The sha256 of a file of targets or weights, whatever the file is called now; else the tag."""
        return self.weights.rsplit(" ", 1)[-1]

    @classmethod
    def from_dict(cls, data: dict) -> TargetsRecord:
        """Inverse of `dataclasses.asdict`. Raises TypeError for anything else."""
        targets = cls(**data)
        if any(type(value) is not str for value in dataclasses.astuple(targets)):
            raise TypeError("invalid targets entry")
        return targets


@dataclass(frozen=True)
class RunRecord:
    """`preset` may be ''. `targets` is None without a CLIP head. `width` is that of the decoder's first stage.

    `coded_parameters` counts them by part. `initial` names the checkpoint that a chunk was initialised from.
    """

    config: Config
    video: VideoRecord
    scene: Scene
    targets: TargetsRecord | None
    width: int
    coded_parameters: dict[str, int]
    preset: str = ""
    version: str = __version__
    initial: dict[str, str] | None = None

    @classmethod
    def of(cls, preset: str, config: Config, material: Material, model: DualHeadHNeRV) -> RunRecord:
        """The record of a new run."""
        video, targets = VideoRecord.of(material.video), material.targets and TargetsRecord.of(material.targets)
        return cls(config, video, material.scene, targets, model.width, coded_parameters(model), preset)

    @property
    def parameters(self) -> int:
        """Coded parameters of all parts."""
        return sum(self.coded_parameters.values())

    @property
    def targets_label(self) -> str:
        """The source of the targets of the CLIP head, in one line."""
        return self.targets.source if self.targets else NO_TARGETS

    @property
    def model_config(self) -> ModelConfig:
        """The configuration that builds a model of this width again."""
        return dataclasses.replace(self.config.model, dec_width=self.width)

    def pinned(self, config: Config) -> Config:
        """`config`, where `--clip-weights auto` means the weights that this run found when it first started."""
        if config.clip.clip_weights != "auto" or config.clip.clip_targets or self.targets is None:
            return config
        return config.replaced({"clip_weights": "random" if self.targets.kind == "random" else self.targets.weights})

    def without_targets(self) -> RunRecord:
        """The record of the same run without its CLIP head."""
        config = self.config.replaced({"clip_weights": "none", "clip_targets": ""})
        return dataclasses.replace(self, config=config, targets=None, scene=dataclasses.replace(self.scene, clip_dim=0))

    def check_targets(self, where: Path, current: TargetsRecord | None) -> None:
        """Raises UserError where these targets are not the ones that this run, stored at `where`, was trained on."""
        ours, theirs = (targets.fingerprint if targets else "none" for targets in (self.targets, current))
        if ours != theirs:
            raise UserError(
                f"{where} was trained on the targets {self.targets.weights if self.targets else 'none'!r}, but found "
                f"{current.weights if current else 'none'!r}: make the former available, or set --clip-weights or "
                "--clip-targets"
            )

    def to_dict(self) -> dict:
        """Plain dictionary, for JSON and checkpoints. Inverse of `from_dict`."""
        return {
            "hnerv": self.version,
            "preset": self.preset,
            "config": self.config.to_dict(),
            "video": self.video.to_dict(),
            "scene": self.scene.to_dict(),
            "targets": dataclasses.asdict(self.targets) if self.targets else None,
            "model": {"width": self.width, "coded_parameters": dict(self.coded_parameters)},
            **({"initial": self.initial} if self.initial else {}),
        }

    @classmethod
    def from_dict(cls, data: object, where: Path) -> RunRecord:
        """Inverse of `to_dict`, also after JSON. `where` is named in errors. Raises UserError for anything else."""
        if not isinstance(data, dict) or not set(data) >= PARTS:
            raise UserError(f"{where} is not a run record: pass a folder written by train_patch_dual.py")
        try:
            config, scene = Config.from_dict(data["config"]), Scene.from_dict(data["scene"])
        except UserError as error:
            raise UserError(
                f"{where}: {error}; only the hnerv version that wrote a run can read it (its commit is in the run's "
                "environment.json): use that version, or choose another run"
            ) from error
        part = "video"
        try:
            video = VideoRecord.from_dict(data["video"])
            part = "targets"
            targets = None if data["targets"] is None else TargetsRecord.from_dict(data["targets"])
            part = "model"
            width = data["model"]["width"]
            parameters = dict(data["model"].get("coded_parameters", {}))
            if any(type(count) is not int for count in parameters.values()):
                raise TypeError("invalid number of parameters")
            if type(width) is not int or not 0 < width <= MAX_WIDTH:
                raise ValueError(f"invalid width {width}")
            part = "preset"
            preset = data.get("preset", "")
            if type(preset) is not str:
                raise TypeError("invalid preset")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{where} is damaged: its {part!r} is invalid: use another one, or restore it from a backup"
            ) from error
        version = str(data.get("hnerv", ""))
        return cls(config, video, scene, targets, width, parameters, preset, version, data.get("initial"))


def read_record(path: Path) -> RunRecord:
    """The record in a config.json. Raises UserError."""
    return RunRecord.from_dict(read_json(path), path)
