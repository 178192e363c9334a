"""The table of a fleet: fleet.csv and terminal output. Reads only the fleet folder, without Ray."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.fleet.ledger import JobProgress, JobState, read_progress, read_states
from hnerv.tables import Column, format_row

MANIFEST, TABLE = "manifest.jsonl", "fleet.csv"
STATES = ("finished", "failed", "begun", "waiting")


class Row(NamedTuple):
    """One video. `psnr`: full-frame PSNR of training frames in dB, `psnr_unseen`: of the other frames; the rate is an
    estimate in bits per pixel at 8 bits per parameter; `seconds` of training. Numbers are None if not measured.
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
    """Share of all steps that are trained, 0 to 1."""
    cause: str = ""
    targets: str = ""
    """The targets that `clip_sim` is measured against."""


VALUES = ("psnr", "psnr_unseen", "bpp_estimate_8bit", "clip_sim", "seconds")


def is_fleet(folder: Path) -> bool:
    """Whether `folder` is the output folder of a fleet."""
    return (folder / MANIFEST).is_file() and (folder / "fleet.jsonl").is_file()


def check_no_fleet(folder: Path) -> None:
    """Raise UserError if `folder`, expected to be a run folder, is a fleet folder."""
    if is_fleet(folder):
        name = next((row.name for row in read_rows(folder) if _is_begun(folder / row.name)), "NAME")
        raise UserError(f"{folder} is a fleet folder, not a run folder: pass one of its runs, such as {folder / name}")


def _is_begun(run: Path) -> bool:
    return (run / "config.json").is_file() or (run / "segments.json").is_file()


def read_rows(folder: Path) -> list[Row]:
    """Rows of all videos in the order of the manifest. Raises UserError if `folder` is not a fleet folder."""
    states, progress = read_states(folder / "fleet.jsonl"), read_progress(folder / "running.json")
    return build_rows(folder, read_names(folder), states, progress)


def read_names(folder: Path) -> list[str]:
    """Names of the videos in the manifest. Raises UserError if `folder` is not a fleet folder."""
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


def build_rows(
    folder: Path, names: Iterable[str], states: dict[str, JobState], progress: dict[str, JobProgress]
) -> list[Row]:
    """One row per video. Jobs are named after their video: NAME, or NAME/segments/00000 for a segment."""
    jobs: dict[str, list[str]] = {}
    for job in {**states, **progress}:
        jobs.setdefault(job.split("/segments/")[0], []).append(job)
    return [_build_row(folder, name, jobs.get(name, []), states, progress) for name in names]


def _build_row(
    folder: Path, name: str, jobs: list[str], states: dict[str, JobState], progress: dict[str, JobProgress]
) -> Row:
    own = states.get(name)
    job_states = [states[job] for job in jobs if job in states]
    state = "waiting" if not jobs else own.state if own else "begun"
    values = own.values if own and state == "finished" else {}
    shares = {job: states[job].progress for job in jobs if job in states}
    shares |= {job: progress[job].step / max(progress[job].steps, 1) for job in jobs if job in progress}
    return Row(
        name,
        state,
        *(values.get(key) for key in VALUES),
        retries=sum(job.retries for job in job_states),
        repeated_steps=sum(job.repeated for job in job_states),
        progress=1.0 if state == "finished" else _video_progress(folder, name, shares),
        cause=own.cause if own else next((job.cause for job in job_states if job.cause), ""),
        targets=values.get("targets", ""),
    )


def _video_progress(folder: Path, name: str, shares: dict[str, float]) -> float:
    """Progress of a video from that of its jobs. Segments are weighted by frames, which their steps depend on."""
    if not any("/segments/" in job for job in shares):
        return shares.get(name, 0.0)
    from hnerv.runs import chunks_of  # imports torch, which tables without segments do not need

    try:
        frames = {f"{name}/segments/{chunk.path.name}": chunk.frames for chunk in chunks_of(folder / name)}
    except UserError:  # the plan is damaged, which `hnerv fleet` reports
        return 0.0
    return sum(shares.get(job, 0.0) * count for job, count in frames.items()) / max(sum(frames.values()), 1)


def write_table(folder: Path, rows: list[Row]) -> Path:
    """Write fleet.csv atomically; cells without a value are empty. Raises UserError."""
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
    """One line: number of videos per state, retries and repeated steps."""
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    retries, repeated = sum(row.retries for row in rows), sum(row.repeated_steps for row in rows)
    videos = "1 video" if len(rows) == 1 else f"{len(rows)} videos"
    again = "1 retry" if retries == 1 else f"{retries} retries"
    return f"{videos}: {shown}; {again}, {repeated} steps repeated"


def format_rows(rows: list[Row], most: int = 60) -> str:
    """The table for a terminal. If there are more than `most` videos, failed and running ones are shown first."""
    urgent = sorted(rows, key=lambda row: ("failed", "begun", "finished", "waiting").index(row.state))
    shown = rows if len(rows) <= most else urgent[:most]
    width = max([len(row.name) for row in shown] + [5])
    body = [format_video(row, width) for row in shown]
    more = [f"… and {len(rows) - len(shown)} more, all in {TABLE}"] * (len(rows) > len(shown))
    targets = sorted({row.targets for row in rows if row.targets})
    meaning = [
        "PSNR is full-frame; * estimate at 8 bits per parameter; similarity is measured against the targets: "
        f"{'; '.join(targets) or 'no targets yet'}"
    ]
    return "\n".join([heading(width), *body, *more, *meaning, summary(rows)])


def heading(width: int) -> str:
    """Heading of the columns of `format_video`; `width` is that of the names."""
    return f"{'video':{width}}  state      PSNR  unseen     bpp*    sim  seconds  retries"


def format_video(row: Row, width: int = 0) -> str:
    """One line of the table."""
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
