"""The codecs that a neural representation is held against: encode, decode, measure.

Nothing is held back from a rival: it is tuned for the PSNR that is compared, needs no key frame but the first and those
that it wants itself, and gets the best conversion to 8 bits of 4:2:0 and back that swscale has. Its bytes are those of
its bare stream, parameter sets included, less the text by which x264 and x265 sign their work.

Legend: N frames, H W pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.codec.comparison.points import RatePoint, quality
from hnerv.data.video.colour import to_rgb, to_yuv420
from hnerv.errors import UserError
from hnerv.timeline import exact_rate

if TYPE_CHECKING:
    from av.packet import Packet

FRAMES_AT_ONCE = 4
_LEAST_GOP = 250  # the default of x264 and x265, from which their other defaults follow
_X26_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)


class Encoder(NamedTuple):
    """How one rival is set up. `ladder` holds values of its constant rate factor (CRF), about 45 dB to 25 dB."""

    encoder: str
    decoder: str
    preset: str
    """Where none is asked for."""
    presets: tuple[str, ...]
    options: dict[str, str]
    """Those of FFmpeg's wrapper; {crf} stands for the value."""
    ladder: tuple[int, ...]
    signature: str = ""
    """Bitstream filter that takes the encoder's text about itself out of the stream."""


RIVALS = {
    "x264": Encoder(
        encoder="libx264",
        decoder="h264",
        preset="medium",
        presets=_X26_PRESETS,
        options={"tune": "psnr", "crf": "{crf}"},
        ladder=(7, 12, 17, 22, 27, 32, 37, 42, 47),
        signature="filter_units=remove_types=6",
    ),
    "x265": Encoder(
        encoder="libx265",
        decoder="hevc",
        preset="medium",
        presets=_X26_PRESETS,
        options={
            "tune": "psnr",
            "crf": "{crf}",
            "x265-params": "log-level=none:info=0:pools=none:frame-threads=1",
        },
        ladder=(7, 12, 17, 22, 27, 32, 37, 42, 47),
    ),
    "svt-av1": Encoder(
        encoder="libsvtav1",
        decoder="libdav1d",
        preset="6",
        presets=tuple(map(str, range(14))),
        # not by the wrapper's own option, which ends at 63
        options={"svtav1-params": "tune=1:lp=1:crf={crf}"},
        ladder=(8, 18, 28, 38, 48, 56, 62, 66, 70),
    ),
}
"""Name on the command line -> how it is set up."""


class Rival(NamedTuple):
    """A row of `RIVALS` and a preset of its."""

    name: str
    preset: str

    @property
    def encoder(self) -> Encoder:
        return RIVALS[self.name]

    @property
    def label(self) -> str:
        return f"{self.name} {self.preset}"


def parse_rivals(text: str) -> list[Rival]:
    """'x264,svt-av1:4' -> rivals, each NAME or NAME:PRESET. Raises UserError naming what there is.

    >>> parse_rivals("x264:slow")
    [Rival(name='x264', preset='slow')]
    """
    found = []
    for word in text.split(","):
        name, _, preset = word.strip().partition(":")
        if name not in RIVALS:
            raise UserError(
                f"--against {word!r} is not a known codec: pass NAME or NAME:PRESET, NAME one of {', '.join(RIVALS)}"
            )
        encoder = RIVALS[name]
        if preset and preset not in encoder.presets:
            raise UserError(
                f"--against {word!r} has an unknown preset of {name}: choose one of {', '.join(encoder.presets)}"
            )
        found.append(Rival(name, preset or encoder.preset))
    if len(set(found)) < len(found):
        raise UserError(f"--against {text!r} lists the same codec and preset twice: list each once")
    return found


def check_rivals(rivals: list[Rival], size: tuple[int, int]) -> None:
    """Raises UserError where this PyAV lacks an encoder, or frames of `size` (H, W) cannot be 4:2:0."""
    from av.codec import codecs_available

    missing = [rival.name for rival in rivals if rival.encoder.encoder not in codecs_available]
    if missing:
        raise UserError(f"the installed PyAV has no encoder for {', '.join(missing)}: remove it from --against")
    if size[0] % 2 or size[1] % 2:
        raise UserError(
            f"the codecs in --against use 4:2:0 chroma, which needs even frame sizes, not {size[0]}x{size[1]}: "
            "choose an even --crop"
        )


def encode_rival(rival: Rival, frames: Tensor, fps: float, crf: int) -> RatePoint:
    """frames (N, 3, H, W) uint8 on the CPU -> what one rival makes of them at one CRF, one thread throughout.

    The seconds hold the conversion from and to RGB. Raises UserError as `check_rivals` does.
    """
    check_rivals([rival], (frames.shape[2], frames.shape[3]))
    start = time.perf_counter()
    packets = _encode(rival, frames, fps, crf)
    encode_seconds = time.perf_counter() - start
    size = sum(packet.size for packet in packets)
    clock = _Clock()
    measured = quality(_pairs(clock.timed(_decode(rival, packets)), frames))
    return RatePoint(rival.label, f"crf {crf}", size, *measured, encode_seconds, clock.seconds)


def conversion_psnr(frames: Tensor) -> float:
    """frames (N, 3, H, W) uint8 -> PSNR in dB, mean of frames, that RGB -> 4:2:0 -> RGB alone leaves."""
    return quality(_pairs((to_rgb(to_yuv420(_pixels(frame))) for frame in frames), frames)).psnr_frame


class _Clock:
    """Adds up the time spent inside an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, inner: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The items of `inner`, one by one, on the clock."""
        while True:
            start = time.perf_counter()
            item = next(inner, None)
            self.seconds += time.perf_counter() - start
            if item is None:
                return
            yield item


def _encode(rival: Rival, frames: Tensor, fps: float, crf: int) -> list[Packet]:
    import av
    from av.bitstream import BitStreamFilterContext

    os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 prints its settings to stderr and has no option against it
    setup, rate = rival.encoder, exact_rate(fps)
    context = av.CodecContext.create(setup.encoder, "w")
    context.height, context.width = frames.shape[2:]
    context.pix_fmt, context.framerate, context.time_base = "yuv420p", rate, 1 / rate
    context.gop_size, context.thread_count = max(_LEAST_GOP, len(frames)), 1
    options = {key: value.format(crf=crf) for key, value in setup.options.items()}
    context.options = {**options, "preset": rival.preset}
    packets = []
    for position, frame in enumerate(frames):
        packets += context.encode(_timed_frame(frame, position, rate))
    packets += context.encode(None)
    if not setup.signature:
        return packets
    remover = BitStreamFilterContext(setup.signature, av.Codec(setup.decoder, "r"))
    return [bare for packet in packets for bare in remover.filter(packet)]


def _timed_frame(frame: Tensor, position: int, rate: Fraction):
    result = to_yuv420(_pixels(frame))
    result.pts, result.time_base = position, 1 / rate
    return result


def _decode(rival: Rival, packets: list[Packet]) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 in the order of display."""
    import av

    context = av.CodecContext.create(rival.encoder.decoder, "r")
    context.thread_count = 1
    for packet in [*packets, None]:
        for frame in context.decode(packet):
            yield to_rgb(frame)


def _pixels(frame: Tensor) -> np.ndarray:
    """(3, H, W) uint8 -> (H, W, 3)."""
    return frame.permute(1, 2, 0).contiguous().numpy()


def _pairs(decoded: Iterator[np.ndarray], frames: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Decoded frames (H, W, 3) beside their sources, as batches in [0, 1]."""
    for source in frames.split(FRAMES_AT_ONCE):
        batch = np.stack([next(decoded) for _ in source])
        yield torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255, source.float() / 255
    assert next(decoded, None) is None, "a decoder returned more frames than were encoded"
