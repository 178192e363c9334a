"""HNeRV's content encoder: a ConvNeXt that turns a frame into its embedding. Discarded after training."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, LayerNorm2d


class ContentEncoder(nn.Sequential):
    """One strided convolution, LayerNorm and ConvNeXt block per stage (HNeRV, section 3.1)."""

    def __init__(self, strides: tuple[int, ...], width: int, embed_dim: int) -> None:
        norm = partial(LayerNorm2d, eps=1e-6)
        layers: list[nn.Module] = []
        channels = 3
        for number, stride in enumerate(strides, start=1):
            outputs = embed_dim if number == len(strides) else width
            layers += [nn.Conv2d(channels, outputs, stride, stride), norm(outputs), CNBlock(outputs, 1.0, 0.0)]
            channels = outputs
        super().__init__(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, embed_dim, H / prod(strides), W / prod(strides))."""
        return super().forward(frames - 0.5)
