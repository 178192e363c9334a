"""The model: one embedding, one decoder, two heads.

B times, P patches of a frame, H W frame, h w patch, D embedding dimensions, K canvases of a frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.config import ModelConfig
from hnerv.geometry import PatchGrid, Window, halo_windows
from hnerv.model.decoder import Decoder, RgbHead
from hnerv.model.embeddings import EMBEDDINGS
from hnerv.model.scene import Scene


class Prediction(NamedTuple):
    """rgb (B, 3, H, W) of frames or (B, 3, h, w) of a patch, in [0, 1]; clip (B, P, D) or (B, D), of unit norm."""

    rgb: Tensor
    clip: Tensor | None


class ClipHead(nn.Module):
    """Mean features of each of the pool x pool parts of a patch -> embedding of unit norm."""

    def __init__(self, channels: int, config: ModelConfig, dim: int) -> None:
        super().__init__()
        self.pool = config.clip_pool
        self.hidden = nn.Linear(channels * self.pool**2, config.clip_hidden)
        self.out = nn.Linear(config.clip_hidden, dim)

    def means(self, maps: Tensor, canvas: PatchGrid) -> Tensor:
        """maps (B, C, h', w') over a canvas -> its patches' means (B, P, C pool^2) in fp32, over exactly each part."""
        rows, cols = canvas.rows * self.pool, canvas.cols * self.pool
        parts = F.avg_pool2d(maps.float(), (maps.shape[2] // rows, maps.shape[3] // cols))
        return PatchGrid(rows, cols, canvas.rows, canvas.cols).split(parts).flatten(2)

    def forward(self, means: Tensor) -> Tensor:
        """(..., C pool^2) in fp32 -> (..., D)."""
        return F.normalize(self.out(F.gelu(self.hidden(means))).float(), dim=-1)


class DualHeadHNeRV(nn.Module):
    """Patch-based HNeRV with an RGB head and a CLIP head.

    Built by `hnerv.model.build_model`, which solves the width. Frames must divide by `hnerv.model.frame_multiple`.
    """

    def __init__(self, config: ModelConfig, scene: Scene, width: int) -> None:
        super().__init__()
        self.scene = scene
        self.width = width
        self.embedding = EMBEDDINGS[config.embedding](config, scene)
        self.decoder = Decoder(self.embedding.channels, width, config)
        self.rgb_head = RgbHead(self.decoder.widths[-1], config.rgb_stride)
        site_channels = self.decoder.widths[config.clip_site]
        self.clip_head = ClipHead(site_channels, config, scene.clip_dim) if scene.clip_dim else None
        grid = scene.grid
        whole = self.embedding.canvases == 1
        self.canvas = grid if whole else PatchGrid(*grid.patch_size, 1, 1)

    def forward(self, times: Tensor, frames: Tensor | None = None, clip: bool = True) -> Prediction:
        """times (B,) in [0, N - 1] -> whole frames. `frames` (B, 3, H, W) in [0, 1] are read by `encoder` alone.

        Without `clip` the CLIP head is not computed.
        """
        codes = self.embedding(times, frames)
        features = self.decoder(codes.flatten(0, 1))
        rgb = self.rgb_head(features.last)
        if self.embedding.canvases > 1:
            rgb = self.scene.grid.merge(rgb.unflatten(0, codes.shape[:2]))
        if not clip or self.clip_head is None:
            return Prediction(rgb, None)
        means = self.clip_head.means(features.site, self.canvas)
        return Prediction(rgb, self.clip_head(means.unflatten(0, codes.shape[:2]).flatten(1, 2)))

    def decode_patch(self, times: Tensor, patch: int, frames: Tensor | None = None) -> Prediction:
        """One patch alone, with the halo it needs: equal to the same patch of `forward`. patch in [0, P)."""
        canvas, inner = divmod(patch, self.canvas.patches)
        codes = self.embedding(times, frames)[:, canvas]
        target = Window(*self.canvas.origin_of(inner), *self.canvas.patch_size)
        reaches = [stage.reach for stage in self.decoder.stages] + [self.rgb_head.reach]
        windows = halo_windows(target, tuple(codes.shape[-2:]), reaches)
        features = self.decoder.window(codes, windows)
        produced = windows[-2].scaled(self.rgb_head.reach.stride)
        rgb = target.within(produced).cut(self.rgb_head(features.last))
        if self.clip_head is None:
            return Prediction(rgb, None)
        cells = Window(*(side // self.decoder.site_scale for side in target)).within(windows[self.decoder.site])
        alone = PatchGrid(*self.canvas.patch_size, 1, 1)
        return Prediction(rgb, self.clip_head(self.clip_head.means(cells.cut(features.site), alone)[:, 0]))
