"""A GPU that is too small, or lost: one line that says what to change, and how the run goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hnerv.config import Config
from hnerv.errors import RunError, first_line, is_gpu_lost, is_out_of_memory


@contextlib.contextmanager
def device_errors(config: Config, latest: Path) -> Iterator[None]:
    """Raises RunError for what the device raises in the block. Nothing is saved: its memory may hold half a step."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise RunError(
                f"out of GPU memory ({first_line(error)}): pass {_smaller(config)}, under another --exp-id; "
                f"or stop other programs on the GPU and run the same command to {_goes_on(latest)}"
            ) from error
        if is_gpu_lost(error):
            raise RunError(
                f"the GPU failed ({first_line(error)}): check nvidia-smi, then run the same command, with another "
                f"--device if needed, to {_goes_on(latest)}"
            ) from error
        raise


def _smaller(config: Config) -> str:
    """The setting that takes the most memory, halved."""
    batch, model = config.train.batch_size, config.model
    if batch > 1:
        return f"--batch-size {batch // 2} instead of {batch}"
    size = f"--dec-width {max(model.dec_width // 2, 1)}" if model.dec_width else f"--modelsize {model.modelsize / 2:g}"
    was = model.dec_width or f"{model.modelsize:g}"
    return f"{size} instead of {was}, or a --resize of half the height and width"


def _goes_on(latest: Path) -> str:
    return f"resume from {latest}" if latest.exists() else "start over, since there is no checkpoint yet"
