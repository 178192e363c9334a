"""Run all GPU measurements in one command that ends within --minutes and saves its results after each part.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts profile split --minutes 8      # run parts that a first command had no time for
    python benchmarks/gpu.py --rehearse                             # a tiny version of every part, on the CPU

Parts, in this order: `env` (machine, versions, peak rates), `full` (bunny-1.5m on all frames, 300 epochs), `codec`
(encode that run on the GPU, decode it there and on the CPU), `tests` (`pytest -m cuda`), `profile` (20 steps of `full`:
eager, captured, compiled), `speed` (speed.py), `split` (bunny-1.5m on 9_9_10). Each part runs in its own processes and
may use all the time that later parts do not need. A part that exceeds its limit is stopped and reports the results it
has.

--out holds results.json and table.md, rewritten after each part, log.txt, and the bitstream of `codec`. Parts that are
not run keep the results of an earlier command. The exit status is 1 if a part or a test failed; a part that had no time
left does not count as failed.

`full` has no CLIP head, so that it compares with papers; `split` has one if --clip-targets is passed.

Nothing is installed or downloaded. A machine with torch 2.11, torchvision, triton, tensorboard, timm, huggingface_hub,
regex, scipy, scikit-image, torchmetrics, matplotlib, jinja2, safetensors, tqdm, pytest and hypothesis also needs these
wheels (Linux, Python 3.12; sizes in MB, together with the checkout under 64 MiB):

    av 18.1.0                35.8       pytorch-msssim 1.0.0      0.01
    scikit-video 1.1.11       2.3       constriction 0.5.0        0.4
    open_clip_torch 3.3.0     1.5       ftfy 6.3.1                0.04
    wcwidth 0.9.4             0.8       decord 0.6.0             13.6 (optional: PyAV reads the video too)

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

from gpu_table import loss_of_coding, result_of_run, result_of_tests, table
from processes import GRACE, ROOT, Ended, commit, gpu_name, last_line, run_commands, shown, stopped_by_signal

from hnerv.command import one_line_errors
from hnerv.errors import UserError
from hnerv.files import read_json, write_json
from hnerv.flags import Parser

PAPERS = 35.57
"""dB: HNeRV of 1.5M parameters on all frames of Bunny (HNeRV, table 2)."""
LEAST = 5.0
"""Seconds, GRACE aside, that a part is started with."""
LARGEST_FILE = 16 << 20


class Setting(NamedTuple):
    """What the parts are given. `work` is a folder for runs and files that is thrown away."""

    work: Path
    rehearse: bool
    clip_targets: str
    train_flags: list[str]

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def preset(self) -> list[str]:
        """Flags of what is trained."""
        if not self.rehearse:
            return ["--preset", "bunny-1.5m", "--device", "cuda"]
        small = ["--frames", "0:10", "--epochs", "2", "--modelsize", "0.1", "--resize", "80x160", "--grid-knots", "5"]
        return ["--preset", "demo", *small, "--pixel-loss-warmup-epochs", "0", "--device", "cpu"]

    @property
    def target(self) -> float:
        """dB that a run is to reach."""
        return 10.0 if self.rehearse else PAPERS

    def written(self, name: str) -> dict:
        """What the process of a part has written, so far."""
        path = self.work / f"{name}.json"
        return read_json(path) if path.is_file() else {}


class Part(NamedTuple):
    """`need`: seconds that it takes on an H100, an estimate. `commands` run one after the other."""

    name: str
    need: float
    commands: Callable[[Setting], list[list[str]]]
    result: Callable[[Setting, Ended], dict]
    environment: dict[str, str] = {}


def main() -> None:
    """Runs the parts -> files in --out, and the table on the screen."""
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
            failed = run_parts([PARTS[name] for name in PARTS if name in args.parts], setting, args, results)
        print(table(results))
        print(f"written to {args.out}: results.json, table.md, log.txt")
        if failed:
            print(f"failed: {', '.join(failed)}", file=sys.stderr)
            sys.exit(1)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. The minutes begin now."""
    parser = Parser(prog="gpu.py", description=__doc__)
    parser.add_argument("--out", type=Path, help="results folder (output/gpu; with --rehearse output/gpu-rehearsal)")
    parser.add_argument(
        "--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="parts to run, in the order above (all)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of the full command (9)")
    parser.add_argument("--clip-targets", default="", metavar="FILE", help="target file of `split`, as in training")
    parser.add_argument("--train-flags", default="", metavar="'FLAGS'", help="additional flags of the training runs")
    parser.add_argument("--commit", default="", help="commit to record if git is not available")
    parser.add_argument("--rehearse", action="store_true", help="run a tiny version of every part on the CPU")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    args = parser.parse_args(argv)
    args.deadline = time.monotonic() + 60 * args.minutes
    args.out = args.out or Path("output/gpu-rehearsal" if args.rehearse else "output/gpu")
    args.clip_targets = os.path.abspath(args.clip_targets) if args.clip_targets else ""
    return args


def earlier(path: Path, rehearse: bool) -> dict:
    """results.json of an earlier command, or an empty one. Raises UserError for one of the other kind."""
    results = read_json(path) if path.is_file() else {"rehearsal": rehearse, "parts": {}}
    if results["rehearsal"] != rehearse:
        raise UserError(f"{path} holds {'measurements' if rehearse else 'a rehearsal'}: pass another --out")
    return results


def check_gpu() -> None:
    """Raises UserError where torch finds none."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} finds no CUDA device: pass --rehearse to run on the CPU")


# The parts


def script(name: str, *words: object) -> list[str]:
    """A command that runs a script of the checkout."""
    return [sys.executable, name, *map(str, words)]


def training(setting: Setting, name: str, split: str, targets: str = "", *more: str) -> list[str]:
    """The training command, evaluated often enough to see when a PSNR was reached."""
    clip = ["--clip-targets", targets] if targets else ["--clip-weights", "none"]
    logs = ["--eval-freq", "1" if setting.rehearse else "25", "--images-freq", "0", "--checkpoint-seconds", "10"]
    place = ["--exp-id", name, "--output", setting.work]
    return script(
        "train_patch_dual.py", *place, *setting.preset, "--data-split", split, *clip, *logs, *setting.train_flags, *more
    )


def env_commands(setting: Setting) -> list[list[str]]:
    to = setting.work / "env.json"
    return [script("benchmarks/gpu_parts.py", "env", "--device", setting.device, "--json", to)]


def pytest_commands(setting: Setting) -> list[list[str]]:
    """Only the files that use the mark: others may need packages that are not there."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    flags = ["-m", "cuda", "-v", "-rfE", "--tb=short", "-p", "no:cacheprovider", "-W", "default"]
    own = ["-o", "addopts=--import-mode=importlib --strict-markers", *flags]
    return [[sys.executable, "-m", "pytest", *own, *(str(path.relative_to(ROOT)) for path in files)]]


def profile_commands(setting: Setting) -> list[list[str]]:
    """Of the steps of `full`, which are all of one kind: one compilation."""
    same = [*setting.preset, "--data-split", "1_1_1", "--clip-weights", "none"]
    return [script("benchmarks/gpu_parts.py", "profile", *same, "--json", setting.work / "profile.json")]


def speed_commands(setting: Setting) -> list[list[str]]:
    steps = ["--steps", "10" if setting.rehearse else "100"]
    return [script("benchmarks/speed.py", *setting.preset, *steps, "--json", setting.work / "speed.json")]


def codec_run(setting: Setting) -> Path:
    """The run that is encoded: that of `full` or of `split` as far as it came, else a short one."""
    found = [setting.work / name for name in ("full", "split")]
    return next((run for run in found if (run / "checkpoints" / "latest.pt").is_file()), setting.work / "short")


def codec_commands(setting: Setting) -> list[list[str]]:
    """Encoding and comparison, the last two; training before them where there is no run."""
    run = codec_run(setting)
    file = setting.work / f"{run.name}.hnerv"
    train = [] if run.name != "short" else [training(setting, "short", "1_1_1", "", "--epochs", "3")]
    encode = ["encode", run, "-o", file, "--overwrite", "--device", setting.device]
    every = "2" if setting.rehearse else "4"
    compare = ["codec", file, "--device", setting.device, "--every", every, "--json", setting.work / "codec.json"]
    hnerv = script("-c", "from hnerv.cli import main; main()", *encode)
    return [*train, hnerv, script("benchmarks/gpu_parts.py", *compare)]


def codec_result(setting: Setting, ended: Ended) -> dict:
    found = setting.written("codec")
    if not found:
        return {}
    return {
        **found,
        "run": codec_run(setting).name,
        "encode_seconds": ended.seconds[-2],
        "lost": loss_of_coding(ended.log),
    }


def run_result(name: str) -> Callable[[Setting, Ended], dict]:
    """Of a training run, as far as it came."""

    def result(setting: Setting, ended: Ended) -> dict:
        found = result_of_run(setting.work / name, ended.started, setting.target)
        return {**found, "command_seconds": ended.seconds[-1]} if found else {}

    return result


def written(name: str) -> Callable[[Setting, Ended], dict]:
    return lambda setting, ended: setting.written(name)


PARTS = {
    part.name: part
    for part in (
        Part("env", 20, env_commands, written("env")),
        Part("full", 150, lambda s: [training(s, "full", "1_1_1")], run_result("full")),
        Part("codec", 40, codec_commands, codec_result),
        Part("tests", 130, pytest_commands, lambda _, ended: result_of_tests(ended.log), {"HNERV_TEST_CUDA": "1"}),
        Part("profile", 90, profile_commands, written("profile")),
        Part("speed", 45, speed_commands, written("speed")),
        Part("split", 45, lambda s: [training(s, "split", "9_9_10", s.clip_targets)], run_result("split")),
    )
}
"""In the order in which they run, the most valuable first."""


# Running


def run_parts(parts: Sequence[Part], setting: Setting, args: argparse.Namespace, results: dict) -> list[str]:
    """Runs them in turn, updates `results` and writes the files of --out after each -> names of those that failed."""
    args.out.mkdir(parents=True, exist_ok=True)
    common = {"commit": args.commit or commit(), "gpu": gpu_name()}
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
            if file.stat().st_size <= LARGEST_FILE:
                shutil.copy(file, args.out)
    return failed


def time_limit(part: Part, later: Sequence[Part], left: float) -> float:
    """Seconds that a part may take: all that the later ones do not need, at least its own need, at most all `left`."""
    return min(left, max(part.need, left - sum(other.need for other in later)))


def run_part(part: Part, setting: Setting, limit: float, log: Path) -> dict:
    """Its entry in results.json. A part that fails, or runs over its limit, reports what it has."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    commands = part.commands(setting)
    entry = {"started": started, "seconds": 0.0, "commands": [shlex.join(shown(words)) for words in commands]}
    if limit < GRACE + LEAST:
        return {**entry, "state": "no time was left", "error": "", "result": {}}
    alone = {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""} if setting.rehearse else {}
    ended = run_commands(commands, limit, log, part.environment | alone)
    state = "failed" if ended.status else "done" if ended.status == 0 else "cut short"
    error = "" if ended.status == 0 else cause(ended, limit)
    try:
        result = part.result(setting, ended)
    except Exception as fault:  # torn files of a killed process must not take the other parts
        result, error = {}, error or f"no result: {type(fault).__name__}: {fault}"
        state = "failed" if state == "done" else state
    return {**entry, "seconds": round(sum(ended.seconds), 3), "state": state, "error": error, "result": result}


def cause(ended: Ended, limit: float) -> str:
    """Why a part is not done, with its last words."""
    if ended.status is None:
        return f"exceeded its limit of {limit:.0f} s: {last_line(ended.log)}"
    return (f"killed by signal {-ended.status}: " if ended.status < 0 else "") + last_line(ended.log)


if __name__ == "__main__":
    main()
