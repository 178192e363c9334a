"""Input of the decoder: an embedding turns times into maps of codes. A new one is a class and a row of EMBEDDINGS.

B times, K canvases of a frame (1: the decoder draws full frames; P: it draws each patch alone), C channels,
h0 w0 cells of a canvas, T knots. Times are frame positions in [0, N - 1], fractions allowed.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.config import ModelConfig, parse_pe
from hnerv.model.scene import Scene

LATENTS = re.compile(r"embedding\.(levels\.\d+|codes)")
"""Tensors of a model with time as their first axis: the knots of a grid, the codes of an encoder."""


class Embedding(nn.Module, ABC):
    """Contract of all embeddings. `at_any_time`: training at a time needs no frame of that time."""

    channels: int
    """C."""
    canvases: int = 1
    """K."""
    at_any_time: bool = True

    @abstractmethod
    def forward(self, times: Tensor, frames: Tensor | None = None) -> Tensor:
        """times (B,), frames (B, 3, H, W) in [0, 1] where they are known -> codes (B, K, C, h0, w0)."""

    def refresh(self, frame_at: Callable[[Tensor], Tensor]) -> None:
        """Compute stored codes, if there are any, with the present weights.

        frame_at: positions (B,) -> frames (B, 3, H, W) in [0, 1].
        """

    def discard_encoder(self) -> None:
        """Drop the encoder, which no bitstream holds, and make the codes parameters: only times can be embedded."""


class LatentEmbedding(Embedding):
    """An embedding that stores a tensor over time, see `LATENTS`: a reader of a few frames needs slices of it only."""

    @abstractmethod
    def slices(self, tensor: str, frames: range) -> range:
        """Slices along the first axis of `tensor` that the codes of these neighbouring frames are made of."""


def hat(distance: Tensor) -> Tensor:
    """Weight of a knot at this distance, in knots: 1 at 0, falling linearly to 0 at 1 and beyond."""
    # Linear interpolation is then a product with a matrix of weights (B, T): one operator instead of a gather of two
    # knots and their blend, with the same result, since all other terms are exactly 0.
    return F.relu(1 - distance.abs())


def interpolate_knots(knots: Tensor, position: Tensor) -> Tensor:
    """Linear interpolation along the first axis: knots (T, ...), position (B,) in [0, T - 1] -> (B, ...)."""
    weights = hat(position[:, None] - torch.arange(len(knots), device=position.device))
    return (weights.to(knots.dtype) @ knots.flatten(1)).view(-1, *knots.shape[1:])


def widest_gap(train: tuple[int, ...], frames: int) -> int:
    """Largest distance between neighbouring training frames, untrained ends included."""
    # An untrained end counts from one position outside the video (-1 or N). The knot at an end has neighbours on one
    # side only: counted from the end itself, a training frame could lie exactly on the next knot, where the last knot
    # has the weight 0, and the last knot would never be trained.
    edges = (*train, frames) if train[-1] != frames - 1 else train
    edges = (-1, *edges) if edges[0] != 0 else edges
    return max((b - a for a, b in zip(edges, edges[1:], strict=False)), default=1)


def knot_counts(config: ModelConfig, scene: Scene) -> list[int]:
    """Number of knots of each level, the finest first; each level halves it."""
    # Knots no closer than the widest gap of the training frames: then every knot has a training frame at a distance
    # below 1 knot, where its weight is not 0. More would keep their initial noise, in the file and in unseen frames.
    most = (scene.frames - 1) // widest_gap(scene.train, scene.frames) + 1
    finest = min(config.grid_knots or most, most)
    fewest = min(2, len(scene.train))
    return [max(fewest, math.ceil(finest / 2**level)) for level in range(config.grid_levels)]


def _initial_knots(*shape: int) -> Tensor:
    """Normal, standard deviation 0.1."""
    knots = torch.empty(*shape)
    # On the meta device torch would import its compiler to draw numbers, which takes a second.
    return knots if knots.is_meta else knots.normal_().mul_(0.1)


class GridEmbedding(LatentEmbedding):
    """Learned maps at knots in time, at several resolutions, linearly interpolated (FFNeRV, section 3.2)."""

    def __init__(self, config: ModelConfig, scene: Scene) -> None:
        super().__init__()
        scale = math.prod(config.strides)
        cells = scene.height // scale, scene.width // scale
        self.channels = config.embed_dim
        self.span = max(scene.frames - 1, 1)
        counts = knot_counts(config, scene)
        shares = [len(range(level, config.embed_dim, len(counts))) for level in range(len(counts))]
        self.levels = nn.ParameterList(
            nn.Parameter(_initial_knots(count, share, *cells))
            for count, share in zip(counts, shares, strict=True)
            if share
        )
        self.cells = cells
        knots = [len(level) for level in self.levels]
        per_frame = torch.cat([torch.full((n,), (n - 1) / self.span) for n in knots])
        self.register_buffer("per_frame", per_frame, persistent=False)
        self.register_buffer("index", torch.cat([torch.arange(n).float() for n in knots]), persistent=False)

    def forward(self, times: Tensor, frames: Tensor | None = None) -> Tensor:
        """times (B,) -> codes (B, 1, C, h0, w0); `frames` are not read."""
        with torch.autocast(times.device.type, enabled=False):
            # Frame t lies at t (T - 1) / (N - 1) knots of a level. The weights of all levels come from one operator on
            # their knots in a row, (B, sum of T), then each level blends its own knots: (B, T) x (T, h0 w0 C).
            weights = hat(times[:, None] * self.per_frame - self.index)
            parts = weights.split([len(level) for level in self.levels], dim=1)
            # In the order h w C of channels-last memory, where flattening copies nothing.
            knots = [level.permute(0, 2, 3, 1).flatten(1) for level in self.levels]
            codes = [(a @ b).unflatten(1, (*self.cells, -1)) for a, b in zip(parts, knots, strict=True)]
            return torch.cat(codes, dim=3).permute(0, 3, 1, 2).unsqueeze(1)

    def slices(self, tensor: str, frames: range) -> range:
        knots = len(self.get_parameter(tensor))
        ends = torch.tensor([frames[0], frames[-1]]).float() / self.span * (knots - 1)
        low, high = (int(end) for end in ends)
        # One knot more on each side: on another device `forward` may round to the other side of a knot.
        return range(max(min(low, knots - 2) - 1, 0), min(high + 3, knots))


class EncoderEmbedding(LatentEmbedding):
    """HNeRV's content embedding: codes are computed from frames in training and stored for decoding.

    Without `frames`, a training frame has its stored code, and other times are interpolated between the two nearest.
    """

    at_any_time = False

    def __init__(self, config: ModelConfig, scene: Scene) -> None:
        from hnerv.model.encoder import ContentEncoder  # torchvision takes a second to import

        super().__init__()
        scale = math.prod(config.strides)
        self.channels = config.embed_dim
        self.encoder = ContentEncoder(config.enc_strides, config.enc_width, config.embed_dim)
        self.register_buffer(
            "codes", torch.zeros(len(scene.train), config.embed_dim, scene.height // scale, scene.width // scale)
        )
        self.register_buffer("positions", torch.tensor(scene.train, dtype=torch.float32), persistent=False)

    def forward(self, times: Tensor, frames: Tensor | None = None) -> Tensor:
        """times (B,) -> codes (B, 1, C, h0, w0), computed from `frames` (B, 3, H, W) where they are given."""
        if frames is not None:
            return self.encoder(frames).unsqueeze(1)
        after = torch.searchsorted(self.positions, times.float()).clamp(max=len(self.positions) - 1)
        before = (after - 1).clamp(min=0)
        gap = (self.positions[after] - self.positions[before]).clamp(min=1)
        share = ((times - self.positions[before]) / gap).clamp(0, 1)
        return interpolate_knots(self.codes, before + share * (after > before)).unsqueeze(1)

    @torch.no_grad()
    def refresh(self, frame_at: Callable[[Tensor], Tensor]) -> None:
        for chunk in torch.arange(len(self.positions), device=self.codes.device).split(16):
            self.codes[chunk] = self.encoder(frame_at(self.positions[chunk].long())).to(self.codes.dtype)

    def discard_encoder(self) -> None:
        codes = self.codes.detach().clone()
        del self.codes
        self.codes, self.encoder, self.at_any_time = nn.Parameter(codes), None, True

    def slices(self, tensor: str, frames: range) -> range:
        ends = torch.tensor([frames[0], frames[-1]], dtype=torch.float32)
        low = int(torch.searchsorted(self.positions.cpu(), ends[0], right=True)) - 1
        high = int(torch.searchsorted(self.positions.cpu(), ends[1])) + 1
        return range(max(low, 0), min(high, len(self.positions)))


class PositionalEmbedding(Embedding):
    """Sines and cosines of (t, y, x) of every patch, then two linear layers (NeRV, equation 2, per patch)."""

    def __init__(self, config: ModelConfig, scene: Scene) -> None:
        super().__init__()
        grid, scale = scene.grid, math.prod(config.strides)
        base, count = parse_pe(config.pe)
        self.cells = grid.patch_size[0] // scale, grid.patch_size[1] // scale
        self.channels, self.canvases = config.embed_dim, grid.patches
        self.span = scene.frames
        self.hidden = nn.Linear(6 * count, config.pe_stem)
        self.out = nn.Linear(config.pe_stem, config.embed_dim * math.prod(self.cells))
        coords = torch.tensor([grid.coords_of(p) for p in range(grid.patches)], dtype=torch.float32)
        self.register_buffer("yx", (coords + 0.5) / torch.tensor([grid.rows, grid.cols]), persistent=False)
        self.register_buffer("frequencies", math.pi * base ** torch.arange(count).double(), persistent=False)

    def encode(self, where: Tensor) -> Tensor:
        """where (M, 3) in [0, 1], order t y x -> (M, 6 L): all sines, then all cosines, of each coordinate."""
        # gamma(v) = (sin(base^i pi v), cos(base^i pi v)), i = 0 ... L - 1. The powers are in fp64 and rounded once.
        angles = where.unsqueeze(-1) * self.frequencies.to(where.dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)

    def forward(self, times: Tensor, frames: Tensor | None = None) -> Tensor:
        """times (B,) -> codes (B, P, C, h0, w0); `frames` are not read."""
        return self.at(times, self.yx)

    def at(self, times: Tensor, yx: Tensor) -> Tensor:
        """Codes (B, K, C, h0, w0) of patches centred at yx (K, 2), in [0, 1] of the frame, order y x."""
        t = (times.float() + 0.5) / self.span
        where = torch.cat([t[:, None, None].expand(-1, len(yx), 1), yx.expand(len(t), -1, -1)], dim=-1)
        with torch.autocast(where.device.type, enabled=False):
            codes = self.out(F.gelu(self.hidden(self.encode(where.flatten(0, 1)))))
        return codes.reshape(len(t), len(yx), self.channels, *self.cells)


EMBEDDINGS: dict[str, type[Embedding]] = {
    "grid": GridEmbedding,
    "encoder": EncoderEmbedding,
    "pe": PositionalEmbedding,
}
