"""Convert logs and files of the parts of `gpu.py` to results (dictionaries for JSON), and results to a table.

The table has a row for every quantity, measured or not.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

NOT_MEASURED = "not measured"


class NotMeasured(Exception):
    """With the reason, for the table."""


class Row(NamedTuple):
    """A line of the table. `value` and `how` format the result of a part; a quantity that it lacks was not measured."""

    part: str
    quantity: str
    value: Callable[[dict], str]
    how: Callable[[dict], str] = lambda result: ""


# From files and logs to results


def result_of_tests(log: str) -> dict:
    """Counts, and the failures with the last words of each, of the output of `pytest -v -rfE`, even a torn one."""
    outcomes = re.findall(r"^\S+::.*? (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b", log, re.M)
    if not outcomes:
        return {}
    counts = {name.lower(): outcomes.count(name) for name in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - (.*))?$", log, re.M)
    return {**counts, "failures": [{"test": test, "message": message[:200]} for test, message in failures]}


def result_of_run(run: Path, started: float, target: float) -> dict:
    """Curves and times of a training run, finished or not, that began at `started` (seconds since the epoch).

    `curve`: [epoch, seconds of training, by the clock, PSNR of trained and of unseen frames, dB] at evaluations;
    `epochs`: [epoch, seconds of training, Train/PSNR]. `reached`: the first row at `target` dB or above, or None.
    """
    from hnerv.tracking import events_folder, metrics_file

    lines = lines_of(metrics_file(run))
    total, epochs, curve, last = 0.0, [], [], {}
    clock = clock_of_evaluations(events_folder(run))
    for line in lines:
        if line["kind"] == "train":
            total += line["seconds"]
            epochs.append([line["epoch"], round(total, 3), line["Train/PSNR"]])
        elif line["kind"] == "eval":
            last = {key.removeprefix("Eval/Frame/"): v for key, v in line.items() if key.startswith("Eval/Frame/")}
            seconds = clock[line["epoch"]] - started if line["epoch"] in clock else None
            curve.append([line["epoch"], total, seconds, last["train_psnr_frame"], last.get("val_psnr_frame")])
    if not epochs:
        return {}
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]
    rows = {"evaluation": (curve, 3), "epoch": (epochs, 2)}
    reached = {name: next((row for row in found if row[i] >= target), None) for name, (found, i) in rows.items()}
    return {
        "of_epochs": config["train"]["epochs"], "eval_freq": config["train"]["eval_freq"], "target": target,
        "train_seconds": total, "curve": curve, "epochs": epochs, "last": last, "reached": reached,
    }  # fmt: skip


def lines_of(path: Path) -> list[dict]:
    """Those of a JSON-lines file, up to a torn one; none where there is no file."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    return found


def clock_of_evaluations(folder: Path) -> dict[int, float]:
    """{epoch: seconds since 1970 when its evaluation was logged}, from TensorBoard's files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        event.step: event.wall_time
        for path in sorted(folder.glob("events.*"))
        for event in EventFileLoader(str(path)).Load()
        if any(value.tag == "Eval/Frame/train_psnr_frame" for value in event.summary.value)
    }


def loss_of_coding(log: str) -> dict[str, float]:
    """{"training": dB, "unseen": dB}: what `hnerv encode` reports relative to the float model."""
    line = re.search(r"full-frame PSNR relative to the float model: (.*)", log)
    return {name: float(value) for name, value in re.findall(r"(\w+) ([+-][\d.]+) dB", line[1] if line else "")}


# From results to the table


def _machine_rows() -> list[Row]:
    def facts(r: dict) -> str:
        if not r["cuda"]:
            raise NotMeasured("the CPU was used instead")
        sm = r["capability"].replace(".", "")
        return f"{r['cuda']}, {r['memory_gib']:.0f} GiB, sm_{sm}, {r['multiprocessors']} multiprocessors"

    return [
        Row("env", "GPU", facts, lambda r: f"driver {r['driver_version']}, {r['cores']} processor cores"),
        Row("env", "copy within device memory", lambda r: f"{r['copy_gb_per_second']:,.0f} GB/s",
            lambda r: "bytes read and written, best of 5"),
        Row("env", "matrix product, bf16", lambda r: f"{r['product_tflops']:,.1f} TFLOP/s",
            lambda r: f"side {8192 if r['cuda'] else 1024}, best of 5"),
    ]  # fmt: skip


def _test_rows() -> list[Row]:
    def counts(r: dict) -> str:
        failed = r["failed"] + r["error"]
        return f"{r['passed']} passed, {failed} failed, {r['skipped']} skipped"

    def failures(r: dict) -> str:
        return "; ".join(f"`{f['test']}`: {f['message']}" for f in r["failures"]).replace("|", "\\|")

    return [Row("tests", "tests marked `cuda`", counts, failures)]


def _run_rows(part: str, split: str) -> list[Row]:
    name = f"bunny-1.5m, {split}"

    def quality(r: dict) -> str:
        seen, unseen = r["last"]["train_psnr_frame"], r["last"].get("val_psnr_frame")
        return f"{seen:.2f} dB" + (f" training, {unseen:.2f} unseen" if unseen is not None else "")

    def extent(r: dict) -> str:
        clip = [f"{s} {r['last'][f'{k}_clip_sim_centred']:.4f}" for k, s in (("train", "training"), ("val", "unseen"))
                if f"{k}_clip_sim_centred" in r["last"]]  # fmt: skip
        head = f"CLIP head, centred cosine {', '.join(clip)}" if clip else "no CLIP head"
        return f"psnr_frame at epoch {r['curve'][-1][0]} of {r['of_epochs']}, {head}"

    def at_target(r: dict) -> str:
        row = r["reached"]["evaluation"]
        if row is None:
            return "not reached"
        return f"{row[1]:.1f} s of training" + (f", {row[2]:.1f} s wall time" if row[2] else "")

    def near_target(r: dict) -> str:
        row = r["reached"]["epoch"]
        early = f"epoch {row[0]}, {row[1]:.1f} s" if row else "not reached"
        return f"{r['target']} dB, evaluated every {r['eval_freq']} epochs; by Train/PSNR (mean of patches): {early}"

    def epoch(r: dict) -> str:
        ends = [0.0, *(row[1] for row in r["epochs"])]
        seconds = [after - before for before, after in itertools.pairwise(ends)]
        return f"{median(seconds):.3f} s per epoch (median), the first {seconds[0]:.1f} s; evaluations excluded"

    return [
        Row(part, f"{name}: PSNR", quality, extent),
        Row(part, f"{name}: full command, wall time", lambda r: f"{r['command_seconds']:.1f} s",
            lambda r: f"{len(r['epochs'])} epochs; includes imports, video, evaluations, logs and checkpoints"),
        Row(part, f"{name}: training", lambda r: f"{r['train_seconds']:.1f} s", epoch),
        Row(part, f"{name}: time to the PSNR of the HNeRV paper", at_target, near_target),
    ]  # fmt: skip


def _profile_rows() -> list[Row]:
    def of(name: str, cell: Callable[[dict], str]) -> Callable[[dict], str]:
        def value(r: dict) -> str:
            row = r["variants"][name]
            if "not_measured" in row:
                raise NotMeasured(row["not_measured"])
            return cell(row)

        return value

    def how(r: dict) -> str:
        own = f"{r['steps']} steps of the 1_1_1 run"
        return own if r["device"] == "cuda" else f"{own}; counts operators instead of kernels and launches"

    cells = {
        "launches, kernels": lambda v: f"{v['launches']:,.1f}, {v['kernels']:,.1f}",
        "wall time, host only, kernels only": lambda v: (
            f"{v['step_ms']:.2f}, {v['host_ms']:.2f}, {v['device_ms']:.2f} ms"
        ),
        "warm-up": lambda v: f"{v['warm_up_seconds']:.1f} s",
    }
    variants = ("eager", "captured", "captured, compiled")
    return [Row("profile", f"{v} step: {q}", of(v, cell), how) for v in variants for q, cell in cells.items()]


def _speed_rows() -> list[Row]:
    t, f = (lambda r: r["training"]), (lambda r: r["floor"])

    def against(name: str) -> Callable[[dict], str]:
        return lambda r: f"{f(r)[name]['times_floor']:.2f} x, {f(r)[name]['times_bare']:.2f} x"

    def floor(name: str) -> Callable[[dict], str]:
        def how(r: dict) -> str:
            row = f(r)[name]
            return (
                f"{row['step_ms']:.2f} ms; arithmetic {row['arithmetic_ms']:.2f} ms ({f(r)['gmac']:.1f} GMAC), "
                f"memory traffic {row['traffic_ms']:.2f} ms ({row['moved_mb']:.0f} MB), bare {f(r)['bare_ms']:.2f} ms"
            )

        return how

    def operators(r: dict) -> str:
        keys = {"operators_eager": "eager", "operators_without_clip": "eager without the CLIP head"}
        return ", ".join(f"{t(r)[key]} {what}" for key, what in keys.items() if key in t(r))

    own = "`speed.py`: CLIP loss on, random targets"
    return [
        Row("speed", "training", lambda r: f"{t(r)['patches_per_second']:,.0f} patches/s, {t(r)['step_ms']:.2f} ms "
            "per step", lambda r: f"{own}; {' to '.join(f'{rate:,.0f}' for rate in t(r)['patches_per_second_range'])}"),
        Row("speed", "operators dispatched per step", lambda r: str(t(r)["operators"]), operators),
        Row("speed", "epoch with and without logging", lambda r: f"{t(r)['epoch_seconds']:.2f}, "
            f"{t(r)['epoch_seconds_unlogged']:.2f} s", lambda r: f"logging takes {t(r)['logging_percent']:.2f} %"),
        Row("speed", "step relative to its floor and its bare convolutions: Muon", against("muon"), floor("muon")),
        Row("speed", "step relative to its floor and its bare convolutions: Adam", against("adam"), floor("adam")),
        Row("speed", "decoding", lambda r: f"{t(r)['decode_fps']:,.0f} frames/s",
            lambda r: "in batches, fp32, cuDNN set as in training"),
        Row("speed", "decoding a single patch", lambda r: f"{t(r)['patch_ms']:.2f} ms"),
        Row("speed", "memory, peak", lambda r: f"{t(r)['peak_memory_mib']:,.0f} MiB", lambda r: t(r)["peak_memory_of"]),
    ]  # fmt: skip


def _codec_rows() -> list[Row]:
    def same(flag: bool) -> str:
        return "identical" if flag else "differ"

    def pixels(r: dict) -> str:
        return f"differ by at most {r['largest_difference']} levels, in {r['share_of_pixels']:.4%} of the pixels"

    def run(r: dict) -> str:
        return f"run `{r['run']}` after epoch {r['note']['epoch']}"

    def lost(r: dict) -> str:
        return ", ".join(f"{name} {value:+.3f} dB" for name, value in r["lost"].items()) + " from coding at 8 bits"

    return [
        Row("codec", "file", lambda r: f"{r['bytes']:,} bytes", lambda r: f"{run(r)}; {lost(r)}"),
        Row("codec", "`hnerv encode`, wall time", lambda r: f"{r['encode_seconds']:.1f} s",
            lambda r: "includes imports, video and both evaluations"),
        Row("codec", "weights decoded on the device and on the CPU", lambda r: same(r["same_weights"])),
        Row("codec", "pixels decoded on the device and on the CPU", pixels, lambda r: f"{r['frames']} frames"),
        Row("codec", "pixels decoded twice on the device", lambda r: same(r["same_twice"])),
        Row("codec", "decoding to images in memory, device and CPU",
            lambda r: f"{r['device_fps']:.1f}, {r['cpu_fps']:.1f} frames/s", lambda r: f"{r['frames']} frames"),
    ]  # fmt: skip


ROWS = [
    *_machine_rows(), *_test_rows(), *_run_rows("full", "1_1_1"), *_codec_rows(), *_profile_rows(), *_speed_rows(),
    *_run_rows("split", "9_9_10"),
]  # fmt: skip


def table(results: dict) -> str:
    """Markdown of everything in results.json: its conditions, a row for each quantity, the heaviest kernels."""
    parts = results["parts"]
    lines = [heading(parts, results["rehearsal"]), "", "| quantity | value | conditions |", "|---|---|---|"]
    for row in ROWS:
        lines.append("| " + " | ".join(cells(row, parts.get(row.part), parts.get("env"))) + " |")
    return "\n".join([*lines, "", *heaviest(parts)]) + "\n"


def heading(parts: dict, rehearsal: bool) -> str:
    """The conditions that all rows share."""
    entry = parts.get("env") or next(iter(parts.values()), {})
    r = parts.get("env", {}).get("result") or {}
    versions = [f"{name} {r[key]}" for name, key in (
        ("Python", "python"), ("torch", "torch"), ("CUDA", "cuda_version"), ("cuDNN", "cudnn_version"),
        ("triton", "triton")) if r.get(key)]  # fmt: skip
    gpu, day = r.get("cuda") or entry.get("gpu") or "no GPU", entry.get("started", "")[:10]
    facts = [f"commit {short_commit(entry.get('commit', ''))}", gpu, *versions, "seed 0", *([day] if day else [])]
    command = f"`python benchmarks/gpu.py{' --rehearse' if rehearsal else ''}`"
    return f"{command}, {', '.join(facts)}." + (" Tiny sizes on the CPU: no measurements." if rehearsal else "")


def cells(row: Row, entry: dict | None, machine: dict | None) -> tuple[str, str, str]:
    """Of a row, from what is recorded of its part."""
    if entry is None:
        return row.quantity, NOT_MEASURED, "this part was not run"
    lacking = (KeyError, TypeError, IndexError, ValueError, AttributeError)  # a part that was cut short lacks some
    try:
        value = row.value(entry["result"])
    except NotMeasured as error:
        return row.quantity, NOT_MEASURED, str(error)
    except lacking:
        return row.quantity, NOT_MEASURED, entry["error"] or entry["state"]
    notes = []
    with contextlib.suppress(*lacking):
        notes.append(row.how(entry["result"]))
    notes.append("" if entry["state"] == "done" else entry["state"])
    if machine and (entry["gpu"], entry["commit"]) != (machine["gpu"], machine["commit"]):
        notes.append(f"on {entry['gpu'] or 'the CPU'} at commit {short_commit(entry['commit'])}")
    return row.quantity, value, "; ".join(note for note in notes if note)


def short_commit(commit: str) -> str:
    """Seven digits, and whether files differ from it."""
    return commit[:7] + ("+changes" if commit.endswith("+changes") else "") if commit else "unknown"


def heaviest(parts: dict) -> list[str]:
    """A table: the heaviest kernels of each variant that was profiled, ms of a step."""
    variants = (parts.get("profile", {}).get("result") or {}).get("variants", {})
    columns = {name: row["heaviest"] for name, row in variants.items() if "heaviest" in row}
    names = list(columns) or [NOT_MEASURED]
    heading = f"| heaviest kernels, ms per step (calls per step) | {' | '.join(names)} |"
    lines = [heading, "|---" * (len(names) + 1) + "|"]
    for i, row in enumerate(itertools.zip_longest(*columns.values())):
        shown = [f"`{short(kernel[0])}` {kernel[1]:.3f} ({kernel[2]:.1f})" if kernel else "" for kernel in row]
        lines.append(f"| {i + 1} | {' | '.join(shown)} |")
    return lines


def short(name: str, most: int = 60) -> str:
    """A kernel's name without its arguments, cut, fit for a cell."""
    name = re.sub(r"^void ", "", name.split("(")[0]).replace("|", "/").replace("`", "'")
    return name if len(name) <= most else name[: most - 3] + "..."
