"""Results of the parts of `gpu.py`, from their logs and run folders, as dictionaries for JSON. Torn files are read."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median


def json_lines(lines: Iterable[str]) -> list[dict]:
    """The JSON of each line, up to a torn one."""
    found = []
    with contextlib.suppress(ValueError):
        for line in lines:
            found.append(json.loads(line))
    return found


def result_of_tests(log: str) -> dict:
    """Numbers of tests by outcome, and the last error line of each that failed, as `gpu_tests` prints them."""
    reports = json_lines(re.findall(r"^@result (.*)", log, re.M))
    if not reports:
        return {}
    counts = Counter(report["outcome"] for report in reports[1:])
    failures = [report for report in reports[1:] if report["outcome"] in ("failed", "error")]
    return {
        **reports[0],
        **{name: counts[name] for name in ("passed", "failed", "error", "skipped")},
        "failures": [{"test": report["test"], "message": report["message"][:200]} for report in failures],
    }


def result_of_run(run: Path, started: float, targets: dict[str, float]) -> dict:
    """Curves and times of a training run, finished or not, that began at `started` (seconds since 1970).

    `curve`: [epoch, seconds of training, wall seconds, PSNR of training and of unseen frames, dB] at evaluations;
    `epochs`: [epoch, seconds of training, Train/PSNR];
    `reached`: {source: first row of `curve` at the dB that `targets` has for this source, or None}.
    """
    from hnerv.tracking import events_folder, metrics_file

    if not metrics_file(run).is_file():
        return {}
    total, epochs, curve, last = 0.0, [], [], {}
    wall = times_of_evaluations(events_folder(run))
    for line in json_lines(metrics_file(run).read_text(encoding="utf-8").splitlines()):
        if line["kind"] == "train":
            total += line["seconds"]
            epochs.append([line["epoch"], round(total, 3), line["Train/PSNR"]])
        elif line["kind"] == "eval":
            last = {key.removeprefix("Eval/Frame/"): v for key, v in line.items() if key.startswith("Eval/Frame/")}
            seconds = wall[line["epoch"]] - started if line["epoch"] in wall else None
            curve.append([line["epoch"], total, seconds, last["train_psnr_frame"], last.get("val_psnr_frame")])
    if not epochs:
        return {}
    train = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]["train"]
    each = [after - before for before, after in itertools.pairwise([0.0, *(row[1] for row in epochs)])]
    return {
        "of_epochs": train["epochs"],
        "eval_freq": train["eval_freq"],
        "train_seconds": total,
        "epoch_seconds": median(each),
        "first_epoch_seconds": each[0],
        "curve": curve,
        "epochs": epochs,
        "last": last,
        "reached": {name: next((row for row in curve if row[3] >= target), None) for name, target in targets.items()},
    }


def times_of_evaluations(events: Path) -> dict[int, float]:
    """{epoch: seconds since 1970 when its evaluation was logged}, from TensorBoard's files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        event.step: event.wall_time
        for path in sorted(events.glob("events.*"))
        for event in EventFileLoader(str(path)).Load()
        if any(value.tag == "Eval/Frame/train_psnr_frame" for value in event.summary.value)
    }


def loss_of_coding(log: str) -> dict[str, float]:
    """{"training": dB, "unseen": dB}, relative to the float model, as `hnerv encode` prints it."""
    line = re.search(r"full-frame PSNR relative to the float model: (.*)", log)
    return {name: float(value) for name, value in re.findall(r"(\w+) ([+-][\d.]+) dB", line[1] if line else "")}
