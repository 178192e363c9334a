"""The embeddings of a video as an array, and as a file for nearest-neighbour libraries or --clip-targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hnerv.errors import UserError
from hnerv.files import replacing
from hnerv.search.index import Index


class Embeddings:
    """Embeddings (N, P, D) fp32 of unit norm, as an array, with frame (N,), patch (P,) and time (N,) in seconds."""

    def __init__(self, index: Index) -> None:
        self._index, scene = index, index.scene
        self.frame, self.patch = np.arange(scene.frames), np.arange(scene.grid.patches)
        self.time = np.array([scene.clock.seconds(frame) for frame in range(scene.frames)])
        self.targets = index.targets

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, P, D)."""
        frames, patches, dim = self._index.embeddings.shape
        return frames, patches, dim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self._index.embeddings.numpy()[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self._index.embeddings.numpy(), dtype=dtype, copy=copy)

    def save(self, path: Path) -> None:
        """Write tensors embeddings, frame, patch and time, as `hnerv embed`. Raises UserError.

        The metadata record the origin; a run trained on these targets stores `encoder` as their source.
        """
        from safetensors.torch import save

        index, scene = self._index, self._index.scene
        columns = {name: torch.from_numpy(getattr(self, name)) for name in ("frame", "patch", "time")}
        metadata = {
            "encoder": f"predicted by the CLIP head of {index.path.name}, trained on {index.targets}",
            "grid": f"{scene.rows}x{scene.cols}",
            "frame_size": f"{scene.height}x{scene.width}",
            "fps": repr(scene.fps),
        }
        data = save({"embeddings": index.embeddings.contiguous(), **columns}, metadata)
        try:
            with replacing(Path(path)) as file:
                file.write(data)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error}): choose another path with -o or free disk space") from error
