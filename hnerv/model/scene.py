"""The facts of a video that a model is built from, so that it can be built again without the video."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hnerv.config import ModelConfig, VideoConfig
from hnerv.errors import UserError
from hnerv.geometry import PatchGrid, parse_grid
from hnerv.timeline import Timeline, concat_timelines, exact_rate

MAX_SIZE = 1 << 24
"""Limit of frames, pixels or patches along a side, and dimensions: a scene with more is damaged."""


@dataclass(frozen=True)
class Scene:
    """Frames, their geometry and split, and the width of the targets: saved with the weights."""

    frames: int
    height: int
    width: int
    rows: int
    cols: int
    fps: float
    train: tuple[int, ...]
    """Positions of the training frames, ascending."""
    val: tuple[int, ...]
    """Positions of the unseen frames, ascending; may be empty."""
    clip_dim: int
    """D of the embeddings; 0: no CLIP head."""
    times: Timeline | None = None
    """When each frame is shown in the source; None where frame k is at k / fps."""

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(self.height, self.width, self.rows, self.cols)

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.frames * self.height * self.width

    @property
    def clock(self) -> Timeline:
        """When each frame is shown."""
        return self.clock_from(0)

    def clock_from(self, first: int) -> Timeline:
        """The same for a chunk that starts at frame `first` of its video: without `times`, it starts at first / fps."""
        return self.times or Timeline.at_rate(self.fps, range(first, first + self.frames))

    def to_dict(self) -> dict:
        """Plain dictionary, without times where they are None. Inverse of `from_dict`."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "times"}
        return plain | ({"times": self.times.to_dict()} if self.times else {})

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        """Inverse of `to_dict`. Raises UserError for other keys, and for values that no video has."""
        names = {f.name for f in dataclasses.fields(cls)} - {"times"}
        if not isinstance(data, dict) or set(data) - {"times"} != names:
            difference = sorted(set(data) - {"times"} ^ names) if isinstance(data, dict) else repr(data)
            raise UserError(f"the scene of this checkpoint does not fit this version: {difference}")
        if fault := _fault(data):
            raise UserError(f"the scene of this checkpoint is damaged ({fault}): use another checkpoint")
        try:
            times = Timeline.from_dict(data["times"], data["frames"]) if "times" in data else None
        except ValueError as error:
            raise UserError(f"the scene of this checkpoint is damaged (times {error}): use another one") from error
        return cls(**{**data, "train": tuple(data["train"]), "val": tuple(data["val"]), "times": times})


def joined_scene(scenes: Sequence[Scene]) -> Scene:
    """Scene of consecutive chunks of a video; geometry and frame rate are those of the first."""
    frames, train, val, clocks = 0, [], [], []
    for scene in scenes:
        train += [frames + position for position in scene.train]
        val += [frames + position for position in scene.val]
        clocks.append(scene.clock_from(frames))
        frames += scene.frames
    times = concat_timelines(clocks)
    constant = times == Timeline(1 / exact_rate(scenes[0].fps), tuple(range(frames)))
    return dataclasses.replace(
        scenes[0], frames=frames, train=tuple(train), val=tuple(val), times=None if constant else times
    )


def _fault(data: dict) -> str:
    """Fault in the values of a scene, '' without one."""
    counts = [data[name] for name in ("frames", "height", "width", "rows", "cols")]
    if (
        any(type(number) is not int for number in (*counts, data["clip_dim"]))
        or min(counts) < 1
        or max(*counts, data["clip_dim"]) > MAX_SIZE
        or data["clip_dim"] < 0
    ):
        return "invalid sizes"
    if type(data["fps"]) not in (int, float) or not 0 < data["fps"] < math.inf:
        return "invalid frame rate"
    for name in ("train", "val"):
        frames = data[name]
        if not isinstance(frames, list | tuple) or any(type(frame) is not int for frame in frames):
            return f"invalid {name} frames"
        if list(frames) != sorted(set(frames)) or any(not 0 <= frame < data["frames"] for frame in frames):
            return f"invalid {name} frames"
    return "" if data["train"] else "no training frames"


def frame_multiple(video: VideoConfig, model: ModelConfig) -> tuple[int, int]:
    """(rows, columns) that must divide the frame: by the patch grid, the strides, and the cells of the CLIP head."""
    # With s = prod(strides), pixels of an embedding cell, and c = (scale at the CLIP head's site) x clip_pool, pixels
    # that a part of a patch must be a multiple of:
    #   full frames:    s | H and rows c | H, that is lcm(s, rows c) | H; a patch may end inside an embedding cell;
    #   `pe`, patches:  s | H / rows and c | H / rows, that is rows lcm(s, c) | H.
    rows, cols = parse_grid(video.grid)
    total = math.prod(model.strides)
    cell = math.prod(model.strides[model.clip_site :]) * model.clip_pool
    if model.embedding == "pe":
        return rows * math.lcm(total, cell), cols * math.lcm(total, cell)
    multiple = math.lcm(total, rows * cell), math.lcm(total, cols * cell)
    if model.embedding == "encoder":
        down = math.prod(model.enc_strides)
        if down != total:
            raise UserError(
                f"the encoder downsamples frames by {down}, but the decoder upsamples by {total}: "
                "make the product of --enc-strides equal to that of --dec-strides and --rgb-stride"
            )
    return multiple
