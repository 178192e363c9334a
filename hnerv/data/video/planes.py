"""Planes of 8-bit YUV 4:2:0: those of a source as they were decoded, and those of RGB frames.

Legend: N frames of a video, B batch, H W pixels of a frame, both even.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hnerv.data.video.colour import BT601, FULL, UNTAGGED, Display
from hnerv.data.video.probe import YUV420, Probe
from hnerv.data.video.readers import read_converted
from hnerv.data.video.sources import Source
from hnerv.errors import UserError
from hnerv.geometry import CropPlan

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    BT601: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Weights of red and blue in luma, by the code of the matrix in ITU-T H.273, table 4."""


class Planes(NamedTuple):
    """Levels 0 ... 255 as uint8 on the CPU: y (H, W), u and v (H / 2, W / 2)."""

    y: Tensor
    u: Tensor
    v: Tensor

    def to_bytes(self) -> bytes:
        """Raw yuv420p."""
        return b"".join(plane.contiguous().numpy().tobytes() for plane in self)


class SourcePlanes(NamedTuple):
    """The planes of the N frames of a video. They are decoded at each reading and not kept in memory.

    `why` is the reason why there are none, a clause; '' if there are. `positions` are those of the frames in the file.
    """

    why: str = ""
    probe: Probe | None = None
    plan: CropPlan | None = None
    positions: range = range(0)

    @property
    def display(self) -> Display:
        """The tags that determine matrix and range."""
        return UNTAGGED if self.probe is None else self.probe.display

    def read(self, frames: Sequence[int]) -> Iterator[Planes]:
        """Cropped planes of these frames in [0, N), ascending. Raises UserError if the source has changed."""
        probe, path = self.probe, self.probe.spec.path
        source = Source(path.stem, probe, functools.partial(read_converted, probe, self._cropped), bool(probe.keys))
        wanted = iter(self.positions[frame] for frame in frames)
        following = next(wanted, None)
        if following is None:
            return
        for position, _, planes in source.frames_from(following):
            if position == following:
                yield planes
                if (following := next(wanted, None)) is None:
                    return
        raise UserError(f"{path} has changed, it ends before frame {following}: restore the video")

    def _cropped(self, frame: VideoFrame) -> Planes:
        if frame.format.name not in YUV420:
            raise UserError(
                f"{self.probe.spec.path} changes to {frame.format.name} within the video: convert it to one "
                "pixel format"
            )
        top, left, height, width = self.plan[:4]
        parts = zip(planes_of(frame), (1, 2, 2), strict=True)
        return Planes(*(p[top // n : (top + height) // n, left // n : (left + width) // n] for p, n in parts))


NO_PLANES = SourcePlanes("the source is not YUV video")


def source_planes(source: Source, plan: CropPlan, positions: range) -> SourcePlanes:
    """The planes of the frames at `positions` of a source, or why they cannot be compared with RGB frames."""
    why = source.probe.no_planes
    if not why and (plan.height, plan.width) != (plan.out_height, plan.out_width):
        why = "the frames are resized"
    elif not why and any(number % 2 for number in plan):
        why = "the crop begins or ends at an odd row or column, between chroma samples"
    elif not why and positions.step < 0:
        why = "the frames are in reverse order"
    return SourcePlanes(why) if why else SourcePlanes("", source.probe, plan, positions)


def planes_of(frame: VideoFrame) -> Planes:
    """Of a yuv420p or yuvj420p frame."""
    arrays = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]
    return Planes(*(torch.from_numpy(array.copy()) for array in arrays))


def frame_of(planes: Planes) -> VideoFrame:
    """A yuv420p frame without tags and time stamp. Inverse of `planes_of`."""
    import av

    height, width = planes.y.shape
    levels = np.frombuffer(planes.to_bytes(), np.uint8)
    return av.VideoFrame.from_ndarray(levels.reshape(height * 3 // 2, width), format="yuv420p")


def to_planes(rgb: Tensor, display: Display = UNTAGGED) -> list[Planes]:
    """RGB (B, 3, H, W) in [0, 1] -> planes of each frame, with matrix and range of `display`; untagged as BT.601.

    Inverse of the reader's conversion up to rounding and clipping.
    """
    # The reader repeats each 8-bit chroma sample over its 2 x 2 pixels, wherever the source sites it. So the mean of
    # the 2 x 2 pixels recovers the sample. A filter for chroma sited left would shift chroma by a quarter of a pixel
    # against the source, which costs 1 to 3 dB of the weighted PSNR that RGB source frames reach.
    red, green, blue = rgb.float().unbind(-3)
    kr, kb = LUMA_WEIGHTS.get(display.matrix, LUMA_WEIGHTS[BT601])
    y = kr * red + (1 - kr - kb) * green + kb * blue
    differences = torch.stack([(blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)], dim=-3)  # in [-0.5, 0.5]
    u, v = F.avg_pool2d(differences, 2).unbind(-3)
    black, luma, chroma = (0, 255, 255) if display.range == FULL else (16, 219, 224)
    levels = black + luma * y, 128 + chroma * u, 128 + chroma * v
    columns = (level.round().clamp(0, 255).to("cpu", torch.uint8) for level in levels)
    return [Planes(*frame) for frame in zip(*columns, strict=True)]


def plane_pairs(
    decoded: Tensor, source: Tensor, planes: Iterator[Planes] | None, display: Display = UNTAGGED
) -> Iterator[tuple[Planes, Planes]]:
    """(decoded, source) planes of the frames of two RGB batches (B, 3, H, W) in [0, 1].

    The next B of `planes` are those of the source; without them, the source is converted like the decoded frames.
    """
    reference = to_planes(source, display) if planes is None else [next(planes) for _ in source]
    return zip(to_planes(decoded, display), reference, strict=True)


def reader_rgb(frame: VideoFrame, display: Display) -> np.ndarray:
    """A yuv420p frame with the tags of `display` -> (H, W, 3) uint8, as the reader converts it, on one thread."""
    from av.video.reformatter import Interpolation

    frame.colorspace, frame.color_range = display.matrix, display.range
    return frame.to_ndarray(format="rgb24", interpolation=Interpolation.BILINEAR, threads=1)
