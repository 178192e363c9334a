"""Export of an index as safetensors, for nearest-neighbour libraries, notebooks or `--clip-targets`."""

from __future__ import annotations

from pathlib import Path

import torch

from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.search.index import Index


def write_embeddings(path: Path, index: Index) -> None:
    """Write embeddings (N, P, D) fp32 of unit norm, frame (N,) and patch (P,) int64, time (N,) fp64 in seconds.

    The metadata record the origin; a run trained on these targets stores `encoder` as their source. Raises UserError.
    """
    from safetensors.torch import save

    scene = index.scene
    frame, clock = torch.arange(scene.frames), scene.clock
    tensors = {
        "embeddings": index.embeddings.contiguous(),
        "frame": frame,
        "patch": torch.arange(scene.grid.patches),
        "time": torch.tensor([clock.seconds(number) for number in range(scene.frames)], dtype=torch.float64),
    }
    metadata = {
        "encoder": f"predicted by the CLIP head of {index.path.name}, trained on {index.targets}",
        "grid": f"{scene.rows}x{scene.cols}",
        "frame_size": f"{scene.height}x{scene.width}",
        "fps": repr(scene.fps),
    }
    data = save(tensors, metadata)
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another path with -o or free disk space") from error
