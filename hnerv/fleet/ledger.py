"""What became of each job: fleet.jsonl, one line an event, and running.json, how far those at work are."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import RunError
from hnerv.files import read_json

EVENTS = ("finished", "failed", "lost", "stopped")
"""How an attempt at a job ends. `lost`: by a fault of its worker, node or driver."""
THEN_RESUME = "fix the cause, then run the same command to resume"


class Standing(NamedTuple):
    """Of one job. `state` is finished, failed or begun; `values` is what was measured of a finished one."""

    state: str = "begun"
    cause: str = ""
    retries: int = 0
    repeated: int = 0
    """Steps that were trained, lost, and trained again."""
    values: dict[str, float] = {}  # noqa: RUF012 (never changed)
    progress: float = 0.0
    """Share of its steps that the newest checkpoint on the driver's disk has behind it, 0 to 1."""

    def after(self, line: dict) -> Standing:
        """That after an event."""
        what = line["what"]
        state = what if what in ("finished", "failed") else "begun"
        lost = what == "lost"
        repeated = self.repeated + int(line.get("repeated", 0))
        steps = line.get("steps", 0)
        share = line["saved"] / steps if steps else self.progress
        progress = 1.0 if what == "finished" else share if 0 <= share <= 1 else 0.0
        return Standing(state, line.get("cause", ""), self.retries + lost, repeated, line.get("values", {}), progress)


class Mark(NamedTuple):
    """How far a job at work is: the last step heard of, that of the checkpoint on the driver's disk, all of them."""

    step: int
    saved: int
    steps: int

    def facts(self) -> dict[str, int]:
        """What the event that ends an attempt tells of it: the steps that are done again, those saved, all of them."""
        return {"repeated": max(self.step - self.saved, 0), "saved": self.saved, "steps": self.steps}


class Ledger:
    """The two files of a fleet's folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.running = folder / "fleet.jsonl", folder / "running.json"
        self.standing = read_standing(self.path)
        self._marked = read_marks(self.running)
        self._looked = 0.0

    def note(self, job: str, what: str, **facts: object) -> None:
        """Adds an event; what is told of it is on the disk when this returns, as far as the system goes."""
        assert what in EVENTS
        line = {"time": round(time.time(), 3), "job": job, "what": what, **facts}
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path} ({error}): {THEN_RESUME}") from error
        self.standing[job] = self.standing.get(job, Standing()).after(line)

    def mark(self, marks: dict[str, Mark], every: float = 1.0) -> None:
        """Keeps how far the jobs at work are, at most once in `every` seconds. A reader sees all of it or the last."""
        now = time.monotonic()
        if marks == self._marked or (now - self._looked < every and marks):
            return
        self._marked, self._looked = dict(marks), now
        temporary = self.running.with_name(f".{self.running.name}.tmp")
        try:  # not forced to the disk: a lost machine costs a count, not a run
            temporary.write_text(json.dumps(marks))
            os.replace(temporary, self.running)
        except OSError as error:
            raise RunError(f"cannot write {self.running} ({error}): {THEN_RESUME}") from error

    def left(self) -> dict[str, Mark]:
        """The jobs that a driver which was killed left at work."""
        return read_marks(self.running)


def read_standing(path: Path) -> dict[str, Standing]:
    """{job: standing}; a line that is no event, such as the last of a driver that was killed, counts for nothing."""
    standing: dict[str, Standing] = {}
    if not path.is_file():
        return standing
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                job = line["job"]
                standing[job] = standing.get(job, Standing()).after(line)
            except (ValueError, KeyError, TypeError, OverflowError):
                continue
    return standing


def read_marks(path: Path) -> dict[str, Mark]:
    """running.json; empty where there is none."""
    found = read_json(path) if path.is_file() else {}
    return {job: Mark(*mark) for job, mark in found.items()} if isinstance(found, dict) else {}


def mend_end(path: Path) -> None:
    """Ends a last line that a killed driver left without its end, so that the next event is a line of its own."""
    if path.is_file() and path.stat().st_size:
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
