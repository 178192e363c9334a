"""The chunks of a run on disk. A run of a divided video has a plan, segments.json, and a run folder per chunk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hnerv.data.chunks import ChunkOptions, ChunkPlan, PlannedChunk
from hnerv.errors import UserError
from hnerv.files import read_json, write_json

PLAN = "segments.json"
FORMAT = 1
RUN_FILES = re.compile(
    r"segments\.json|(segments/\d+/)?"
    r"(config\.json|environment\.json|metrics\.jsonl|checkpoints/(latest|best)\.pt|tensorboard/events\..+)"
)
"""Names of the files in the folder of a run that training writes, and resumes from."""


class Chunk(NamedTuple):
    """A run, and the frames of the video that it covers: `frames` of them, from `first` on.

    A video that is not divided has no plan, and one chunk: `path` as it was given, and `frames` 0, for all of them.
    """

    path: Path
    first: int = 0
    frames: int = 0

    @property
    def is_part(self) -> bool:
        """Whether it covers a part of a divided video."""
        return self.frames > 0

    def clip_targets(self, name: str) -> str:
        """--clip-targets of the chunk, given that of the video: the rows of its frames in a file of targets."""
        return targets_of(name, self.first, self.frames)


@dataclass(frozen=True)
class ChunkedFolder:
    """output/<exp> of a divided video."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / PLAN

    def child(self, chunk: PlannedChunk) -> Path:
        """The run folder of a chunk."""
        return self.path / "segments" / chunk.name


def chunks_of(path: Path) -> list[Chunk]:
    """The chunks of a run folder, in order; of a folder without a plan, and of a file, one. At least one.

    Raises UserError for a damaged plan.
    """
    folder = ChunkedFolder(path)
    if not folder.plan.is_file():
        return [Chunk(path)]
    return [Chunk(folder.child(chunk), chunk.first, chunk.count) for chunk in read_plan(folder.plan).chunks]


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a run, finished or not."""
    return (folder / "checkpoints").is_dir() or any((folder / name).is_file() for name in ("config.json", PLAN))


def write_plan(path: Path, plan: ChunkPlan) -> None:
    """segments.json. Inverse of `read_plan`."""
    options = {f"segment_{key}": value for key, value in plan.options._asdict().items()}
    facts = {"frames": plan.frames, "total": plan.total, "segments": [chunk._asdict() for chunk in plan.chunks]}
    write_json(path, {"format": FORMAT, **options, **facts})


def read_plan(path: Path) -> ChunkPlan:
    """Inverse of `write_plan`. Raises UserError for anything else, and for chunks with gaps between them."""
    data = read_json(path)
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, but this version reads {FORMAT}")
        options = ChunkOptions(**{key: data[f"segment_{key}"] for key in ChunkOptions._fields})
        plan = ChunkPlan(options, data["frames"], data["total"], tuple(PlannedChunk(**row) for row in data["segments"]))
        _check_plan(plan)
    except (KeyError, TypeError, ValueError) as error:  # UserError is a ValueError
        raise UserError(
            f"{path} is not a segment plan ({error}): restore it, or start a run with another --exp-id"
        ) from error
    return plan


def _check_plan(plan: ChunkPlan) -> None:
    """Raises ValueError for values that `write_plan` never writes."""
    if [type(value) for value in plan.options] != [int, bool, str]:
        raise ValueError("invalid segment settings")
    plan.options.checked()
    if (type(plan.frames), type(plan.total)) != (str, int) or not plan.chunks:
        raise ValueError("no segments")
    first = 0
    for number, chunk in enumerate(plan.chunks):
        types = [type(value) for value in chunk]
        if types != [int, str, int, int] or (chunk.number, chunk.first) != (number, first) or chunk.count < 1:
            raise ValueError(f"segment {number} is invalid")
        first += chunk.count


def targets_of(name: str, first: int, frames: int) -> str:
    """--clip-targets of `frames` frames from `first` on. Unchanged if `frames` is 0, or `name` names no file."""
    from hnerv.data.clip.targets import rows_of_file  # imports torch

    return rows_of_file(name, first, frames) if frames and name not in ("", "none") else name
