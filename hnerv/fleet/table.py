"""The table of a fleet: fleet.csv, terminal and page."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping

from hnerv.fleet.status import STATES, Status
from hnerv.storage import Storage
from hnerv.tables import Column, format_row

TABLE = "fleet.csv"
VALUES = ("psnr", "psnr_unseen", "bpp_estimate_8bit", "clip_sim", "seconds")
"""See `hnerv.report.results.headline_values`."""
COUNTS = ("retries", "repeated_steps", "progress", "cause")
COLUMNS = (
    Column("video", "", gap=0),
    Column("state", "12", gap=2),
    Column("PSNR", ">6", ".2f", gap=1),
    Column("unseen", ">6", ".2f", gap=2),
    Column("bpp*", ">7", ".4f", gap=2),
    Column("sim", ">5", ".3f", gap=2),
    Column("seconds", ">7", ".0f", gap=2),
    Column("retries", ">7", gap=2),
    Column("", "", gap=2),  # the cause
)
SILENT_SECONDS = 60.0
"""A running task writes its status more often than this."""


def write_table(storage: Storage, statuses: Mapping[str, Status]) -> None:
    """Write fleet.csv; cells without a value are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "state", *VALUES, *COUNTS, "targets"))
    for name, one in statuses.items():
        counts = [getattr(one, key) for key in COUNTS]
        writer.writerow((name, one.state, *map(one.values.get, VALUES), *counts, one.values.get("targets")))
    storage.write(TABLE, text.getvalue().encode())


def fleet_table(statuses: Mapping[str, Status], most: int = 60) -> str:
    """The table for a terminal. If there are more than `most` videos, failed and running ones are shown first."""
    names = sorted(statuses, key=lambda name: STATES.index(statuses[name].state)) if len(statuses) > most else statuses
    shown = list(names)[:most]
    width = max(5, *map(len, shown))
    body = [format_video(name, statuses[name], width) for name in shown]
    more = [f"… and {len(statuses) - len(shown)} more, all in {TABLE}"] * (len(statuses) > len(shown))
    meaning = "PSNR is full-frame; * estimate at 8 bits per parameter; similarity is measured against the targets: "
    return "\n".join([heading(width), *body, *more, meaning + similarity_targets(statuses), summary(statuses)])


def heading(width: int) -> str:
    """Heading of the lines of `format_video`; `width` is that of the names."""
    return format_row(_columns(width), [column.head for column in COLUMNS])


def format_video(name: str, status: Status, width: int = 0) -> str:
    """One line of the table."""
    return format_row(_columns(width), cells_of(name, status))


def summary(statuses: Mapping[str, Status]) -> str:
    """One line: number of videos per state, retries and repeated steps."""
    counts = {state: sum(one.state == state for one in statuses.values()) for state in STATES}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    retries, repeated = (sum(getattr(one, key) for one in statuses.values()) for key in COUNTS[:2])
    videos = "1 video" if len(statuses) == 1 else f"{len(statuses)} videos"
    return f"{videos}: {shown}; {'1 retry' if retries == 1 else f'{retries} retries'}, {repeated} steps repeated"


def similarity_targets(statuses: Mapping[str, Status]) -> str:
    """The targets that the similarities are measured against."""
    return "; ".join(sorted({one.values["targets"] for one in statuses.values() if one.values})) or "no targets yet"


def cells_of(name: str, status: Status) -> list[str]:
    """A running video has its progress, and is called lost if its task is silent."""
    state = status.state
    if state in ("running", "stopped"):
        silent = state == "running" and time.time() - status.time > SILENT_SECONDS
        state = f"{'lost' if silent else state} {status.progress:4.0%}"
    numbers = zip(map(status.values.get, VALUES), COLUMNS[2:], strict=False)
    shown = ["–" if value is None else format(value, column.form) for value, column in numbers]
    return [name, state, *shown, str(status.retries), status.cause]


def _columns(width: int) -> list[Column]:
    return [COLUMNS[0]._replace(align=str(width)), *COLUMNS[1:]]
