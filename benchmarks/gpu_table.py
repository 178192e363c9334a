"""The table of `gpu.py`: a row for every quantity, measured or not, and lists of heaviest kernels and failed tests."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from common import markdown
from gpu_plan import PARTS, PROFILE

NOT_MEASURED = "not measured"
Text = str | Callable[[dict], str]
"""A format string for the result of a part, or a function of it."""


class Row(NamedTuple):
    """A line of the table. `why` is shown if the result lacks the value for a reason known to it."""

    part: str
    quantity: str
    value: Text
    conditions: Text = ""
    why: Text = ""


def table(results: dict) -> str:
    """Markdown of results.json: its conditions, all rows, the heaviest kernels, the tests that failed."""
    parts = results["parts"]
    rows = [cells(row, parts.get(row.part), parts.get("env")) for row in ROWS]
    blocks = [heading(parts, results["rehearsal"]), markdown(["quantity", "value", "conditions"], rows)]
    return "\n\n".join([*blocks, *heaviest_kernels(parts), *failed_tests(parts)]) + "\n"


def heading(parts: dict, rehearsal: bool) -> str:
    """The conditions that all rows share."""
    entry = parts.get("env") or next(iter(parts.values()), {})
    found = entry.get("result") or {}
    names = {"Python": "python", "torch": "torch", "CUDA": "cuda_version", "cuDNN": "cudnn_version", "triton": "triton"}
    versions = [f"{name} {found[key]}" for name, key in names.items() if found.get(key)]
    gpu, day = found.get("cuda") or entry.get("gpu") or "no GPU", entry.get("started", "")[:10]
    facts = [f"commit {short_commit(entry.get('commit', ''))}", gpu, *versions, "seed 0", *([day] if day else [])]
    command = f"`python benchmarks/gpu.py{' --rehearse' if rehearsal else ''}`"
    return f"{command}, {', '.join(facts)}." + (" Tiny sizes on the CPU: no measurements." if rehearsal else "")


LACKING = (KeyError, TypeError, IndexError, ValueError, AttributeError)
"""Errors of formatting a result that lacks a value, because its part was cut short."""


def text_of(text: Text, result: dict) -> str:
    """Raises one of LACKING."""
    return text.format(**result) if isinstance(text, str) else text(result)


def cells(row: Row, entry: dict | None, machine: dict | None) -> tuple[str, str, str]:
    """(quantity, value, conditions), from the entry of the part in results.json."""
    if entry is None:
        return row.quantity, NOT_MEASURED, "this part was not run"
    result = entry["result"]
    try:
        value = text_of(row.value, result)
    except LACKING:
        why = ""
        with contextlib.suppress(*LACKING):
            why = text_of(row.why, result) if result else ""
        return row.quantity, NOT_MEASURED, why or entry["error"] or entry["state"]
    notes = []
    with contextlib.suppress(*LACKING):
        notes.append(text_of(row.conditions, result))
    notes.append("" if entry["state"] == "done" else entry["state"])
    if machine and (entry["gpu"], entry["commit"]) != (machine["gpu"], machine["commit"]):
        notes.append(f"on {entry['gpu'] or 'the CPU'} at commit {short_commit(entry['commit'])}")
    return row.quantity, value, "; ".join(note for note in notes if note)


def short_commit(commit: str) -> str:
    """Seven digits, and whether files differ from it."""
    return commit[:7] + ("+changes" if commit.endswith("+changes") else "") if commit else "unknown"


def heaviest_kernels(parts: dict) -> list[str]:
    """A table for each profiled network, with a column per variant."""
    blocks = []
    for name in (name for name in PARTS if name in parts):
        variants = (parts[name]["result"] or {}).get("variants", {})
        columns = {variant: row["heaviest"] for variant, row in variants.items() if "heaviest" in row}
        rows = [
            [str(i + 1), *(f"`{short_name(k[0])}` {k[1]:.3f} ({k[2]:.1f})" if k else "" for k in kernels)]
            for i, kernels in enumerate(itertools.zip_longest(*columns.values()))
        ]
        title = f"heaviest kernels of {PARTS[name].preset}, ms per step (calls per step)"
        blocks += [markdown([title, *columns], rows)] if columns else []
    return blocks


def short_name(name: str, most: int = 60) -> str:
    """A kernel's name without its arguments, cut, fit for a cell."""
    name = re.sub(r"^void ", "", name.split("(")[0]).replace("|", "/").replace("`", "'")
    return name if len(name) <= most else name[: most - 3] + "..."


def failed_tests(parts: dict) -> list[str]:
    """A list with the last error line of each."""
    failures = (parts.get("tests", {}).get("result") or {}).get("failures", [])
    lines = [f"- `{failure['test']}`: {failure['message']}" for failure in failures]
    return ["\n".join(["Failed tests:", "", *lines])] if lines else []


def psnr_text(r: dict) -> str:
    seen, unseen = r["last"]["train_psnr_frame"], r["last"].get("val_psnr_frame")
    return f"{seen:.2f} dB" + (f" training, {unseen:.2f} unseen" if unseen is not None else "")


def extent_text(r: dict) -> str:
    keys = {"training": "train_clip_sim_centred", "unseen": "val_clip_sim_centred"}
    cosines = [f"{name} {r['last'][key]:.4f}" for name, key in keys.items() if key in r["last"]]
    head = f"CLIP head, centred cosine {', '.join(cosines)}" if cosines else "no CLIP head"
    return f"psnr_frame at epoch {r['curve'][-1][0]} of {r['of_epochs']}, {head}"


def reached_text(r: dict, source: str) -> str:
    if r["reached"][source] is None:
        return "not reached"
    _, training, wall, *_ = r["reached"][source]
    return f"{training:.1f} s of training" + (f", {wall:.1f} s wall time" if wall else "")


def file_text(r: dict) -> str:
    lost = ", ".join(f"{name} {value:+.3f} dB" for name, value in r["lost"].items())
    return f"run `{r['run']}` after epoch {r['note']['epoch']}; {lost} from coding at 8 bits"


def same_text(key: str) -> Callable[[dict], str]:
    return lambda r: "identical" if r[key] else "differ"


def profile_text(r: dict) -> str:
    cpu = "" if r["device"] == "cuda" else "; counts operators instead of kernels and launches"
    return f"{r['steps']} steps of the 1_1_1 run{cpu}"


def operators_text(r: dict) -> str:
    keys = {"operators_eager": "eager", "operators_without_clip": "eager without the CLIP head"}
    return ", ".join(f"{r['training'][key]} {name}" for key, name in keys.items() if key in r["training"])


def tests_text(r: dict) -> str:
    failed = r["failed"] + r["error"]
    return f"{r['passed']} passed, {failed} failed, {r['skipped']} skipped of {r['selected']}"


def command_text(r: dict) -> str:
    return f"{len(r['epochs'])} epochs; includes imports, video, evaluations, logs and checkpoints"


def rows_of_run(name: str) -> list[Row]:
    part = PARTS[name]
    title = f"{part.preset}, {part.split}"
    each = "{epoch_seconds:.3f} s per epoch (median), the first {first_epoch_seconds:.1f} s; evaluations excluded"
    times = [
        Row(name, f"{title}: time to {target} dB ({source})", partial(reached_text, source=source), EVERY)
        for source, target in part.targets.items()
    ]
    return [
        Row(name, f"{title}: PSNR", psnr_text, extent_text),
        Row(name, f"{title}: full command, wall time", "{command_seconds:.1f} s", command_text),
        Row(name, f"{title}: training", "{train_seconds:.1f} s", each),
        *times,
    ]


def rows_of_profile(name: str) -> list[Row]:
    values = {
        "launches, kernels": "{variants[NAME][launches]:,.1f}, {variants[NAME][kernels]:,.1f}",
        "wall time, host only, kernels only": "{variants[NAME][step_ms]:.2f}, {variants[NAME][host_ms]:.2f}, "
        "{variants[NAME][device_ms]:.2f} ms",
        "warm-up": "{variants[NAME][warm_up_seconds]:.1f} s",
    }
    return [
        Row(
            name,
            f"{PARTS[name].preset}, {variant} step: {quantity}",
            value.replace("NAME", variant),
            profile_text,
            f"{{variants[{variant}][not_measured]}}",
        )
        for variant in ("eager", "captured", "captured, compiled")
        for quantity, value in values.items()
    ]


def row_of_floor(title: str, name: str) -> Row:
    value = "{floor[NAME][times_floor]:.2f} x, {floor[NAME][times_bare]:.2f} x"
    conditions = (
        "{floor[NAME][step_ms]:.2f} ms; arithmetic {floor[NAME][arithmetic_ms]:.2f} ms ({floor[gmac]:.1f} GMAC), "
        "memory traffic {floor[NAME][traffic_ms]:.2f} ms ({floor[NAME][moved_mb]:.0f} MB), bare {floor[bare_ms]:.2f} ms"
    )
    quantity = f"step relative to its floor and its bare layers: {title}"
    return Row("speed", quantity, value.replace("NAME", name), conditions.replace("NAME", name))


EVERY = "evaluated every {eval_freq} epochs"
RATE = "{training[patches_per_second]:,.0f} patches/s, {training[step_ms]:.2f} ms per step"
RANGE = "{training[patches_per_second_range][0]:,.0f} to {training[patches_per_second_range][1]:,.0f}"
EPOCHS = "{training[epoch_seconds]:.2f}, {training[epoch_seconds_unlogged]:.2f} s"
PIXELS = "differ by at most {largest_difference} levels, in {share_of_pixels:.4%} of the pixels"
GPU = "{cuda}, {memory_gib:.0f} GiB, compute capability {capability}, {multiprocessors} multiprocessors"
ROWS = [
    Row("env", "GPU", GPU, "driver {driver_version}, {cores} processor cores", "the CPU was used instead"),
    Row("env", "copy within device memory", "{copy_gb_per_second:,.0f} GB/s", "bytes read and written, best of 5"),
    Row("env", "matrix product, bf16", "{product_tflops:,.1f} TFLOP/s", "best of 5"),
    Row("tests", "tests marked `cuda`", tests_text),
    *(row for name, part in PARTS.items() if part.targets for row in rows_of_run(name)),
    Row("rate", "bunny-1.5m-codec: file", "{bytes:,} bytes", "of the last epoch"),
    Row("codec", "file", "{bytes:,} bytes", file_text),
    Row("codec", "`hnerv encode`, wall time", "{encode_seconds:.1f} s", "includes imports, video and both evaluations"),
    Row("codec", "weights decoded on the device and on the CPU", same_text("same_weights")),
    Row("codec", "pixels decoded on the device and on the CPU", PIXELS, "{frames} frames"),
    Row("codec", "pixels decoded twice on the device", same_text("same_twice")),
    Row("codec", "decoding to images in memory, device and CPU", "{device_fps:.1f}, {cpu_fps:.1f} frames/s"),
    *(row for name, part in PARTS.items() if part.commands == PROFILE for row in rows_of_profile(name)),
    Row("speed", "training", RATE, f"`speed.py`: CLIP loss on, random targets; {RANGE}"),
    Row("speed", "operators dispatched per step", "{training[operators]}", operators_text),
    Row("speed", "epoch with and without logging", EPOCHS, "logging takes {training[logging_percent]:.2f} %"),
    row_of_floor("Muon", "muon"),
    row_of_floor("Adam", "adam"),
    Row("speed", "decoding", "{training[decode_fps]:,.0f} frames/s", "in batches, fp32, cuDNN set as in training"),
    Row("speed", "decoding a single patch", "{training[patch_ms]:.2f} ms"),
    Row("speed", "memory, peak", "{training[peak_memory_mib]:,.0f} MiB", "{training[peak_memory_of]}"),
]
