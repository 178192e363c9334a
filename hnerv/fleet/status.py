"""The status of a video: a small JSON file in its run folder, written by its task with each hand-over."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.fleet.manifest import MANIFEST, rows_of
from hnerv.storage import Storage, is_remote

STATES = ("failed", "running", "stopped", "finished", "waiting")


class Status(NamedTuple):
    """`state` is one of STATES; `values` are the results of a finished video, by column of the table.

    `owner` identifies the attempt that wrote it, at `time` (seconds since 1970). `retries` counts the attempts that
    were lost with their worker, node or driver, and `repeated_steps` the steps that were trained again after that.
    """

    state: str = "waiting"
    cause: str = ""
    values: dict[str, object] = {}  # noqa: RUF012 (never changed)
    owner: str = ""
    time: float = 0.0
    retries: int = 0
    repeated_steps: int = 0
    progress: float = 0.0
    """Share of all steps that are trained, 0 to 1."""
    trained: int = 0
    kept: int = 0
    """Steps of this attempt: all (`trained`), and those up to its last hand-over."""
    seconds: float = 0.0
    handing: float = 0.0
    """Duration of this attempt up to its last hand-over, and of its hand-overs."""

    @classmethod
    def parse(cls, data: bytes | None) -> Status:
        """From JSON. Without a file, or with a damaged one, the video waits: its checkpoint is what counts."""
        try:
            found = cls(**json.loads(data or b"{}"))
        except (ValueError, TypeError):
            return cls()
        good = all(type(value) is type(default) for value, default in zip(found, cls(), strict=True))
        return found if good and found.state in STATES else cls()


def read_status(storage: Storage, name: str) -> Status:
    """The status of one video."""
    return read_statuses(storage, [name])[name]


def read_statuses(storage: Storage, names: Iterable[str]) -> dict[str, Status]:
    """{name: status}."""
    files = {f"{name}/status.json": name for name in names}
    found = storage.read_many(files)
    return {name: Status.parse(found.get(file)) for file, name in files.items()}


def write_status(storage: Storage, name: str, status: Status) -> None:
    """Inverse of `read_status`."""
    storage.write(f"{name}/status.json", json.dumps(status._asdict()).encode())


def fleet_statuses(storage: Storage) -> dict[str, Status]:
    """{name: status} of a fleet, in the order of its manifest. Raises UserError if `storage` holds none."""
    if not (names := list(rows_of(storage.read(MANIFEST)))):
        raise UserError(f"{storage.address} is not a fleet folder (no intact {MANIFEST}): pass the folder set with -o")
    return read_statuses(storage, names)


def is_fleet(place: str | os.PathLike) -> bool:
    """Whether this is the folder of a fleet. An address is taken for one."""
    return is_remote(str(place)) or os.path.isfile(os.path.join(place, MANIFEST))
