"""Stages of the decoder `convnext`: parameter-free upsampling, then ConvNeXt blocks on the larger map.

B maps, C channels, h w cells before and H W cells after the upsampling by s; E hidden channels of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hnerv.geometry import Reach

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sin": torch.sin, "gelu": F.gelu}


class ConvNeXtBlock(nn.Module):
    """x + shrink(act(grow(norm(depthwise(x))))): ConvNeXt (Liu et al. 2022) without biases and affine norm, as HiNeRV.

    k^2 C parameters look at neighbours, 2 C E mix channels. Residual blocks of dense 3x3 convolutions took half the
    time per epoch on a CPU, but their PSNR was 1 to 1.5 dB lower at the same number of parameters.
    """

    def __init__(self, channels: int, kernel: int, hidden: int, act: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.grow = nn.Linear(channels, hidden, bias=False)
        self.shrink = nn.Linear(hidden, channels, bias=False)
        self.act = ACTIVATIONS[act]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        # In channels-last memory the permutation is free, and each linear layer is one product (B H W, C) x (C, E).
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = F.layer_norm(y, y.shape[-1:])
        return x + self.shrink(self.act(self.grow(y))).permute(0, 3, 1, 2)


class BilinearUpsampling(torch.autograd.Function):
    """(B, C, h, w), s -> (B, C, s h, s w), bilinear (align_corners=False), with a backward pass that is a convolution.

    On CUDA, torch's own backward pass adds up in any order, in bf16 where the map is, or, under
    torch.use_deterministic_algorithms, sorts the indices of all pixels.
    """

    @staticmethod
    def forward(ctx, x: Tensor, stride: int) -> Tensor:
        """See the class."""
        ctx.stride = stride
        return torch.ops.aten.upsample_bilinear2d(x, [stride * x.shape[2], stride * x.shape[3]], False)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient of the result (B, C, s h, s w) -> that of x (B, C, h, w); none for the stride."""
        # Along an axis, a pixel at a distance of d pixels from the centre of a cell, d < s, takes 1 - d / s of that
        # cell. The gradient of the cell is the sum over those pixels with these weights: a convolution of stride s, its
        # taps reaching s // 2 pixels into the cells next to it. The upsampling repeats the border, as if there were a
        # cell more on each side: its gradient is computed like the others, and belongs to the cell that it repeats.
        s, channels = ctx.stride, gradient.shape[1]
        reach = s // 2
        pixels = torch.arange(s + 2 * reach, dtype=torch.float32, device=gradient.device)
        taps = 1 - (pixels - pixels[-1] / 2).abs() / s
        kernel = torch.outer(taps, taps).to(gradient.dtype).expand(channels, 1, -1, -1)
        x = F.conv2d(gradient, kernel, stride=s, padding=s + reach, groups=channels)  # (B, C, h + 2, w + 2)
        x[:, :, 1] += x[:, :, 0]
        x[:, :, -2] += x[:, :, -1]
        x[..., 1] += x[..., 0]
        x[..., -2] += x[..., -1]
        return x[:, :, 1:-1, 1:-1], None


class ConvNeXtStage(nn.Module):
    """blocks(upsample_s(conv_1(x))), of `depth` blocks with `hidden` channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, depth: int, hidden: int, act: str) -> None:
        super().__init__()
        # Interpolated from the cells around it, and repeated at the border of what the stage is given, a pixel within
        # s / 2 of an inner edge of a window is wrong. Each block then reads k // 2 pixels further, and spoils as many.
        # The halo, in cells, has to cover them: s halo >= s / 2 + depth (k // 2), without s / 2 where s is 1.
        spoiled = depth * (kernel // 2) + (stride // 2 if stride > 1 else 0)
        self.reach = Reach(-(-spoiled // stride), stride)
        self.mix = nn.Conv2d(inputs, outputs, 1)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(outputs, kernel, hidden, act) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', s h, s w)."""
        # The weights of an interpolation sum to 1, so that it commutes with a 1x1 convolution and its bias: on the
        # smaller map the same result takes s^2 times less arithmetic.
        x = self.mix(x)
        if self.reach.stride > 1:
            x = BilinearUpsampling.apply(x, self.reach.stride)
        return self.blocks(x)
