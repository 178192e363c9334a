"""What environment.json records."""

from __future__ import annotations

import json
import os
from importlib.metadata import version

import pytest
import torch

from hnerv.runs.environment import environment


def test_the_start_of_a_run(finished):
    (start,) = json.loads((finished / "environment.json").read_text())
    assert start["command"][0] == "train_patch_dual.py" and start["torch"] == version("torch") and "commit" in start
    assert (start["device"], start["precision"], start["tf32"]) == ("cpu", "fp32", False)
    assert [start[key] for key in ("cuda", "cuda_version", "cudnn_version", "driver_version")] == [None] * 4


DRIVERS = {"echo 550.54.15; echo 550.54.15": "550.54.15", "echo; exit 9": None, "exit 0": None}


@pytest.mark.parametrize("script", DRIVERS)
def test_the_environment_of_a_gpu(tmp_path, monkeypatch, script):
    """Of the second GPU, though the first is the current one; with a stub of torch.cuda and of nvidia-smi."""
    monkeypatch.setattr(torch.cuda, "get_device_name", ("H100", "H200").__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = environment(torch.device("cuda:1"), "bf16")
    assert (found["device"], found["cuda"], found["precision"]) == ("cuda:1", "H200", "bf16")
    assert (found["cuda_version"], found["cudnn_version"]) == (torch.version.cuda, 91002)
    assert found["driver_version"] == DRIVERS[script]
    assert environment(torch.device("cuda"))["device"] == "cuda:0"
