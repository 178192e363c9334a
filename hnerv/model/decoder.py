"""The decoder: a stem and stages that upsample, on full maps or on windows of them. A new one is a row of DECODERS.

`hnerv` is HNeRV's: a convolution, a pixel shuffle, an activation per stage. Its filters differ for every pixel of a
cell: many parameters, little arithmetic. `convnext` (`hnerv.model.convnext`) upsamples without parameters and then
runs ConvNeXt blocks on the larger map: fewer parameters, each used at more pixels.

B maps, C channels, h0 w0 cells of the embedding, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.config import ModelConfig
from hnerv.geometry import Reach, Window
from hnerv.model.convnext import ACTIVATIONS, ConvNeXtStage


def upsampling_taps(kernel: int, stride: int) -> Tensor:
    """Taps (s^2, k, k) of the convolution that, before a pixel shuffle of `stride`, upsamples one channel.

    Bilinear (align_corners=False) for kernels of 3 and more, except at the border, where a convolution pads with zeros;
    nearest for kernels of 1, which see no neighbour.
    """
    # Bilinear interpolation is separable, so the taps are an outer product of two axes. Along an axis the s output
    # pixels of a cell have their centres at (phase + 1/2) / s of it; the centre of the cell lies at 1/2. An output
    # pixel is thus at x = (phase + 1/2) / s - 1/2, in (-1/2, 1/2) cells from the centre, between the cells floor(x) and
    # floor(x) + 1, which get the weights 1 - f and f with f = x - floor(x). Both are within one cell: 3 taps are
    # enough.
    axis = torch.zeros(stride, kernel)
    for phase in range(stride):
        x = (phase + 0.5) / stride - 0.5 if kernel > 1 else 0.0
        low, f = math.floor(x), x - math.floor(x)
        axis[phase, kernel // 2 + low] = 1 - f
        if f:
            axis[phase, kernel // 2 + low + 1] = f
    return (axis[:, None, :, None] * axis[None, :, None, :]).flatten(0, 1)


class ShuffledConv2d(nn.Conv2d):
    """Convolution, then pixel shuffle by s: output channel (a s + b) C' + c is channel c of the pixel at offset (a, b).

    F.pixel_shuffle takes the same channels in the order (C', s, s): a permutation of the weights.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(inputs, outputs * stride**2, kernel, padding=kernel // 2)
        self.upsampling = stride

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        """(B, C, h, w) -> (B, C', s h, s w), `gain` times the convolution."""
        # Pixel (s i + a, s j + b) of the result is channel group (a, b) of the convolution at cell (i, j): every offset
        # in a cell has its own k x k filter and bias, and all of them read the same neighbourhood. It is the transposed
        # convolution of stride s with a kernel of s k x s k taps that interleaves those filters, written as a gather
        # instead of a scatter. In channels-last memory a row of a map is (w, s, s, C'). Moving the a of (a, b) in front
        # of w gives s rows of (w, s, C'): runs of s C' numbers stay together, where the order (C', s, s) would move
        # single numbers, which is several times slower, forward and backward.
        s = self.upsampling
        weight, bias = (self.weight, self.bias) if gain == 1 else (gain * self.weight, gain * self.bias)
        y = F.conv2d(x, weight, bias, padding=self.padding).permute(0, 2, 3, 1)
        y = y.unflatten(3, (s, s, -1)).transpose(2, 3)  # (B, h, s, w, s, C')
        return y.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class UpStage(nn.Module):
    """act(shuffle(conv_k(x))): HNeRV's block."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, act: str, bilinear: bool) -> None:
        super().__init__()
        self.reach = Reach(kernel // 2, stride)
        self.conv = ShuffledConv2d(inputs, outputs, kernel, stride)
        self.act = ACTIVATIONS[act]
        if bilinear and not self.conv.weight.is_meta:  # the meta device has no numbers to initialise
            # W[(a, b, c'), c] += taps[a, b] * mix[c', c]: a 1x1 convolution followed by bilinear upsampling, which is
            # linear and so merges into the same kernel. Neighbouring pixels start alike instead of independent, as with
            # a skip connection, but without its operators and parameters.
            mix = nn.Conv2d(inputs, outputs, 1).weight.detach()
            with torch.no_grad():
                self.conv.weight += (upsampling_taps(kernel, stride)[:, None, None] * mix).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', s h, s w)."""
        return self.act(self.conv(x))


class RgbHead(nn.Module):
    """3x3 convolution to RGB, with a pixel shuffle where it upsamples.

    Under autocast its products are in bf16, as those of the decoder; the result is fp32.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.reach = Reach(1, stride)
        self.conv = ShuffledConv2d(channels, 3, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, s h, s w) in [0, 1], fp32."""
        # sigmoid(2 y) = (1 + tanh(y)) / 2, the range of HNeRV's head. The 2 goes into the weights: no pass over pixels.
        return torch.sigmoid(self.conv(x, gain=2).float())


def stage_widths(width: int, config: ModelConfig) -> list[int]:
    """Channels before the first stage and after each: C_{i+1} = max(round(C_i / reduce), lower_width) (HNeRV).

    Each is then rounded to a multiple of `width_multiple`. The first number is `width`, that of the stem; for
    `convnext`, which has no stem, it is that of the codes, and `width` is the second.
    """
    codes = [config.embed_dim] if config.decoder == "convnext" else []
    widths = [width]
    for _ in config.dec_strides[len(codes) :]:
        widths.append(max(round(widths[-1] / config.reduce), config.lower_width))
    # From the last to the first, the error of each rounding is carried into the next one (error diffusion). Rounded one
    # by one, all stages would jump at nearly the same width, and the sizes of models would lie far apart.
    multiple, rounded, owed = config.width_multiple, [], 0
    for i, channels in reversed([*enumerate(widths)]):
        least = -(-config.lower_width // multiple) if i else 1
        rounded.append(max(round((channels + owed) / multiple), least) * multiple)
        owed += channels - rounded[-1]
    return codes + rounded[::-1]


class Stem(nn.Conv2d):
    """act(conv_1(codes)), the first layer of HNeRV's decoder."""

    def __init__(self, inputs: int, outputs: int, act: str) -> None:
        super().__init__(inputs, outputs, 1)
        self.act = ACTIVATIONS[act]

    def forward(self, codes: Tensor) -> Tensor:
        """(B, C, h0, w0) -> (B, C', h0, w0)."""
        return self.act(super().forward(codes))


def hnerv_layers(widths: list[int], config: ModelConfig) -> tuple[nn.Module, Iterable[nn.Module]]:
    """HNeRV's stem, with a kernel of 1, and stages (Chen et al. 2023)."""
    stages = zip(widths, widths[1:], config.kernels, config.dec_strides, strict=False)
    stem = Stem(config.embed_dim, widths[0], config.act)
    return stem, (UpStage(*stage, config.act, config.bilinear_init) for stage in stages)


def convnext_layers(widths: list[int], config: ModelConfig) -> tuple[nn.Module, Iterable[nn.Module]]:
    """The stages of HiNeRV (Kwan et al. 2023) without temporal-local grids, which gain nothing for their parameters."""
    # A stage begins with a 1x1 convolution. A stem, which would be linear as well, would add nothing before it.
    multiple = config.width_multiple
    hidden = [max(round(config.expansion * width / multiple), 1) * multiple for width in widths[1:]]
    stages = zip(widths, widths[1:], config.kernels, config.dec_strides, config.depths, hidden, strict=False)
    return nn.Identity(), (ConvNeXtStage(*stage, config.act) for stage in stages)


DECODERS: dict[str, Callable[[list[int], ModelConfig], tuple[nn.Module, Iterable[nn.Module]]]] = {
    "hnerv": hnerv_layers,
    "convnext": convnext_layers,
}
"""Name -> function of `stage_widths` and the configuration -> stem, stages. The names are the choices of --decoder."""


class Features(NamedTuple):
    """Maps after the last stage and after the stage that the CLIP head reads."""

    last: Tensor
    site: Tensor


class Decoder(nn.Module):
    """Stem and stages. The CLIP head reads the output of stage `site`, of `site_scale` pixels a cell."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.widths = stage_widths(width, config)
        self.stem, stages = DECODERS[config.decoder](self.widths, config)
        self.stages = nn.ModuleList(stages)
        self.site = config.clip_site
        self.site_scale = math.prod(config.strides[self.site :])

    def forward(self, codes: Tensor, drawn: int | None = None) -> Features:
        """codes (B, C, h0, w0) of full canvases -> Features of them, `last` of only the first `drawn`."""
        site = self.to_site(codes)
        x = site if drawn is None else site[:drawn]
        for stage in self.stages[self.site :]:
            x = stage(x)
        return Features(x, site)

    def to_site(self, codes: Tensor) -> Tensor:
        """codes (B, C, h0, w0) of full canvases -> `forward(codes).site`, without the later stages."""
        x = self.stem(codes)
        for stage in self.stages[: self.site]:
            x = stage(x)
        return x

    def drop_after_site(self) -> None:
        """Drop the stages that `to_site` does not run."""
        del self.stages[self.site :]

    def window(self, codes: Tensor, windows: list[Window]) -> Features:
        """codes (B, C, h0, w0) of full canvases -> Features over the `windows` planned by `halo_windows`."""
        x = site = self.stem(windows[0].cut(codes))
        for number, stage in enumerate(self.stages, start=1):
            # The stage upsamples all of its window. At an inner edge the outermost pixels have seen padding instead of
            # neighbours: the next window leaves them out.
            produced = windows[number - 1].scaled(stage.reach.stride)
            x = windows[number].within(produced).cut(stage(x))
            site = x if number == self.site else site
        return Features(x, site)
