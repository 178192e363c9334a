"""The same command gives the same bits, in one process and in the next; other threads give the same picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def command(tmp_path_factory, flags):
    """command(*more, **settings) -> the weights and the last evaluation of a run in a process of its own."""

    def run(*more: str, **settings: object) -> tuple[dict, dict]:
        output = tmp_path_factory.mktemp("run")
        words = ["--output", output, "--exp-id", "run", *flags(**settings), *more]
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, ROOT / "train_patch_dual.py", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        state = torch.load(output / "run" / "checkpoints" / "latest.pt", map_location="cpu")
        return state["model"], state["evaluation"]

    return run


@pytest.fixture(scope="module")
def one_thread(command) -> tuple[dict, dict]:
    return command("--device", "cpu", "--threads", "1")


def assert_same_bits(ours: tuple[dict, dict], theirs: tuple[dict, dict]) -> None:
    assert ours[0].keys() == theirs[0].keys() and ours[1] == theirs[1]
    for name, value in ours[0].items():
        assert torch.equal(value, theirs[0][name]), name


def test_the_flag_changes_nothing_on_the_cpu(command, one_thread):
    """Nor does a process of its own."""
    assert_same_bits(one_thread, command("--device", "cpu", "--threads", "1", "--deterministic"))


def test_another_seed_gives_other_bits(command, one_thread):
    """Or the test above would show nothing."""
    weights, _ = command("--device", "cpu", "--threads", "1", "--seed", "1")
    assert not all(torch.equal(value, weights[name]) for name, value in one_thread[0].items())


def test_two_threads_agree_to_a_tenth_of_a_decibel(command, one_thread):
    _, evaluation = command("--device", "cpu", "--threads", "2")
    for tag in ("Eval/Frame/train_psnr", "Eval/Frame/val_psnr"):
        assert abs(evaluation[tag] - one_thread[1][tag]) < 0.1


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_two_runs_on_cuda_are_the_same(command, setting_of, kind):
    for precision in ("fp32", "bf16"):
        words = {**setting_of(kind), "precision": precision, "pixel_loss": "Fusion10"}
        first, second = (command("--device", "cuda", "--deterministic", **words) for _ in range(2))
        assert_same_bits(first, second)
