"""A run's video, its scene and its targets; and the frames as the training step wants them.

N frames, B batch, P patches, H W pixels, D embedding dimensions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hnerv.clip import Targets, clip_targets
from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.geometry import PatchGrid, parse_size
from hnerv.model.build import MAX_WIDTH
from hnerv.model.scene import Scene, frame_multiple
from hnerv.motion import between as between_frames
from hnerv.video import Video, data_split, load_video


class Material(NamedTuple):
    """What a configuration refers to outside itself."""

    video: Video
    scene: Scene
    targets: Targets | None

    def describe(self) -> dict:
        """Plain dictionary for config.json and checkpoints: what identifies the pixels and the targets."""
        video = self.video
        return {
            "video": {"source": video.source, "digest": video.digest, "reader": video.reader, "crop": [*video.crop]},
            "scene": self.scene.to_dict(),
            "targets": _without_embeddings(self.targets) if self.targets else None,
        }


def _without_embeddings(targets: Targets) -> dict[str, str]:
    return {key: value for key, value in targets._asdict().items() if key != "embeddings"}


def load_material(config: Config, device: torch.device, progress: bool = False) -> Material:
    """Reads the video, splits its frames and gets the targets, from the cache if they are there. Raises UserError."""
    knobs = config.video
    multiple = frame_multiple(knobs, config.model)
    video = load_video(knobs.data, crop=knobs.crop, resize=knobs.resize, frames=knobs.frames, multiple=multiple)
    count, _, height, width = video.frames.shape
    split = data_split(count, knobs.data_split, config.train.seed if knobs.shuffle_data else None)
    grid = PatchGrid(height, width, *parse_size(knobs.grid, "--grid"))
    targets = clip_targets(
        video.frames,
        grid,
        weights=config.clip.clip_weights,
        model=config.clip.clip_model,
        targets_file=config.clip.clip_targets,
        digest=video.digest,
        device=device,
        seed=config.train.seed,
        progress=progress,
    )
    scene = Scene(
        frames=count,
        height=height,
        width=width,
        rows=grid.rows,
        cols=grid.cols,
        fps=video.fps,
        train=tuple(split.train.tolist()),
        val=tuple(split.val.tolist()),
        clip_dim=0 if targets is None else targets.embeddings.shape[-1],
    )
    return Material(video, scene, targets)


RECORD_KEYS = {"config", "video", "scene", "targets", "model"}


def check_record(where: Path, record: object) -> None:
    """Raises UserError for what is no record of a run: a part that is missing, or of another kind than we write."""
    if not isinstance(record, dict) or not set(record) >= RECORD_KEYS:
        raise UserError(f"{where} is not the record of a run: give the folder that train_patch_dual.py made")
    Config.from_dict(record["config"])
    Scene.from_dict(record["scene"])
    video, model = record["video"], record["model"]
    if not _has(video, str, "source", "digest") or not _is_crop(video.get("crop")):
        raise _damaged(where, "video")
    if not _has(model, int, "width") or not 0 < model["width"] <= MAX_WIDTH:
        raise _damaged(where, "model")
    if not isinstance(record.get("preset", ""), str):
        raise _damaged(where, "preset")
    if record["targets"] is not None and not _has(record["targets"], str, "source", "kind", "weights"):
        raise _damaged(where, "targets")


def _has(part: object, kind: type, *keys: str) -> bool:
    return isinstance(part, dict) and all(type(part.get(key)) is kind for key in keys)


def _is_crop(crop: object) -> bool:
    return isinstance(crop, list | tuple) and [type(side) for side in crop] == [int] * 6


def _damaged(where: Path | str, part: str) -> UserError:
    return UserError(f"{where} is damaged in its {part!r}: take another one, or restore it from a copy")


def pin_targets(config: Config, record: dict) -> Config:
    """`--clip-weights auto` resolves once, when a run starts: afterwards it means what the run's `record` found."""
    found = record["targets"]
    if found is not None and not _has(found, str, "kind", "weights"):
        raise _damaged("the record of this run", "targets")
    if config.clip.clip_weights != "auto" or config.clip.clip_targets or found is None:
        return config
    return config.replaced({"clip_weights": "random" if found["kind"] == "random" else found["weights"]})


def check_targets(where: Path, theirs: dict, ours: dict) -> None:
    """Raises UserError where the run of the record `theirs` was trained on other targets than `ours`.

    A file of targets or weights is known by its sha256, whatever it is called now.
    """
    labels = [(record["targets"] or {}).get("weights", "none") for record in (theirs, ours)]
    if labels[0].rsplit(" ", 1)[-1] != labels[1].rsplit(" ", 1)[-1]:
        raise UserError(
            f"{where} was trained on the targets {labels[0]!r}, {labels[1]!r} are what is here: make the former "
            "available, or name them by --clip-weights or --clip-targets"
        )


def targets_label(record: dict) -> str:
    """What the numbers of the CLIP head mean in the run of this record."""
    return record["targets"]["source"] if record["targets"] else "none (RGB head alone)"


class Near(NamedTuple):
    """Frames that are embedded only: times (B,), clip (B, P, D) of unit norm."""

    times: Tensor
    clip: Tensor


class Batch(NamedTuple):
    """times (B,) frame positions, frames (B, 3, H, W) in [0, 1], clip (B, P, D) of unit norm or None.

    The first `real` of them are frames of the video, the others stand between two. `near` are training frames near
    the real ones, where the CLIP loss compares frames.
    """

    times: Tensor
    frames: Tensor
    clip: Tensor | None
    real: int
    near: Near | None = None

    @property
    def embedded(self) -> Tensor | None:
        """Times (N,) that are embedded only: those of the near frames."""
        return None if self.near is None else self.near.times


class FrameStore:
    """The frames as uint8 and the targets, on the device where they fit, in host memory where they do not."""

    SHARE_OF_DEVICE_MEMORY = 0.5

    def __init__(self, material: Material, device: torch.device) -> None:
        self.device = device
        self._train = torch.tensor(material.scene.train)
        frames = material.video.frames
        room = self.SHARE_OF_DEVICE_MEMORY * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
        frames = frames.to(device) if frames.nbytes < room else frames
        # Channels last, as the network computes: layouts that meet cost several times the arithmetic on them.
        self._frames = frames.permute(0, 2, 3, 1).contiguous()
        self._made: dict[int, Tensor] = {}
        self._clip = None if material.targets is None else material.targets.embeddings.to(device)

    def frames(self, positions: Tensor) -> Tensor:
        """Positions (B,) -> frames (B, 3, H, W) in [0, 1] on the device, channels last in memory."""
        return self._unit(self._levels(positions))

    def clip(self, positions: Tensor) -> Tensor | None:
        """Positions (B,) -> targets (B, P, D) on the device; None without targets."""
        return None if self._clip is None else self._clip[positions.to(self.device, non_blocking=True)]

    def batch(self, positions: Tensor, between: Tensor | None = None) -> Batch:
        """Positions (B,), and `between` (E,) that lie between training frames -> a Batch of B + E on the device.

        What stands for the latter is made of the two nearest training frames, and of their targets: the frames of the
        video that lie there are not read.
        """
        times, real = self._times(positions), len(positions)
        if between is None or not len(between):
            return Batch(times, self.frames(positions), self.clip(positions), real)
        drawn = [self._picture(position) for position in between.tolist()]
        frames = self._unit(torch.cat([self._levels(positions), *drawn]))
        times = torch.cat([times, self._times(between)])
        if self._clip is None:
            return Batch(times, frames, None, real)
        low, high, share = self._neighbours(between)
        clip = torch.lerp(self.clip(low), self.clip(high), share.view(-1, 1, 1))
        return Batch(times, frames, torch.cat([self.clip(positions), F.normalize(clip, dim=-1)]), real)

    def _levels(self, positions: Tensor) -> Tensor:
        """Positions (B,) -> (B, H, W, 3) uint8, where the frames are kept."""
        return self._frames.index_select(0, positions.to(self._frames.device, non_blocking=True))

    def _unit(self, levels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1] on the device, channels last in memory."""
        if levels.device.type != self.device.type:
            levels = levels.pin_memory().to(self.device, non_blocking=True)
        return levels.permute(0, 3, 1, 2).float().div_(255)

    def _picture(self, position: int) -> Tensor:
        """(1, H, W, 3) uint8, beside the frames: made when it is first asked for, alone, so always the same."""
        if position not in self._made:
            low, high, share = self._neighbours(torch.tensor([position]))
            picture = between_frames(self.frames(low), self.frames(high), share)
            levels = picture.mul(255).round().byte().permute(0, 2, 3, 1).contiguous()
            self._made[position] = levels.to(self._frames.device)
        return self._made[position]

    def _neighbours(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (E,) -> the training frames before and after, and the share (E,) of the way, on the device."""
        after = torch.searchsorted(self._train, positions)
        low, high = self._train[after - 1], self._train[after]
        return low, high, ((positions - low) / (high - low)).to(self.device, non_blocking=True)

    def near(self, positions: Tensor) -> Near:
        """Positions (B,) -> their times and targets, on the device. A run without targets has none."""
        return Near(self._times(positions), self.clip(positions))

    def _times(self, positions: Tensor) -> Tensor:
        return positions.to(self.device, non_blocking=True).float()
