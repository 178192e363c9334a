"""Build a model from a configuration and a scene: solve its width, count its parameters, check its memory."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from hnerv.config import ModelConfig
from hnerv.errors import UserError
from hnerv.files import memory_bytes
from hnerv.model.network import DualHeadHNeRV
from hnerv.model.scene import Scene

MAX_WIDTH = 1 << 14


def build_model(config: ModelConfig, scene: Scene) -> DualHeadHNeRV:
    """A freshly initialised model on the CPU.

    Raises UserError when --modelsize cannot be met, and, before memory is taken, for more than this machine has.
    """
    width = config.dec_width or solve_width(config, scene)
    _check_memory(config, scene, width)
    return DualHeadHNeRV(config, scene, width)


def _check_memory(config: ModelConfig, scene: Scene, width: int) -> None:
    needed = sum(value.nbytes for value in _on_meta(config, scene, width).state_dict().values())
    if needed > memory_bytes():
        raise _too_large(f"needs {needed / 1e9:.1f} GB, but this machine has {memory_bytes() / 1e9:.1f} GB")


def _on_meta(config: ModelConfig, scene: Scene, width: int) -> DualHeadHNeRV:
    """A model on the device `meta`, where only sizes are computed; even these may overflow."""
    try:
        with torch.device("meta"):
            return DualHeadHNeRV(replace(config, dec_width=width), scene, width)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # TypeError: a size beyond 64 bits
        raise _too_large("is too large for any machine") from error


def _too_large(cause: str) -> UserError:
    return UserError(
        f"the model {cause}: lower --modelsize, --dec-width, --embed-dim, --ks, --dec-depths, --expansion, "
        "--clip-hidden, --lower-width, --grid-knots or the strides"
    )


def coded_parameters(model: DualHeadHNeRV) -> dict[str, int]:
    """{part: numbers that a bitstream holds of it}. The encoder is not stored, its codes are."""
    parts: dict[str, int] = {}
    for name, value in model.state_dict().items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + (0 if name.startswith("embedding.encoder.") else value.numel())
    return parts


def solve_width(config: ModelConfig, scene: Scene) -> int:
    """The width that brings the coded parameters closest to --modelsize (millions) from below. Raises UserError."""
    limit = round(config.modelsize * 1e6)

    @functools.cache
    def size(width: int) -> int:
        return sum(coded_parameters(_on_meta(config, scene, width)).values())

    if size(1) > limit:
        raise UserError(
            f"--modelsize {config.modelsize} is below the {size(1) / 1e6:.3f} million parameters of the smallest "
            "such network: raise it, or lower --embed-dim, --grid-knots, --lower-width, --width-multiple, "
            "--clip-hidden, --dec-depths or --expansion"
        )
    # Double, then bisect, with size(low) <= limit < size(high). The size is no closed formula of the width (rounded
    # stages, heads, embedding), but the meta device counts it without allocating.
    low, high = 1, 2
    while size(high) <= limit and high < MAX_WIDTH:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    if config.width_multiple == 1:
        return low
    # Stages rounded to a multiple make the size rise and fall with the width: search a multiple around the crossing.
    near = range(max(low - config.width_multiple, 1), low + config.width_multiple + 1)
    return max((width for width in near if size(width) <= limit), key=size)
