"""Run processes with a time limit and keep their output; report the commit and the GPU."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GRACE = 8.0
"""Seconds between the request to stop and the end, within the limit: training saves a checkpoint."""


class Ended(NamedTuple):
    """How commands ended. `status` is that of the last one; None: it was stopped for want of time."""

    status: int | None
    started: float
    seconds: list[float]
    log: str


def run_commands(commands: list[list[str]], limit: float, log: Path, more: dict[str, str]) -> Ended:
    """Until one fails or time is over; their output is appended to `log`."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(ROOT), *(os.path.abspath(folder) for folder in given if folder)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **more}
    started, seconds, status = time.time(), [], 0
    end = time.monotonic() + limit
    log.touch()
    offset = log.stat().st_size
    with log.open("ab") as file:
        for words in commands:
            file.write(f"\n$ {shlex.join(shown(words))}\n".encode())
            file.flush()
            start = time.monotonic()
            status = run_command(words, end - start, file, environment)
            seconds.append(time.monotonic() - start)
            if status != 0:
                break
    with log.open("rb") as file:
        file.seek(offset)
        return Ended(status, started, seconds, file.read().decode(errors="replace"))


def run_command(words: list[str], limit: float, output, environment: dict[str, str]) -> int | None:
    """Exit status; None: over its limit. Whatever processes it started end with it."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
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


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, and with it the processes of the part that runs."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def shown(words: list[str]) -> list[str]:
    """A command without the places of this machine."""
    return ["python" if word == sys.executable else word.replace(f"{ROOT}/", "") for word in words]


def last_line(log: str) -> str:
    """The last words of a process, cut."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300].replace("|", "/") if lines else ""


def commit() -> str:
    """Of the checkout, with '+changes' where files differ from it; '' without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def gpu_name() -> str:
    """By NVIDIA's own tool; '' without one."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return ""
