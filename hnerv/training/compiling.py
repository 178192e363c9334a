"""The network compiled by torch, for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hnerv.errors import RunError
from hnerv.training.trainer import Trainer


@contextlib.contextmanager
def compiled(trainer: Trainer) -> Iterator[None]:
    """Within the block the steps of `trainer` run the model as torch.compile makes it, with the weights of `model`.

    It is compiled at the first step, forward and backward, and for each new shape. Raises RunError where torch cannot,
    most often for want of a compiler.
    """
    from torch._dynamo.exc import TorchDynamoException  # seconds of imports

    print("compiling the network in the first steps: about a minute", flush=True)
    trainer.network = torch.compile(trainer.model)
    try:
        yield
    except TorchDynamoException as error:
        cause = " ".join(str(error).split("\n")[:2])  # who failed, and why; then come advice and a stack
        raise RunError(
            f"--compile: torch cannot compile the network here ({cause}): install a C++ compiler (g++) and Python's "
            "headers, or train without --compile"
        ) from error
