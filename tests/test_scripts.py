"""The two scripts as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def call(tmp_path):
    """call('eval.py', ...) -> the finished process, started in an empty folder, warnings as errors."""

    def run(script: str, *words) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONWARNINGS": "error"}
        return subprocess.run(
            [sys.executable, ROOT / script, *map(str, words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_train_then_evaluate(call, tmp_path, flags):
    """A named clip, the printed command, and a stdout that holds nothing but JSON."""
    words = flags(data="bunny", frames="0:12", crop="640x1280", resize="32x64", epochs=1, eval_freq=0)
    done = call("train_patch_dual.py", "--exp-id", "mini/{params}", "--threads", 1, *words)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "crop 640x1280 at 40,0 -> 32x64, grid 2x4" in done.stdout
    evaluate = next(line for line in done.stdout.splitlines() if line.startswith("evaluate:"))
    path = evaluate.split()[-1]
    assert path.startswith("output/mini/") and (tmp_path / path).is_file()
    done = call("eval.py", path, "--json", "--images", "--threads", 1)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    summary = json.loads(done.stdout)
    assert summary["checkpoint"] == path and summary["targets_kind"] == "file"


@pytest.mark.parametrize("script", ["train_patch_dual.py", "eval.py"])
def test_a_bad_call_is_one_line(call, script):
    words = ["none.pt"] if script == "eval.py" else ["--exp-id", "x", "--data", "none.mp4", "--clip-weights", "none"]
    plain = call(script, *words)
    assert plain.returncode == 2 and plain.stdout == "" and plain.stderr.count("\n") == 1
    assert plain.stderr.startswith(f"{script}: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run(call, flags, tmp_path, number):
    words = ["--exp-id", "run", "--threads", "1", *flags(epochs=400, eval_freq=0)]
    with subprocess.Popen(
        [sys.executable, ROOT / "train_patch_dual.py", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not process.stdout.readline().startswith("epoch    3/"):
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.startswith("train_patch_dual.py: stopped at epoch") and err.endswith("run the same command to resume\n")
    assert (tmp_path / "output" / "run" / "checkpoints" / "latest.pt").is_file()


def test_both_scripts_are_short():
    for name in ("train_patch_dual.py", "eval.py"):
        assert len((ROOT / name).read_text().splitlines()) <= 100
