"""The decoder: a stem and stages of convolution, pixel shuffle and activation, on whole maps or on windows.

B maps, C channels, h0 w0 cells of the embedding, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.config import ModelConfig, parse_kernels
from hnerv.geometry import Reach, Window

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sin": torch.sin, "gelu": F.gelu}


def upsampling_taps(kernel: int, stride: int) -> Tensor:
    """Taps (s^2, k, k) of the convolution that, before a pixel shuffle of `stride`, upsamples one channel.

    Bilinear (align_corners=False) for kernels of 3 and more, but for the border, where a convolution pads with zeros;
    nearest for kernels of 1, which see no neighbour.
    """
    axis = torch.zeros(stride, kernel)
    for phase in range(stride):
        place = (phase + 0.5) / stride - 0.5 if kernel > 1 else 0.0
        low, share = math.floor(place), place - math.floor(place)
        axis[phase, kernel // 2 + low] = 1 - share
        if share:
            axis[phase, kernel // 2 + low + 1] = share
    return (axis[:, None, :, None] * axis[None, :, None, :]).flatten(0, 1)


class ShuffledConv2d(nn.Conv2d):
    """Convolution and pixel shuffle by s. Output channel (a s + b) C' + c is channel c of the pixel at offset (a, b).

    F.pixel_shuffle orders its channels as (C', s, s). With (s, s, C') and channels-last memory the shuffle moves runs
    of s C' numbers instead of single ones, which is several times faster, forward and backward.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__(inputs, outputs * stride**2, kernel, padding=kernel // 2)
        self.upsampling = stride

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        """(B, C, h, w) -> (B, C', s h, s w), `gain` times the convolution."""
        s = self.upsampling
        weight, bias = (self.weight, self.bias) if gain == 1 else (gain * self.weight, gain * self.bias)
        y = F.conv2d(x, weight, bias, padding=self.padding).permute(0, 2, 3, 1)
        y = y.unflatten(3, (s, s, -1)).transpose(2, 3)  # (B, h, s, w, s, C')
        return y.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class UpStage(nn.Module):
    """act(shuffle(conv_k(x))): HNeRV's block.

    Its weights begin as the sum of torch's own initialisation and of a 1x1 convolution whose output is upsampled
    bilinearly: neighbouring pixels start out alike, as with a skip connection, at no cost.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, act: str, bilinear: bool) -> None:
        super().__init__()
        self.reach = Reach(kernel // 2, stride)
        self.conv = ShuffledConv2d(inputs, outputs, kernel, stride)
        self.act = ACTIVATIONS[act]
        if bilinear and not self.conv.weight.is_meta:  # see `_initial_knots`
            mix = nn.Conv2d(inputs, outputs, 1).weight.detach()
            with torch.no_grad():
                self.conv.weight += (upsampling_taps(kernel, stride)[:, None, None] * mix).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', s h, s w)."""
        return self.act(self.conv(x))


class RgbHead(nn.Module):
    """3x3 convolution to RGB, with a pixel shuffle where it upsamples.

    Under autocast its products are in bf16, as those of the decoder; what comes out is fp32.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.reach = Reach(1, stride)
        self.conv = ShuffledConv2d(channels, 3, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, s h, s w) in [0, 1], fp32."""
        return torch.sigmoid(self.conv(x, gain=2).float())  # = (1 + tanh(conv(x))) / 2


def stage_widths(width: int, config: ModelConfig) -> list[int]:
    """Channels after the stem and after each stage: C_{i+1} = max(round(C_i / reduce), lower_width) (HNeRV).

    Each is then rounded to a multiple of `width_multiple`, the last first. What rounding adds to a stage is taken from
    the next, so that not all stages are rounded up, or down, at once: sizes of models lie closer together.
    """
    widths = [width]
    for _ in config.dec_strides:
        widths.append(max(round(widths[-1] / config.reduce), config.lower_width))
    multiple, rounded, owed = config.width_multiple, [], 0
    for i, channels in reversed([*enumerate(widths)]):
        least = -(-config.lower_width // multiple) if i else 1
        rounded.append(max(round((channels + owed) / multiple), least) * multiple)
        owed += channels - rounded[-1]
    return rounded[::-1]


class Features(NamedTuple):
    """Maps after the last stage and after the stage that the CLIP head reads."""

    last: Tensor
    site: Tensor


class Decoder(nn.Module):
    """Stem (1x1) and stages; `site` is the stage whose output the CLIP head reads, `site_scale` its pixels a cell."""

    def __init__(self, embed_dim: int, width: int, config: ModelConfig) -> None:
        super().__init__()
        first, last = parse_kernels(config.ks)
        self.widths = stage_widths(width, config)
        self.stem = nn.Conv2d(embed_dim, self.widths[0], 1)
        self.act = ACTIVATIONS[config.act]
        self.stages = nn.ModuleList(
            UpStage(*self.widths[i : i + 2], min(first + 2 * i, last), stride, config.act, config.bilinear_init)
            for i, stride in enumerate(config.dec_strides)
        )
        self.site = config.clip_site
        self.site_scale = math.prod(config.strides[self.site :])

    def forward(self, codes: Tensor, drawn: int | None = None) -> Features:
        """codes (B, C, h0, w0) of whole canvases -> features of whole canvases: `last` of the first `drawn` alone."""
        site = self.to_site(codes)
        x = site if drawn is None else site[:drawn]
        for stage in self.stages[self.site :]:
            x = stage(x)
        return Features(x, site)

    def to_site(self, codes: Tensor) -> Tensor:
        """codes (B, C, h0, w0) of whole canvases -> `forward(codes).site`, without the stages behind it."""
        x = self.act(self.stem(codes))
        for stage in self.stages[: self.site]:
            x = stage(x)
        return x

    def drop_after_site(self) -> None:
        """What `to_site` does not run is gone afterwards."""
        del self.stages[self.site :]

    def window(self, codes: Tensor, windows: list[Window]) -> Features:
        """codes (B, C, h0, w0) of whole canvases -> features over the `windows` that `halo_windows` has planned."""
        x = site = self.act(self.stem(windows[0].cut(codes)))
        for number, stage in enumerate(self.stages, start=1):
            produced = windows[number - 1].scaled(stage.reach.stride)
            x = windows[number].within(produced).cut(stage(x))
            site = x if number == self.site else site
        return Features(x, site)
