"""Run GPU measurements in a command that ends within --minutes and saves its results after each part.

    python benchmarks/gpu.py                                        # env, full, codec, full-0.75m
    python benchmarks/gpu.py --parts full-3m --minutes 6
    python benchmarks/gpu.py --parts tests profile speed full-fast
    python benchmarks/gpu.py --rehearse                             # a tiny version of every part, on the CPU

Parts, in the order in which they run: `env` (machine, versions, peak rates), `full` (bunny-1.5m on all frames, 300
epochs), `codec` (encode that run on the GPU, decode it there and on the CPU), `full-0.75m` (the same training at this
size), `rate` (bunny-1.5m-codec and its file), `full-3m`, `tests` (`pytest -m cuda`, files that start processes last),
`profile` (20 steps of `full`: eager, captured, compiled), `speed` (speed.py), `full-fast` and `profile-fast`
(bunny-1.5m-fast), `split` (bunny-1.5m on 9_9_10). --help prints their estimated seconds; the first command and the
second together take about twelve minutes.

Each part runs in its own processes and may use all the time that later parts do not need. A part that exceeds its limit
is stopped and reports the results it has.

--out holds results.json and table.md, rewritten after each part, log.txt, and the bitstream of `codec`. Parts that are
not run keep the results of an earlier command. The exit status is 1 if a part or a test failed; a part that had no time
left does not count as failed.

Trainings on all frames have no CLIP head, as in papers; `split` has one if --clip-targets is passed.

Nothing is installed or downloaded. A machine with torch 2.11, torchvision, triton, tensorboard, timm, huggingface_hub,
regex, scipy, scikit-image, torchmetrics, matplotlib, jinja2, safetensors, tqdm, pytest and hypothesis also needs these
wheels (Linux, Python 3.12; under 64 MiB together with the checkout): av 18.1.0, scikit-video 1.1.11, open_clip_torch
3.3.0, wcwidth 0.9.4, pytorch-msssim 1.0.0, constriction 0.5.0, ftfy 6.3.1, filelock 4.3.1; decord 0.6.0 to test it too.

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \\
        --platform manylinux1_x86_64 -d wheels NAME ...
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD:$PWD/site
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import HNERV, ROOT
from gpu_plan import FIRST, GPU, PARTS, REHEARSAL, TRAIN
from gpu_results import loss_of_coding, result_of_run, result_of_tests
from gpu_table import table
from processes import GRACE, Ended, commit, output_of, run_commands, shown

from hnerv.command import one_line_errors
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.flags import Parser

LEAST = 5.0
"""A part is started only with this many seconds beyond GRACE."""


def main() -> None:
    args = parse()
    with one_line_errors("gpu.py", args.debug):
        if not args.minutes > 0:
            raise UserError(f"--minutes {args.minutes} must be above 0")
        if args.clip_targets and not os.path.isfile(args.clip_targets):
            raise UserError(f"--clip-targets {args.clip_targets} does not exist: pass a target file or remove the flag")
        results = earlier(args.out / "results.json", args.rehearse)
        if not args.rehearse:
            check_gpu()
        with tempfile.TemporaryDirectory(prefix="hnerv-gpu-") as work:
            failed = run_parts([name for name in PARTS if name in args.parts], Path(work), args, results)
        print(table(results))
        print(f"written to {args.out}: results.json, table.md, log.txt")
        if failed:
            print(f"failed: {', '.join(failed)}", file=sys.stderr)
            sys.exit(1)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. The minutes are counted from here."""
    parser = Parser(prog="gpu.py", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="results folder (output/gpu; with --rehearse output/gpu-rehearsal)")
    needs = ", ".join(f"{name} {part.need:g} s" for name, part in PARTS.items())
    defaults = f"({' '.join(FIRST)}; with --rehearse all)"
    add("--parts", nargs="+", choices=[*PARTS], metavar="PART", help=f"parts to run, of {needs} {defaults}")
    add("--minutes", type=float, default=9.0, help="time limit of the full command (9)")
    add("--clip-targets", default="", metavar="FILE", help="target file of `split`, as in training")
    add("--train-flags", default="", metavar="'FLAGS'", help="additional flags of the training runs")
    add("--commit", default="", help="commit to record if git is not available")
    add("--rehearse", action="store_true", help="run a tiny version of every part on the CPU")
    add("--debug", action="store_true", help="print the traceback of an error")
    args = parser.parse_args(argv)
    args.deadline = time.monotonic() + 60 * args.minutes
    args.out = args.out or Path("output/gpu-rehearsal" if args.rehearse else "output/gpu")
    args.parts = args.parts or (PARTS if args.rehearse else FIRST)
    args.clip_targets = os.path.abspath(args.clip_targets) if args.clip_targets else ""
    return args


def earlier(path: Path, rehearse: bool) -> dict:
    """results.json of an earlier command, or an empty one. Raises UserError if only one of the two is a rehearsal."""
    results = read_json(path) if path.is_file() else {"rehearsal": rehearse, "parts": {}}
    if results["rehearsal"] != rehearse:
        raise UserError(f"{path} holds {'measurements' if rehearse else 'a rehearsal'}: pass another --out")
    return results


def check_gpu() -> None:
    """Raises UserError if torch finds no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} finds no CUDA device: pass --rehearse to run on the CPU")


def commands_of(name: str, work: Path, args: argparse.Namespace) -> list[list[str]]:
    """The commands of a part. `codec` trains a short run if there is none."""
    part, run, values = PARTS[name], run_to_encode(work), REHEARSAL if args.rehearse else GPU
    preset = part.preset
    if args.rehearse:  # of the same decoder
        preset = {"fast": "demo", "codec": "demo-codec"}.get(preset.rpartition("-")[2], "demo-small")
    with_head = name == "split" and args.clip_targets
    fields = {
        **values,
        "name": name,
        "work": shlex.quote(str(work)),
        "json": shlex.quote(str(work / f"{name}.json")),
        "preset": f"--preset {preset} {values['tiny']} --device {values['device']}",
        "split": part.split,
        "clip": f"--clip-targets {shlex.quote(args.clip_targets)}" if with_head else "--clip-weights none",
        "run": run,
        "train_flags": args.train_flags,
        "tests": " ".join(test_files()) if name == "tests" else "",
    }
    commands = [command.format(**fields) for command in part.commands]
    if name == "codec" and run == "short":
        commands.insert(0, f"{TRAIN} --epochs 3".format(**fields | {"name": run}))
    programs = {"python": [sys.executable], "hnerv": HNERV}
    return [[*programs[program], *words] for program, *words in map(shlex.split, commands)]


def run_to_encode(work: Path) -> str:
    """`full` or `split` if it has a checkpoint."""
    found = (name for name in ("full", "split") if (work / name / "checkpoints" / "latest.pt").is_file())
    return next(found, "short")


def test_files() -> list[str]:
    """Only files with tests for CUDA, since others may need missing packages; slow ones, with processes, last."""
    texts = {path: path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    files = sorted((path for path in texts if "mark.cuda" in texts[path]), key=lambda p: "subprocess" in texts[p])
    return [str(path.relative_to(ROOT)) for path in files]


def result_of(name: str, work: Path, ended: Ended) -> dict:
    """Results of a part as far as it came. Empty if there are none."""
    if name == "tests":
        return result_of_tests(ended.log)
    if PARTS[name].targets:
        found, file = result_of_run(work / name, ended.started, PARTS[name].targets), work / f"{name}.hnerv"
        coded = {"bytes": file.stat().st_size} if file.is_file() else {}
        return found and {**found, **coded, "command_seconds": ended.seconds[0]}
    path = work / f"{name}.json"
    found = read_json(path) if path.is_file() else {}
    if name == "codec" and found:
        found |= {"run": run_to_encode(work), "encode_seconds": ended.seconds[-2], "lost": loss_of_coding(ended.log)}
    return found


def run_parts(names: Sequence[str], work: Path, args: argparse.Namespace, results: dict) -> list[str]:
    """Run parts in turn; update `results` and the files of --out after each -> names of the failed ones."""
    args.out.mkdir(parents=True, exist_ok=True)
    gpu = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").split("\n")[0]
    machine = {"commit": args.commit or commit(), "gpu": gpu}
    failed = []
    for i, name in enumerate(names):
        limit = time_limit(PARTS[name].need, [PARTS[n].need for n in names[i + 1 :]], args.deadline - time.monotonic())
        entry = {**run_part(name, work, args, limit), **machine}
        if entry["state"] == "failed":
            failed.append(name)
        if entry["result"] or name not in results["parts"]:
            results["parts"][name] = entry
        write_json(args.out / "results.json", results)
        (args.out / "table.md").write_text(table(results), encoding="utf-8")
        print(f"{name:12} {entry['state']}, {entry['seconds']:.1f} s {entry['error']}", flush=True)
        for file in work.glob("*.hnerv"):
            shutil.copy(file, args.out)
    return failed


def time_limit(need: float, later: Sequence[float], left: float) -> float:
    """Seconds that a part may take: all that the later ones do not need, at least its own need, at most all `left`."""
    return min(left, max(need, left - sum(later)))


def run_part(name: str, work: Path, args: argparse.Namespace, limit: float) -> dict:
    """The entry of a part in results.json. A part that fails or exceeds its limit reports the results it has."""
    commands = commands_of(name, work, args)
    entry = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": 0.0, "commands": list(map(shown, commands))}
    if limit < GRACE + LEAST:
        return {**entry, "state": "no time was left", "error": "", "result": {}}
    no_gpu = {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""} if args.rehearse else {}
    ended = run_commands(commands, limit, args.out / "log.txt", PARTS[name].environment | no_gpu)
    lines = [line.strip() for line in ended.log.splitlines() if line.strip()]
    last = lines[-1][:300].replace("|", "/") if lines else ""
    if ended.status is None:
        state, error = "cut short", f"exceeded its limit of {limit:.0f} s: {last}"
    elif ended.status:
        state, error = "failed", (f"killed by signal {-ended.status}: " if ended.status < 0 else "") + last
    else:
        state, error = "done", ""
    try:
        result = result_of(name, work, ended)
    except Exception as fault:  # files of a killed process may be torn; the other parts have to run
        result, error = {}, error or f"no result: {type(fault).__name__}: {fault}"
        state = "failed" if state == "done" else state
    return {**entry, "seconds": round(sum(ended.seconds), 3), "state": state, "error": error, "result": result}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which ends the current part too
    main()
