"""State of all jobs on disk: fleet.jsonl has one line per event, running.json the progress of running jobs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import RunError
from hnerv.files import read_json

EVENTS = ("finished", "failed", "lost", "stopped")
"""Ends of an attempt at a job. `lost`: its worker, node or driver failed."""
RESUME_HINT = "fix the cause, then run the same command to resume"


class JobState(NamedTuple):
    """State of one job. `state` is finished, failed or begun; `values` are the results of a finished job."""

    state: str = "begun"
    cause: str = ""
    retries: int = 0
    repeated: int = 0
    """Steps that were trained, lost, and trained again."""
    values: dict[str, float] = {}  # noqa: RUF012 (never changed)
    progress: float = 0.0
    """Share of the steps that the newest checkpoint on the driver's disk contains, 0 to 1."""

    def after(self, event: dict) -> JobState:
        """The state after an event of fleet.jsonl."""
        kind = event["what"]
        state = kind if kind in ("finished", "failed") else "begun"
        lost = kind == "lost"
        repeated = self.repeated + int(event.get("repeated", 0))
        steps = event.get("steps", 0)
        share = event["saved"] / steps if steps else self.progress
        progress = 1.0 if kind == "finished" else share if 0 <= share <= 1 else 0.0
        return JobState(state, event.get("cause", ""), self.retries + lost, repeated, event.get("values", {}), progress)


class JobProgress(NamedTuple):
    """Progress of a running job: last reported step, step of the checkpoint on the driver's disk, number of steps."""

    step: int
    saved: int
    steps: int

    def event_fields(self) -> dict[str, int]:
        """Fields of the event that ends an attempt: steps to repeat, steps saved, all steps."""
        return {"repeated": max(self.step - self.saved, 0), "saved": self.saved, "steps": self.steps}


class Ledger:
    """Reads and writes both files of a fleet folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.progress_path = folder / "fleet.jsonl", folder / "running.json"
        self.states = read_states(self.path)
        self._written = read_progress(self.progress_path)
        self._written_at = 0.0

    def record(self, job: str, kind: str, **fields: object) -> None:
        """Append an event. Raises RunError if it cannot be written."""
        assert kind in EVENTS
        event = {"time": round(time.time(), 3), "job": job, "what": kind, **fields}
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(event).encode() + b"\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path} ({error}): {RESUME_HINT}") from error
        self.states[job] = self.states.get(job, JobState()).after(event)

    def write_progress(self, progress: dict[str, JobProgress], every: float = 1.0) -> None:
        """Replace running.json, at most once in `every` seconds unless `progress` is empty."""
        now = time.monotonic()
        if progress == self._written or (now - self._written_at < every and progress):
            return
        self._written, self._written_at = dict(progress), now
        temporary = self.progress_path.with_name(f".{self.progress_path.name}.tmp")
        try:  # without fsync: losing the file costs a count of steps, not a run
            temporary.write_text(json.dumps(progress))
            os.replace(temporary, self.progress_path)
        except OSError as error:
            raise RunError(f"cannot write {self.progress_path} ({error}): {RESUME_HINT}") from error

    def unfinished(self) -> dict[str, JobProgress]:
        """The jobs that were running when the last driver was killed."""
        return read_progress(self.progress_path)


def read_states(path: Path) -> dict[str, JobState]:
    """{job: state} from fleet.jsonl. Invalid lines, such as the last one of a killed driver, are skipped."""
    states: dict[str, JobState] = {}
    if not path.is_file():
        return states
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
                job = event["job"]
                states[job] = states.get(job, JobState()).after(event)
            except (ValueError, KeyError, TypeError, OverflowError):
                continue
    return states


def read_progress(path: Path) -> dict[str, JobProgress]:
    """{job: progress} from running.json; empty if there is none."""
    found = read_json(path) if path.is_file() else {}
    return {job: JobProgress(*numbers) for job, numbers in found.items()} if isinstance(found, dict) else {}


def end_last_line(path: Path) -> None:
    """Add the newline that a killed driver did not write, so that the next event starts a new line."""
    if path.is_file() and path.stat().st_size:
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
