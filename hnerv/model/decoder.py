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


class UpStage(nn.Module):
    """act(shuffle(conv_k(x)) + up(conv_1(x))): HNeRV's block (conv, pixel shuffle), with a bilinear skip or without."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, act: str, skip: bool) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs * stride**2, kernel, padding=kernel // 2)
        self.skip = nn.Conv2d(inputs, outputs, 1) if skip else None
        self.act = ACTIVATIONS[act]

    @property
    def reach(self) -> Reach:
        return Reach(max(self.conv.kernel_size[0] // 2, int(self.skip is not None)), self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', s h, s w)."""
        y = F.pixel_shuffle(self.conv(x), self.stride)
        if self.skip is not None:
            y = y + F.interpolate(self.skip(x), scale_factor=self.stride, mode="bilinear", align_corners=False)
        return self.act(y)


class RgbHead(nn.Module):
    """3x3 convolution to RGB, with a pixel shuffle where it upsamples; in fp32, whatever the features are."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.reach = Reach(1, stride)
        self.conv = nn.Conv2d(channels, 3 * stride**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, s h, s w) in [0, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            return 0.5 + 0.5 * torch.tanh(F.pixel_shuffle(self.conv(x.float()), self.reach.stride))


def stage_widths(width: int, config: ModelConfig) -> list[int]:
    """Channels after the stem and after each stage: C_{i+1} = max(round(C_i / reduce), lower_width) (HNeRV)."""
    widths = [width]
    for _ in config.dec_strides:
        widths.append(max(round(widths[-1] / config.reduce), config.lower_width))
    return widths


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
        self.stem = nn.Conv2d(embed_dim, width, 1)
        self.act = ACTIVATIONS[config.act]
        self.stages = nn.ModuleList(
            UpStage(*self.widths[i : i + 2], min(first + 2 * i, last), stride, config.act, config.skip)
            for i, stride in enumerate(config.dec_strides)
        )
        self.site = config.clip_site
        self.site_scale = math.prod(config.strides[self.site :])

    def forward(self, codes: Tensor) -> Features:
        """codes (B, C, h0, w0) of whole canvases -> features of whole canvases."""
        x = site = self.act(self.stem(codes))
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            site = x if number == self.site else site
        return Features(x, site)

    def window(self, codes: Tensor, windows: list[Window]) -> Features:
        """codes (B, C, h0, w0) of whole canvases -> features over the `windows` that `halo_windows` has planned."""
        x = site = self.act(self.stem(windows[0].cut(codes)))
        for number, stage in enumerate(self.stages, start=1):
            produced = windows[number - 1].scaled(stage.stride)
            x = windows[number].within(produced).cut(stage(x))
            site = x if number == self.site else site
        return Features(x, site)
