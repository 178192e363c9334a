"""Disks and devices that fail in the middle of a run: one line, status 1, and the same command goes on."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import RunError
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.training.run import device_errors
from hnerv.training.trainer import Trainer

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.\nSee the manual")
LOST = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later")


@contextlib.contextmanager
def file_size_limit(run: Path):
    """No file may grow beyond 4 KiB: what a quota or a full disk is to a writer."""
    import resource

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def read_only(run: Path):
    """The folder of the checkpoints may not be written, by us as a user who is not root."""
    folder, root = run / "checkpoints", os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@contextlib.contextmanager
def taken_away(run: Path):
    """A file stands where the folder of the checkpoints was."""
    folder = run / "checkpoints"
    folder.rename(run / "moved")
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        (run / "moved").rename(folder)


@pytest.mark.parametrize("fault", [file_size_limit, read_only, taken_away])
def test_a_disk_that_fails_from_the_third_epoch_on(tmp_path, train, flags, monkeypatch, capsys, assert_same, fault):
    """Logs, too, while it lasts: the run that goes on has them whole."""
    pytest.importorskip("resource")
    words, run, close_epoch = flags(), tmp_path / "failed" / "run", Trainer.close_epoch
    assert train(tmp_path / "whole", words) == 0
    with contextlib.ExitStack() as faults, monkeypatch.context() as patch:

        def failing(self, seconds):
            if self.state.epoch == 2:
                faults.enter_context(fault(run))
            return close_epoch(self, seconds)

        patch.setattr(Trainer, "close_epoch", failing)
        capsys.readouterr()
        status = train(tmp_path / "failed", words)
    line = capsys.readouterr().err.splitlines()[-1]
    assert status == 1 and line.startswith("train_patch_dual.py: cannot write ") and "the same command" in line
    assert load_checkpoint(run / "checkpoints" / "latest.pt")["progress"]["epoch"] == 2
    assert train(tmp_path / "failed", words) == 0
    assert_same(run, tmp_path / "whole" / "run")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (MEMORY, "pass --batch-size 1 instead of 3, under another --exp-id"),
        (LOST, "the GPU failed (CUDA error: an ill"),
    ],
)
def test_a_gpu_that_fails_in_a_step(tmp_path, train, flags, monkeypatch, capsys, assert_same, fault, told):
    words, advance = flags(), Trainer.advance
    assert train(tmp_path / "whole", words) == 0

    def failing(self):
        if self.global_step == 7:
            raise fault
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", failing)
        capsys.readouterr()
        assert train(tmp_path / "failed", words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and f"to resume from {tmp_path / 'failed' / 'run' / 'checkpoints' / 'latest.pt'}" in line
    assert train(tmp_path / "failed", words) == 0
    assert_same(tmp_path / "failed" / "run", tmp_path / "whole" / "run")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 8}, "pass --batch-size 4 instead of 8,"),
        ({"batch_size": 3}, "pass --batch-size 1 instead of 3,"),
        ({"batch_size": 1, "modelsize": 1.5}, "pass --modelsize 0.75 instead of 1.5, or a --resize of half"),
        ({"batch_size": 1, "dec_width": 100}, "pass --dec-width 50 instead of 100, or a --resize of half"),
    ],
)
def test_out_of_memory_names_the_setting_that_helps_most(tmp_path, changes, told):
    with pytest.raises(RunError) as caught, device_errors(Config().replaced(changes), tmp_path / "latest.pt"):
        raise MEMORY
    text = str(caught.value)
    assert told in text and "Tried to allocate 2.00 GiB" in text and "\n" not in text
    assert text.endswith("run the same command to start over, since there is no checkpoint yet")


def test_a_lost_gpu_by_the_error_that_torch_has_for_it(tmp_path):
    (tmp_path / "latest.pt").touch()
    kind = getattr(torch, "AcceleratorError", RuntimeError)
    with pytest.raises(RunError) as caught, device_errors(Config(), tmp_path / "latest.pt"):
        raise kind("CUDA error: unspecified launch failure")
    text = str(caught.value)
    assert text.startswith(
        "the GPU failed (CUDA error: unspecified launch failure): check nvidia-smi, then run the same command, with "
        "another --device if needed, "
    )
    assert text.endswith(f"to resume from {tmp_path / 'latest.pt'}")


@pytest.mark.parametrize("fault", [RuntimeError("shapes do not match"), ValueError("CUDA error"), RunError("told")])
def test_other_errors_pass(tmp_path, fault):
    with pytest.raises(type(fault)) as caught, device_errors(Config(), tmp_path / "latest.pt"):
        raise fault
    assert caught.value is fault
