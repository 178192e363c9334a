"""The folder of a run in segments: segments.json, the plan, and segments/00000 and so on, runs as any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hnerv.command import next_commands
from hnerv.data.chunks import Plan, Segment, Wishes
from hnerv.data.clip.targets import rows_of_file
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.flags import SEGMENT_INITS

PLAN = "segments.json"
FORMAT = 1


class Part(NamedTuple):
    """The run of one segment: its folder, and the position of its first frame in the whole."""

    path: Path
    first: int
    count: int


@dataclass(frozen=True)
class SegmentedFolder:
    """output/<exp> of a run in segments."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / PLAN

    def child(self, segment: Segment) -> Path:
        """The run folder of a segment."""
        return self.path / "segments" / segment.name

    def next_commands(self) -> str:
        """What a user may want to do with a finished run."""
        return next_commands(self.path, self.path)


def is_segmented(path: Path) -> bool:
    """Whether it is the folder of a run in segments."""
    return (path / PLAN).is_file()


def parts_of(path: Path) -> list[Part]:
    """The runs behind a folder, in order: of one in segments each of them, of any other itself alone (count 0).

    Raises UserError for a damaged plan.
    """
    if not is_segmented(path):
        return [Part(path, 0, 0)]
    folder = SegmentedFolder(path)
    return [Part(folder.child(s), s.first, s.count) for s in read_plan(folder.plan).segments]


def write_plan(path: Path, plan: Plan) -> None:
    """segments.json. Inverse of `read_plan`."""
    write_json(
        path,
        {
            "format": FORMAT,
            **{f"segment_{key}": value for key, value in plan.wishes._asdict().items()},
            "frames": plan.frames,
            "total": plan.total,
            "segments": [segment._asdict() for segment in plan.segments],
        },
    )


def read_plan(path: Path) -> Plan:
    """Inverse of `write_plan`. Raises UserError for what is no plan, or one whose segments leave gaps."""
    data = read_json(path)
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, but this version reads {FORMAT}")
        wishes = Wishes(**{key: data[f"segment_{key}"] for key in Wishes._fields})
        segments = tuple(Segment(**row) for row in data["segments"])
        if [type(value) for value in wishes] != [int, bool, str] or wishes.init not in SEGMENT_INITS:
            raise ValueError("invalid segment settings")
        _check(data["frames"], segments)
        if type(data["total"]) is not int:
            raise ValueError("invalid total of frames")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a segment plan ({error}): restore it, or start a run with another --exp-id"
        ) from error
    return Plan(wishes, data["frames"], data["total"], segments)


def _check(frames: object, segments: tuple[Segment, ...]) -> None:
    """Raises ValueError unless the segments follow one another from the first frame on."""
    at = 0
    for number, segment in enumerate(segments):
        if [type(value) for value in segment] != [int, str, int, int] or segment[0::2] != (number, at):
            raise ValueError(f"segment {number} is invalid")
        if segment.count < 1:
            raise ValueError(f"segment {number} has no frames")
        at += segment.count
    if not isinstance(frames, str) or not segments:
        raise ValueError("no segments")


def targets_of(name: str, first: int, count: int) -> str:
    """--clip-targets of the whole as that of one segment; as it is where `count` is 0, or no file is named."""
    return rows_of_file(name, first, count) if count and name not in ("", "none") else name
