"""Runs one training command again and again, each time killed at a random moment, until it ends by itself.

Arguments: folder, seed, number of kills, share, then the command line of train_patch_dual.py. A moment is a call of a
function, Python's or C's, after the imports: of the start, or of that share of the training which follows it. SIGKILL
leaves no chance to tidy up. Each try is a fork of a process that has only imported: two seconds less than a new one.
Prints one line per try: the exit status, and the moment. Fails where the checkpoint is lost or damaged after a kill.
"""

from __future__ import annotations

import os
import random
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def attempt(words: list[str], moment: int, counter: Path) -> None:
    """In the child: the command, killed at the call of this number (0: never)."""
    calls = 0

    def count(frame, event, argument) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = ["train_patch_dual.py", *words]
    sys.setprofile(count)
    try:
        runpy.run_path(str(ROOT / "train_patch_dual.py"), run_name="__main__")
    finally:
        sys.setprofile(None)
        counter.write_text(str(calls))


def run(words: list[str], moment: int, counter: Path) -> int:
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            attempt(words, moment, counter)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    import torch
    import torch.utils.tensorboard  # noqa: F401

    import hnerv.data.store
    import hnerv.evaluation
    import hnerv.training  # noqa: F401
    from hnerv.runs.checkpoint import load_checkpoint

    folder, seed, kills, share, *words = sys.argv[1:]
    torch.set_num_threads(1)
    counter, draw = Path(folder) / "calls", random.Random(int(seed))
    whole = run([*words, "--output", f"{folder}/whole"], 0, counter)
    calls = int(counter.read_text())
    print("\ntry", whole, calls)
    print("\ntry", run([*words, "--output", f"{folder}/whole"], 0, counter), 0)
    start = int(counter.read_text())
    latest, seen = Path(folder) / "killed" / "run" / "checkpoints" / "latest.pt", False
    for _ in range(int(kills)):
        moment = draw.randrange(1, start + int((calls - start) * float(share)))
        print("\ntry", run([*words, "--output", f"{folder}/killed"], moment, counter), moment)
        seen = seen or latest.exists()
        if seen:
            load_checkpoint(latest)
    print("\ntry", run([*words, "--output", f"{folder}/killed"], 0, counter), 0)


if __name__ == "__main__":
    main()
