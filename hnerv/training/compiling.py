"""The network compiled by torch, for training."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV
from hnerv.model.network import Prediction


def compiled(model: DualHeadHNeRV) -> Callable[..., Prediction]:
    """`model.forward`, compiled at its first call and for each new shape; the weights are those of `model`.

    The call raises UserError where torch cannot compile, most often for want of a compiler.
    """
    from torch._dynamo.exc import TorchDynamoException  # seconds of imports

    network = torch.compile(model)

    def call(*args: object, **kwargs: object) -> Prediction:
        try:
            return network(*args, **kwargs)
        except TorchDynamoException as error:
            cause = " ".join(str(error).split("\n")[:2])  # who failed, and why; then come advice and a stack
            raise UserError(
                f"--compile: torch cannot compile the network here ({cause}): install a C++ compiler (g++) and "
                "Python's headers, or train without --compile"
            ) from error

    return call
