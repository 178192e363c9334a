"""Crops, the patch grid, windows of feature maps. The only module that cuts or stitches pixels.

Legend: N frames, B batch, P patches in a frame (row-major), C channels, H W frame, h w patch, in pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hnerv.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def parse_size(text: str, flag: str, form: str = "HEIGHTxWIDTH, as in 640x1280") -> tuple[int, int]:
    """'640x1280' -> (640, 1280), rows first. Raises UserError naming `flag` and the `form` for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text, flags=re.ASCII)
    if not match:
        raise UserError(f"{flag} {text!r} must be two integers {form}")
    return int(match[1]), int(match[2])


def parse_grid(text: str) -> tuple[int, int]:
    """--grid: '2x4' -> (2, 4), rows first. Raises UserError."""
    return parse_size(text, "--grid", "ROWSxCOLUMNS, as in 2x4")


class CropPlan(NamedTuple):
    """The region (top, left, height, width) of the source, in source pixels, and the size (H, W) it is resized to."""

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int


def plan_crop(source: tuple[int, int], crop: str, resize: str, multiple: tuple[int, int]) -> CropPlan:
    """Centre crop of a source (H, W), then an optional resize, to a size that `multiple` (rows, columns) divides.

    An empty `crop` means the largest region that fits: with a resize, of its aspect ratio; else of a size that
    `multiple` divides. Raises UserError when the source is too small or nothing divides.
    """
    height, width = source
    if resize:
        out = _check_multiple(parse_size(resize, "--resize"), multiple, "--resize")
        size = parse_size(crop, "--crop") if crop else _largest_of_aspect(source, out)
    elif crop:
        size = out = _check_multiple(parse_size(crop, "--crop"), multiple, "--crop")
    else:
        size = out = (height - height % multiple[0], width - width % multiple[1])
        if 0 in size:
            raise UserError(
                f"frames of {height}x{width} are smaller than {multiple[0]}x{multiple[1]}, the least that patch grid "
                "and strides allow: pass --resize, or reduce --dec-strides or --grid"
            )
    if size[0] > height or size[1] > width:
        raise UserError(
            f"--crop {size[0]}x{size[1]} does not fit into frames of {height}x{width}: pass a smaller one, "
            "or --crop '' for the largest that fits"
        )
    return CropPlan((height - size[0]) // 2, (width - size[1]) // 2, *size, *out)


def _check_multiple(size: tuple[int, int], multiple: tuple[int, int], flag: str) -> tuple[int, int]:
    if size[0] % multiple[0] or size[1] % multiple[1]:
        raise UserError(
            f"{flag} {size[0]}x{size[1]} is not a multiple of {multiple[0]}x{multiple[1]}, which patch grid and "
            f"strides require: change {flag}, --dec-strides or --grid"
        )
    return size


def _largest_of_aspect(source: tuple[int, int], aspect: tuple[int, int]) -> tuple[int, int]:
    divisor = math.gcd(*aspect)
    rows, cols = aspect[0] // divisor, aspect[1] // divisor
    steps = min(source[0] // rows, source[1] // cols)
    if steps:
        return steps * rows, steps * cols
    scale = min(source[0] / aspect[0], source[1] / aspect[1])
    return max(1, int(aspect[0] * scale)), max(1, int(aspect[1] * scale))


@dataclass(frozen=True)
class PatchGrid:
    """Frames of height x width pixels cut into rows x cols equal patches, numbered row by row."""

    height: int
    width: int
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.height % self.rows or self.width % self.cols:
            raise UserError(
                f"a grid of {self.rows}x{self.cols} does not divide frames of {self.height}x{self.width}: "
                "change --grid or --crop"
            )

    @property
    def patches(self) -> int:
        return self.rows * self.cols

    @property
    def patch_size(self) -> tuple[int, int]:
        """(h, w) of a patch, pixels."""
        return self.height // self.rows, self.width // self.cols

    def coords_of(self, patch: int) -> tuple[int, int]:
        """Patch number in [0, P) -> (row, column). Inverse of `index_of`."""
        return divmod(patch, self.cols)

    def index_of(self, row: int, col: int) -> int:
        """(row, column) -> patch number in [0, P). Inverse of `coords_of`."""
        return row * self.cols + col

    def origin_of(self, patch: int) -> tuple[int, int]:
        """Patch number -> (top, left) of the patch in its frame, pixels."""
        row, col = self.coords_of(patch)
        return row * self.patch_size[0], col * self.patch_size[1]

    def split(self, frames: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., P, C, h, w). Inverse of `merge`; works at any scale that the grid divides."""
        *lead, channels, height, width = frames.shape
        x = frames.reshape(*lead, channels, self.rows, height // self.rows, self.cols, width // self.cols)
        x = x.movedim((-4, -2), (-5, -4))  # (..., rows, cols, C, h, w)
        return x.reshape(*lead, self.patches, *x.shape[-3:])

    def means(self, frames: Tensor) -> Tensor:
        """(..., C, H, W) -> mean of each patch (..., P), without the copy that `split` makes."""
        x = frames.unflatten(-1, (self.cols, -1)).unflatten(-3, (self.rows, -1))  # (..., C, rows, h, cols, w)
        return x.mean((-5, -3, -1)).flatten(-2)

    def merge(self, patches: Tensor) -> Tensor:
        """(..., P, C, h, w) -> (..., C, H, W). Inverse of `split`."""
        *lead, _, channels, height, width = patches.shape
        x = patches.reshape(*lead, self.rows, self.cols, channels, height, width)
        x = x.movedim((-5, -4), (-4, -2))  # (..., C, rows, h, cols, w)
        return x.reshape(*lead, channels, self.rows * height, self.cols * width)


class Window(NamedTuple):
    """A region of a feature map: top, left, height, width, in cells of that map."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """(..., H, W) -> (..., height, width)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def within(self, outer: Window) -> Window:
        """The same region in the coordinates of a window that holds it."""
        return Window(self.top - outer.top, self.left - outer.left, self.height, self.width)

    def scaled(self, factor: int) -> Window:
        """The same region of a map upsampled by `factor`."""
        return Window(*(factor * side for side in self))


class Reach(NamedTuple):
    """Receptive field of a decoder stage: cells read on each side of an input cell, then the upsampling factor."""

    halo: int
    stride: int


def halo_windows(target: Window, canvas: tuple[int, int], stages: list[Reach]) -> list[Window]:
    """The input window of every stage, then `target` itself, the window of the output.

    `canvas` is the (H, W) of the embedding. Running each stage on its window, and cutting the next window out of the
    result, gives exactly the pixels of `target` in a decode of the full canvas.
    """
    # Planned backwards, from the output to the embedding. Output cells [p, p + n) of a stage of stride s come from its
    # input cells floor(p / s) ... ceil((p + n) / s) - 1, and a kernel of 2 h + 1 taps reads h more on each side:
    #     start = floor(p / s) - h,   stop = ceil((p + n) / s) + h,   both clipped to the canvas.
    # The halos of later stages shrink by s at each step back, so that their sum stays within a few cells. Where a
    # window is clipped, its edge is the border of the canvas, and the stage pads there with the zeros of a full decode.
    # Where it is not, the padding stands for real neighbours and spoils h outermost cells, which are those that are cut
    # off.
    scale = math.prod(stage.stride for stage in stages)
    windows = [target]
    for halo, stride in reversed(stages):
        scale //= stride
        top, height = _grown(windows[0].top, windows[0].height, halo, stride, canvas[0] * scale)
        left, width = _grown(windows[0].left, windows[0].width, halo, stride, canvas[1] * scale)
        windows.insert(0, Window(top, left, height, width))
    return windows


def _grown(start: int, size: int, halo: int, stride: int, limit: int) -> tuple[int, int]:
    """(start, size) along one axis of the input cells that the output cells start ... start + size - 1 depend on."""
    first = max(start // stride - halo, 0)
    last = min(-(-(start + size) // stride) + halo, limit)
    return first, last - first
