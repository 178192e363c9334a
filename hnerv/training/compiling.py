"""The network compiled by torch, for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hnerv.errors import RunError
from hnerv.training.trainer import Trainer


@contextlib.contextmanager
def compiled(trainer: Trainer) -> Iterator[None]:
    """Within the block the steps of `trainer` run network and losses as torch.compile makes them.

    They are compiled at the first step of each kind, forward and backward; on CUDA before its graph is captured.
    Raises RunError where torch cannot, most often for want of a compiler.
    """
    from torch._dynamo.exc import TorchDynamoException  # seconds of imports

    print("compiling the network during the first steps (about a minute)", flush=True)
    step = trainer.training_step
    step.losses = torch.compile(step.losses, dynamic=False)
    try:
        yield
    except TorchDynamoException as error:
        cause = " ".join(str(error).split("\n")[:2])  # who failed, and why; then come advice and a stack
        raise RunError(
            f"--compile: torch cannot compile the network on this machine ({cause}): install a C++ compiler (g++) and "
            "the Python headers, or remove --compile"
        ) from error
