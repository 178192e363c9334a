"""Where the frames of a video lie: in memory, or in a file that is mapped into it."""

from __future__ import annotations

import math
import mmap
import os
import tempfile

import torch
from torch import Tensor

from hnerv.errors import UserError
from hnerv.files import cache_folder, memory_bytes

IN_MEMORY = 4 << 30
"""Bytes of frames; what takes more, or a quarter of this machine's memory, lies in a file under the cache."""


def empty_frames(count: int, height: int, width: int) -> Tensor:
    """(N, 3, H, W) uint8, channels last in memory, as the readers give them. Raises UserError."""
    size = count, height, width, 3
    needed = math.prod(size)
    if needed <= room():
        return torch.empty(size, dtype=torch.uint8).permute(0, 3, 1, 2)
    try:
        return _on_disk(needed).view(size).permute(0, 3, 1, 2)
    except OSError as error:
        raise UserError(
            f"{count} frames of {height}x{width} take {needed / 1e9:.1f} GB, which {cache_folder()} "
            f"cannot hold ({error.strerror}): select fewer with --frames, make them smaller with --resize, or set "
            "HNERV_CACHE to a folder on a larger disk"
        ) from error


def _on_disk(size: int) -> Tensor:
    """(size,) uint8 in a file of the cache that has no name: the system frees it, however the process ends.

    What was read of it stays in memory while there is room, and is no obstacle where there is none. Raises OSError.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that fills up later would kill the process
        else:
            file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


def room() -> int:
    """Bytes of frames that may be held in memory."""
    return min(IN_MEMORY, memory_bytes() // 4)
