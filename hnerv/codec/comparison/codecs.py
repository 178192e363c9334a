"""Conventional video codecs through FFmpeg's libraries: encode, decode, measure.

Each codec is set up to its advantage: tuned for PSNR, the measure that is compared; no key frames but the first and
those that it chooses. It codes the planes of the source where these are 8-bit 4:2:0; otherwise RGB is
converted to 4:2:0 and back by the best conversion of swscale. Its bytes are those of the elementary stream, parameter
sets included, without the text in which x264 and x265 record their settings.

Legend: N frames, H W pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hnerv.codec.comparison.bd_rate import DecodedBatch, Quality, RatePoint, quality
from hnerv.data.video.colour import to_rgb, to_yuv420
from hnerv.data.video.planes import (
    NO_PLANES,
    Planes,
    SourcePlanes,
    frame_of,
    plane_pairs,
    planes_of,
    reader_rgb,
)
from hnerv.errors import UserError
from hnerv.timeline import exact_rate
from hnerv.vmaf import vmaf_meter

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

FRAMES_PER_BATCH = 4
_LEAST_GOP = 250  # the default of x264 and x265, from which their other defaults follow
_X26_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)


class CodecSetup(NamedTuple):
    """How a codec is set up. `ladder` has values of its constant rate factor (CRF), about 45 dB to 25 dB."""

    encoder: str
    decoder: str
    preset: str
    """The default preset."""
    presets: tuple[str, ...]
    options: dict[str, str]
    """Options of FFmpeg's wrapper; {crf} stands for the value."""
    ladder: tuple[int, ...]
    signature: str = ""
    """Bitstream filter that removes the encoder's text about itself from the stream."""


CODECS = {
    "x264": CodecSetup(
        encoder="libx264",
        decoder="h264",
        preset="medium",
        presets=_X26_PRESETS,
        options={"tune": "psnr", "crf": "{crf}"},
        ladder=(7, 12, 17, 22, 27, 32, 37, 42, 47),
        signature="filter_units=remove_types=6",
    ),
    "x265": CodecSetup(
        encoder="libx265",
        decoder="hevc",
        preset="medium",
        presets=_X26_PRESETS,
        options={"tune": "psnr", "crf": "{crf}", "x265-params": "log-level=none:info=0:pools=none:frame-threads=1"},
        ladder=(7, 12, 17, 22, 27, 32, 37, 42, 47),
    ),
    "svt-av1": CodecSetup(
        encoder="libsvtav1",
        decoder="libdav1d",
        preset="6",
        presets=tuple(map(str, range(14))),
        options={"svtav1-params": "tune=1:lp=1:crf={crf}"},  # the wrapper's own option ends at 63
        ladder=(8, 18, 28, 38, 48, 56, 62, 66, 70),
    ),
}
"""Name on the command line -> setup."""


class VideoCodec(NamedTuple):
    """A row of CODECS and one of its presets."""

    name: str
    preset: str

    @property
    def setup(self) -> CodecSetup:
        return CODECS[self.name]

    @property
    def label(self) -> str:
        return f"{self.name} {self.preset}"


def parse_codecs(text: str) -> list[VideoCodec]:
    """'x264,svt-av1:4' -> codecs, each NAME or NAME:PRESET. Raises UserError that lists the valid ones.

    >>> parse_codecs("x264:slow")
    [VideoCodec(name='x264', preset='slow')]
    """
    codecs = []
    for word in text.split(","):
        name, _, preset = word.strip().partition(":")
        if name not in CODECS:
            raise UserError(
                f"--against {word!r} is not a known codec: pass NAME or NAME:PRESET, NAME one of {', '.join(CODECS)}"
            )
        setup = CODECS[name]
        if preset and preset not in setup.presets:
            raise UserError(
                f"--against {word!r} has an unknown preset of {name}: choose one of {', '.join(setup.presets)}"
            )
        codecs.append(VideoCodec(name, preset or setup.preset))
    if len(set(codecs)) < len(codecs):
        raise UserError(f"--against {text!r} lists the same codec and preset twice: list each once")
    return codecs


def check_encoders(codecs: list[VideoCodec]) -> None:
    """Raises UserError where this PyAV lacks an encoder."""
    from av.codec import codecs_available

    missing = [codec.name for codec in codecs if codec.setup.encoder not in codecs_available]
    if missing:
        raise UserError(f"the installed PyAV has no encoder for {', '.join(missing)}: remove it from --against")


def check_codecs(codecs: list[VideoCodec], size: tuple[int, int]) -> None:
    """Raises UserError where this PyAV lacks an encoder, or frames of `size` (H, W) cannot be 4:2:0."""
    check_encoders(codecs)
    if size[0] % 2 or size[1] % 2:
        raise UserError(
            f"the codecs in --against use 4:2:0 chroma, which needs even frame sizes, not {size[0]}x{size[1]}: "
            "choose an even --crop"
        )


def measure_codec(
    codec: VideoCodec, frames: Tensor, fps: float, crf: int, planes: SourcePlanes = NO_PLANES, vmaf: bool = False
) -> RatePoint:
    """frames (N, 3, H, W) uint8 on the CPU -> rate and quality of one codec at one CRF, on one thread.

    It codes the `planes` of the source, if there are any, else conversions of the frames. The seconds include reading
    or conversion from RGB, and conversion to RGB. Raises UserError as `check_codecs` does.
    """
    size = frames.shape[2], frames.shape[3]
    check_codecs([codec], size)
    start = time.perf_counter()
    packets = _encode(codec, pictures(frames, planes), frames.shape, fps, crf)
    encode_seconds = time.perf_counter() - start
    stopwatch = Stopwatch()
    decoded = stopwatch.timed(_decoded_pixels(_decode(codec, packets), planes))
    with vmaf_meter(size) if vmaf else nullcontext() as meter:
        coded = map(planes_of, pictures(frames, planes)) if vmaf or not planes.why else None
        measured = quality(_batches(decoded, frames, coded), not planes.why, meter)
    total, seconds = sum(packet.size for packet in packets), (encode_seconds, stopwatch.seconds)
    return RatePoint(codec.label, f"crf {crf}", total, *measured[:2], *seconds, *measured[2:])


def pictures(frames: Tensor, planes: SourcePlanes) -> Iterator[VideoFrame]:
    """The yuv420p frames that codecs encode: planes of the source, else conversions of frames (N, 3, H, W) uint8."""
    if planes.why:
        return (to_yuv420(_pixels(frame)) for frame in frames)
    return map(frame_of, planes.read(range(len(frames))))


def conversion_quality(frames: Tensor, planes: SourcePlanes) -> Quality:
    """frames (N, 3, H, W) uint8 -> Quality of a conversion without any coding.

    With `planes`, that of perfect RGB: its `psnr_yuv`, of planes -> RGB -> planes, is the bound of a model of RGB.
    Without, that of RGB -> 4:2:0 -> RGB, the bound of the codecs.
    """
    if planes.why:
        converted = _decoded_pixels((to_yuv420(_pixels(frame)) for frame in frames), planes)
        return quality(_batches(converted, frames, None))
    source, batches = planes.read(range(len(frames))), (frame.float() / 255 for frame in frames.split(FRAMES_PER_BATCH))
    pairs = (DecodedBatch(rgb, rgb, [*plane_pairs(rgb, rgb, source, planes.display)]) for rgb in batches)
    return quality(pairs, yuv=True)


class Stopwatch:
    """Adds up the time spent inside an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, inner: Iterator) -> Iterator:
        """The items of `inner`, one by one."""
        while True:
            start = time.perf_counter()
            item = next(inner, None)
            self.seconds += time.perf_counter() - start
            if item is None:
                return
            yield item


def _encode(
    codec: VideoCodec, frames: Iterator[VideoFrame], shape: Sequence[int], fps: float, crf: int
) -> list[Packet]:
    """`shape` (N, 3, H, W)."""
    import av
    from av.bitstream import BitStreamFilterContext

    os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 prints its settings to stderr and has no option against it
    setup, rate = codec.setup, exact_rate(fps)
    context = av.CodecContext.create(setup.encoder, "w")
    context.height, context.width = shape[2:]
    context.pix_fmt, context.framerate, context.time_base = "yuv420p", rate, 1 / rate
    context.gop_size, context.thread_count = max(_LEAST_GOP, shape[0]), 1
    context.options = {key: value.format(crf=crf) for key, value in setup.options.items()} | {"preset": codec.preset}
    packets = []
    for position, picture in enumerate(frames):
        picture.pts, picture.time_base = position, 1 / rate
        packets += context.encode(picture)
    packets += context.encode(None)
    if not setup.signature:
        return packets
    remover = BitStreamFilterContext(setup.signature, av.Codec(setup.decoder, "r"))
    return [bare for packet in packets for bare in remover.filter(packet)]


def _decode(codec: VideoCodec, packets: list[Packet]) -> Iterator[VideoFrame]:
    """Frames in display order."""
    import av

    context = av.CodecContext.create(codec.setup.decoder, "r")
    context.thread_count = 1
    for packet in [*packets, None]:
        yield from context.decode(packet)


def _decoded_pixels(frames: Iterable[VideoFrame], planes: SourcePlanes) -> Iterator[tuple[np.ndarray, Planes]]:
    """(H, W, 3) uint8 and the planes of each frame. Planes of the source are converted as its reader does."""
    for frame in frames:
        yield to_rgb(frame) if planes.why else reader_rgb(frame, planes.display), planes_of(frame)


def _pixels(frame: Tensor) -> np.ndarray:
    """(3, H, W) uint8 -> (H, W, 3)."""
    return frame.permute(1, 2, 0).contiguous().numpy()


def _batches(
    decoded: Iterator[tuple[np.ndarray, Planes]], frames: Tensor, coded: Iterator[Planes] | None
) -> Iterator[DecodedBatch]:
    """Decoded frames with their sources, and with the planes that were `coded`."""
    for source in frames.split(FRAMES_PER_BATCH):
        pixels, planes = zip(*(next(decoded) for _ in source), strict=True)
        pairs = [] if coded is None else [(one, next(coded)) for one in planes]
        rgb = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
        yield DecodedBatch(rgb, source.float() / 255, pairs)
    assert next(decoded, None) is None, "a decoder returned more frames than were encoded"
