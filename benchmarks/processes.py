"""Run processes with a time limit and keep their output; find the commit of the checkout."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from common import ROOT, child_environment

GRACE = 8.0
"""Seconds within the limit between the request to stop and the kill: training saves a checkpoint."""


class Ended(NamedTuple):
    """How commands ended. `status` is that of the last one, None if it was stopped at its limit."""

    status: int | None
    started: float
    seconds: list[float]
    log: str


def run_commands(commands: list[list[str]], limit: float, log: Path, more: dict[str, str]) -> Ended:
    """Run commands until one fails or time is over. Their output is appended to `log`."""
    environment = child_environment(ROOT / "benchmarks", PYTHONUNBUFFERED="1", **more)
    started, seconds, status = time.time(), [], 0
    end = time.monotonic() + limit
    with log.open("a+b") as file:
        offset = file.seek(0, os.SEEK_END)
        for command in commands:
            file.write(f"\n$ {shown(command)}\n".encode())
            file.flush()
            start = time.monotonic()
            status = run_command(command, end - start, file, environment)
            seconds.append(time.monotonic() - start)
            if status != 0:
                break
        file.seek(offset)
        return Ended(status, started, seconds, file.read().decode(errors="replace"))


def run_command(command: list[str], limit: float, output, environment: dict[str, str]) -> int | None:
    """Exit status, or None at the limit. All processes that the command started end with it."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
    try:
        return process.wait(max(limit - GRACE, 0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def shown(command: list[str]) -> str:
    """A command as one line without the paths of this machine."""
    return shlex.join("python" if word == sys.executable else word.replace(f"{ROOT}/", "") for word in command)


def output_of(*command: str) -> str:
    """Output of a command; empty if it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit() -> str:
    """Commit of the checkout, with '+changes' if files differ from it; empty without git."""
    head = output_of("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = output_of("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head + ("+changes" if changed else "")
