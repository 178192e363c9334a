"""The fleet as one table: fleet.csv, and lines for people. Read from the fleet's folder alone, without Ray."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.fleet.ledger import Mark, Standing, read_marks, read_standing
from hnerv.tables import Column, format_row

MANIFEST, TABLE = "manifest.jsonl", "fleet.csv"
STATES = ("finished", "failed", "begun", "waiting")


class Row(NamedTuple):
    """A video. `psnr` is that of the frame over training frames, `psnr_unseen` over the others, in dB; the rate, in
    bits per pixel, is an estimate at 8 bits a parameter; `seconds` of training; numbers are None where there are none.
    """

    name: str
    state: str
    psnr: float | None = None
    psnr_unseen: float | None = None
    bpp_estimate_8bit: float | None = None
    clip_sim: float | None = None
    seconds: float | None = None
    retries: int = 0
    repeated_steps: int = 0
    progress: float = 0.0
    """Share of its steps that are trained, 0 to 1."""
    cause: str = ""
    targets: str = ""
    """What the similarity is to."""


VALUES = ("psnr", "psnr_unseen", "bpp_estimate_8bit", "clip_sim", "seconds")


def is_fleet(folder: Path) -> bool:
    """Whether it is the output folder of a fleet."""
    return (folder / MANIFEST).is_file() and (folder / "fleet.jsonl").is_file()


def check_no_fleet(folder: Path) -> None:
    """Raises UserError for the output folder of a fleet, where one run is wanted."""
    if is_fleet(folder):
        name = next((row.name for row in read_rows(folder) if _is_begun(folder / row.name)), "NAME")
        raise UserError(f"{folder} is a fleet folder, not a run folder: pass one of its runs, such as {folder / name}")


def _is_begun(run: Path) -> bool:
    return (run / "config.json").is_file() or (run / "segments.json").is_file()


def read_rows(folder: Path) -> list[Row]:
    """Of every video, in the order of the manifest. Raises UserError for a folder that holds no fleet."""
    return rows_of(folder, names_of(folder), read_standing(folder / "fleet.jsonl"), read_marks(folder / "running.json"))


def names_of(folder: Path) -> list[str]:
    """Of its videos, by the manifest. Raises UserError for a folder that holds no fleet."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a fleet folder (no {MANIFEST}): pass the folder set with -o")
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
        names = [json.loads(line)["name"] for line in lines]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is not a string")
        return names
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged ({error}): run the fleet's command again") from error


def rows_of(folder: Path, names: Iterable[str], standing: dict[str, Standing], marks: dict[str, Mark]) -> list[Row]:
    """Videos, by name; a job is the video itself, or NAME/segments/00000, which count for their video."""
    inner: dict[str, list[str]] = {}
    for job in {**standing, **marks}:
        inner.setdefault(job.split("/segments/")[0], []).append(job)
    return [_row(folder, name, inner.get(name, []), standing, marks) for name in names]


def _row(folder: Path, name: str, jobs: list[str], standing: dict[str, Standing], marks: dict[str, Mark]) -> Row:
    own = standing.get(name)
    ours = [standing[job] for job in jobs if job in standing]
    state = "waiting" if not jobs else own.state if own else "begun"
    values = own.values if own and state == "finished" else {}
    cause = own.cause if own else next((one.cause for one in ours if one.cause), "")
    far = {job: standing[job].progress for job in jobs if job in standing}
    far |= {job: marks[job].step / max(marks[job].steps, 1) for job in jobs if job in marks}
    return Row(
        name, state, *(values.get(key) for key in VALUES), sum(one.retries for one in ours),
        sum(one.repeated for one in ours), 1.0 if state == "finished" else _progress(folder, name, far), cause,
        values.get("targets", ""),
    )  # fmt: skip


def _progress(folder: Path, name: str, far: dict[str, float]) -> float:
    """Of a video whose jobs have come so `far`; a segment counts by its frames, as its steps do."""
    if not any("/segments/" in job for job in far):
        return far.get(name, 0.0)
    from hnerv.runs import chunks_of  # imports torch, which the table of other videos does without

    try:
        frames = {f"{name}/segments/{chunk.path.name}": chunk.frames for chunk in chunks_of(folder / name)}
    except UserError:  # of a plan that is damaged: the fleet's command says so
        return 0.0
    return sum(far.get(job, 0.0) * count for job, count in frames.items()) / max(sum(frames.values()), 1)


def write_table(folder: Path, rows: list[Row]) -> Path:
    """fleet.csv, whole or not at all; an empty cell where there is no number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    path = folder / TABLE
    try:
        with replacing(path) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): free disk space, or fix the permissions") from error
    return path


def summary(rows: list[Row]) -> str:
    """One line: how many are in which state, and what the faults cost."""
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    retries, repeated = sum(row.retries for row in rows), sum(row.repeated_steps for row in rows)
    videos = "1 video" if len(rows) == 1 else f"{len(rows)} videos"
    again = "1 retry" if retries == 1 else f"{retries} retries"
    return f"{videos}: {told}; {again}, {repeated} steps repeated"


def lines(rows: list[Row], most: int = 60) -> str:
    """The table for a terminal; of a large fleet those that failed and those at work come first."""
    urgent = sorted(rows, key=lambda row: ("failed", "begun", "finished", "waiting").index(row.state))
    shown = rows if len(rows) <= most else urgent[:most]
    width = max([len(row.name) for row in shown] + [5])
    body = [line(row, width) for row in shown]
    more = [f"… and {len(rows) - len(shown)} more, all in {TABLE}"] * (len(rows) > len(shown))
    targets = sorted({row.targets for row in rows if row.targets})
    meaning = [
        "PSNR is full-frame; * estimate at 8 bits per parameter; similarity is measured against the targets: "
        f"{'; '.join(targets) or 'no targets yet'}"
    ]
    return "\n".join([heading(width), *body, *more, *meaning, summary(rows)])


def heading(width: int) -> str:
    """Of the columns of `line`; `width` is that of the names."""
    return f"{'video':{width}}  state      PSNR  unseen     bpp*    sim  seconds  retries"


def line(row: Row, width: int = 0) -> str:
    """One video."""
    columns = [
        Column("video", str(width)),
        Column("state", "9", gap=2),
        Column("PSNR", ">6", ".2f", gap=1),
        Column("unseen", ">6", ".2f", gap=2),
        Column("bpp*", ">7", ".4f", gap=2),
        Column("sim", ">5", ".3f", gap=2),
        Column("seconds", ">7", ".0f", gap=2),
        Column("retries", ">7", gap=2),
        Column("cause", "", gap=2),
    ]
    state = f"{row.progress:4.0%} done" if row.state == "begun" and row.progress else row.state
    numbers = row.psnr, row.psnr_unseen, row.bpp_estimate_8bit, row.clip_sim, row.seconds, row.retries
    return format_row(columns, [row.name, state, *numbers, row.cause], missing="–")
