"""The model: one embedding, one decoder, two heads.

B times, P patches of a frame, H W frame, h w patch, D embedding dimensions, K canvases of a frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.config import ModelConfig
from hnerv.geometry import PatchGrid, Window, halo_windows
from hnerv.model.decoder import Decoder, RgbHead
from hnerv.model.embeddings import EMBEDDINGS
from hnerv.model.scene import Scene


class Prediction(NamedTuple):
    """rgb (B, 3, H, W) of frames or (B, 3, h, w) of a patch, in [0, 1]; clip (B, P, D) or (B, D), of unit norm.

    With N more times that are only embedded, clip is (B + N, P, D).
    """

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
        """maps (B, C, h', w') over a canvas -> means of the parts of its patches (B, P, C pool^2), fp32."""
        # `frame_multiple` makes the parts divide into cells, so an average pool without padding never mixes two
        # patches. The parts then form a finer grid, cut into patches like a frame of (rows pool) x (cols pool) pixels.
        rows, cols = canvas.rows * self.pool, canvas.cols * self.pool
        parts = F.avg_pool2d(maps.float(), (maps.shape[2] // rows, maps.shape[3] // cols))
        return PatchGrid(rows, cols, canvas.rows, canvas.cols).split(parts).flatten(2)

    def forward(self, means: Tensor) -> Tensor:
        """(..., C pool^2) in fp32 -> (..., D)."""
        # Normalised in fp32: the loss is 1 - cosine, and near 1 the numbers of bf16 are 2^-8 apart.
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
        self.decoder = Decoder(width, config)
        self.rgb_head = RgbHead(self.decoder.widths[-1], config.rgb_stride)
        site_channels = self.decoder.widths[config.clip_site]
        self.clip_head = ClipHead(site_channels, config, scene.clip_dim) if scene.clip_dim else None
        grid = scene.grid
        # A canvas is what the decoder draws at once: a full frame, which the grid only divides for the CLIP head, or,
        # where the embedding makes codes for each patch, one patch, which is then a grid of 1 x 1.
        self.canvas = grid if self.embedding.canvases == 1 else PatchGrid(*grid.patch_size, 1, 1)

    def forward(
        self, times: Tensor, frames: Tensor | None = None, clip: bool = True, embedded: Tensor | None = None
    ) -> Prediction:
        """times (B,) in [0, N - 1] -> Prediction of full frames. Only `encoder` reads `frames` (B, 3, H, W) in [0, 1].

        Without `clip` the CLIP head does not run. The times `embedded` (N,) are not drawn, as in `embed`; an embedding
        that reads frames takes none.
        """
        drawn, canvases = len(times), self.embedding.canvases
        codes = self.embedding(times if embedded is None else torch.cat([times, embedded]), frames)
        assert embedded is None or len(codes) == drawn + len(embedded), "the encoder can only embed frames"
        # Both kinds of times share the stages up to the CLIP head's site, in one batch; only the drawn ones, which come
        # first, go through the later stages, which are the expensive ones.
        features = self.decoder(codes.flatten(0, 1), None if embedded is None else drawn * canvases)
        rgb = self.rgb_head(features.last)
        if canvases > 1:
            rgb = self.scene.grid.merge(rgb.unflatten(0, (drawn, canvases)))
        if not clip or self.clip_head is None:
            return Prediction(rgb, None)
        return Prediction(rgb, self._embed(features.site, codes.shape[:2]))

    def embed(self, times: Tensor) -> Tensor:
        """times (B,) in [0, N - 1] -> `forward(times).clip` (B, P, D), without the stages after its site."""
        codes = self.embedding(times)
        return self._embed(self.decoder.to_site(codes.flatten(0, 1)), codes.shape[:2])

    def keep_for_embed(self) -> None:
        """Drop everything that `embed` does not need: the stages after the CLIP head's site, and the RGB head."""
        self.decoder.drop_after_site()
        self.rgb_head = None

    def decode_patch(self, times: Tensor, patch: int, frames: Tensor | None = None) -> Prediction:
        """One patch alone, with the halo it needs: equal to the same patch of `forward`. patch in [0, P)."""
        # With K canvases of one patch, the patch is a canvas; with one canvas of P patches, it is a window of it. The
        # windows of `halo_windows` serve both, and the CLIP head cuts its patch out of the window at its site.
        canvas, inner = divmod(patch, self.canvas.patches)
        codes = self.embedding(times, frames)[:, canvas]
        target = Window(*self.canvas.origin_of(inner), *self.canvas.patch_size)
        windows = self._windows(target, codes)
        features = self.decoder.window(codes, windows)
        rgb = self._rgb(features.last, windows)
        if self.clip_head is None:
            return Prediction(rgb, None)
        cells = Window(*(side // self.decoder.site_scale for side in target)).within(windows[self.decoder.site])
        alone = PatchGrid(*self.canvas.patch_size, 1, 1)
        return Prediction(rgb, self.clip_head(self.clip_head.means(cells.cut(features.site), alone)[:, 0]))

    def decode_window(self, times: Tensor, window: Window, frames: Tensor | None = None) -> Tensor:
        """RGB (B, 3, height, width) of `window`, of a patch's size and in frame pixels, anywhere in the frame.

        A model of full frames decodes it with the halo it needs: equal to the same region of `forward`. `pe` evaluates
        its embedding at those coordinates, between the patches that it was trained on.
        """
        if self.embedding.canvases == 1:
            codes, target = self.embedding(times, frames)[:, 0], window
        else:
            frame = times.new_tensor([self.scene.height, self.scene.width])
            size = times.new_tensor([window.height, window.width])
            middle = (times.new_tensor([window.top, window.left]) + size / 2) / frame
            codes, target = self.embedding.at(times, middle[None])[:, 0], window.within(window)
        windows = self._windows(target, codes)
        return self._rgb(self.decoder.window(codes, windows).last, windows)

    def _windows(self, target: Window, codes: Tensor) -> list[Window]:
        reaches = [stage.reach for stage in self.decoder.stages] + [self.rgb_head.reach]
        return halo_windows(target, tuple(codes.shape[-2:]), reaches)

    def _rgb(self, last: Tensor, windows: list[Window]) -> Tensor:
        """Features over the last window but one -> RGB of the last, the target."""
        produced = windows[-2].scaled(self.rgb_head.reach.stride)
        return windows[-1].within(produced).cut(self.rgb_head(last))

    def _embed(self, site: Tensor, lead: tuple[int, int]) -> Tensor:
        """Maps (B K, C, h', w') at the CLIP head's site -> (B, P, D); `lead` is (B, K)."""
        means = self.clip_head.means(site, self.canvas)
        return self.clip_head(means.unflatten(0, lead).flatten(1, 2))
