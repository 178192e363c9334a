"""Videos that the tests write with PyAV, and how PyAV reads them: the reference for what `load_video` returns.

The helpers are fixtures that return functions, so that tests run under every import mode of pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.codec.context import Flags
from av.video.reformatter import Interpolation
from torch import Tensor

from hnerv.errors import UserError
from hnerv.data.video import load_video

torch.set_num_threads(1)
SITES = {"h264": "left", "hevc": "left", "mpeg2video": "left", "mpeg4": "left", "dvvideo": "topleft"}
"""Where chroma sits in the streams of a decoder, unless they say otherwise."""


def _scene(count: int, height: int, width: int) -> list[np.ndarray]:
    """Moving waves and a corner whose grey is 10 times the frame number, so that no two frames are equal."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for i in range(count):
        red = 127 + 90 * np.sin((x + 3 * i) / 29)
        green = 127 + 90 * np.cos((y - 2 * i) / 27)
        frame = np.stack([red, green, (x + y + 5 * i) % 256], -1).astype(np.uint8)
        frame[:8, :8] = i * 10 % 256
        frames.append(frame)
    return frames


def _write_video(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 96),
    count: int = 12,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    rotation: int | None = None,
    first: int = 0,
    setup: Callable[[av.video.stream.VideoStream], None] = lambda stream: None,
) -> Path:
    """Encode `_scene` at 25 frames a second; `first` is the first timestamp, in frames."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1  # the same bytes every time
        setup(stream)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for i, pixels in enumerate(_scene(count, *size)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i + first, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _pyav_frames(path: Path | str) -> Tensor:
    """(N, 3, H, W) uint8 as PyAV decodes and converts, above 8 bits without tables, in the orientation stored."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            deep = max(part.bits for part in frame.format.components) > 8
            how = Interpolation.BILINEAR | (Interpolation.FULL_CHR_H_INT if deep else 0)
            frames.append(frame.to_ndarray(format="rgb24", interpolation=how))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def _encode(
    path: Path,
    count: int = 12,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 96),
    stamps: Sequence[int] | None = None,
    tick: Fraction = Fraction(1, 25),
    last: int = 0,
    rate: Fraction | None = None,
    interlaced: bool = False,
    sound: str = "",
    container: str | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    setup: Callable[[av.video.stream.VideoStream], None] = lambda stream: None,
) -> Path:
    """Encode `_scene` with frame k at `stamps[k]` ticks (default: k), the last one shown for `last` ticks.

    `rate` is what the header promises, one frame a tick by default. Interlaced: the upper field is shown first, the
    lower one is half a frame later. `sound` is the codec of a stream of noise as long as the video.
    """
    stamps = range(count) if stamps is None else stamps
    pictures = _scene(len(stamps) * (1 + interlaced), *size)
    if interlaced:
        rows = np.arange(size[0])[:, None, None] % 2
        pictures = [np.where(rows, lower, upper) for upper, lower in zip(pictures[::2], pictures[1::2], strict=True)]
    with av.open(str(path), "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, rate=rate or 1 / tick, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = tick
        stream.codec_context.thread_count = 1  # the same bytes every time
        if interlaced:
            stream.codec_context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        setup(stream)
        if sound:
            voice = output.add_stream(sound, rate=48000)
            voice.layout = "stereo"
        output.start_encoding()
        for stamp, pixels in zip(stamps, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamp, tick
            _mux(output, stream.encode(frame), stamps[-1] * tick, last * tick)
        _mux(output, stream.encode(), stamps[-1] * tick, last * tick)
        if sound:
            noise = (
                np.random.default_rng(0).integers(-3000, 3000, (1, 2 * int(stamps[-1] * tick * 48000))).astype("<i2")
            )
            resampler = av.AudioResampler(voice.format, "stereo", 48000, voice.frame_size or 1152)
            block = av.AudioFrame.from_ndarray(noise, format="s16", layout="stereo")
            block.sample_rate, block.pts, block.time_base = 48000, 0, Fraction(1, 48000)
            for part in [*resampler.resample(block), *resampler.resample(None), None]:
                output.mux(voice.encode(part))
    return path


def _mux(output: av.container.OutputContainer, packets: list[av.Packet], end: Fraction, last: Fraction) -> None:
    """Packets of one stream, the one that is shown at `end` for `last` seconds (0: as the encoder says)."""
    for packet in packets:
        if last and packet.pts * packet.time_base == end:
            packet.duration = round(last / packet.time_base)
        output.mux(packet)


def _remux(source: Path, target: Path, change: Callable[[int, bytes], bytes | None]) -> Path:
    """Copy the video stream: change(k, packet k in decoding order) -> its new bytes, None to leave it out."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for k, packet in enumerate(packet for packet in old.demux(stream) if packet.size):
            data = change(k, bytes(packet))
            if data is None:
                continue
            times = packet.pts, packet.dts, packet.duration, packet.time_base, packet.is_keyframe
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.duration, packet.time_base, packet.is_keyframe = times
            packet.stream = copy
            new.mux(packet)
    return target


def _ffmpeg_frames(path: Path | str, *, chroma: str = "", interlaced: int = -1, **how) -> Tensor:
    """(N, 3, H, W) uint8 of FFmpeg's own scale filter, in the orientation stored; `how` is for av.open.

    `interlaced` is 1 to convert field by field, 0 never, -1 as each frame says. `chroma` is where it sits, which the
    filter has to be given: by default what the decoder says of untagged files, in `SITES`, and the centre, which
    swscale assumes, where it says nothing. It makes no difference to 4:2:0 and 4:2:2 of 8 bits and even sizes.
    """
    frames, graphs = [], {}
    tags = {} if av.__version__ >= "19" else {"metadata_errors": "replace"}
    with av.open(str(path), **tags, **how) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        chroma = chroma or SITES.get(stream.codec_context.name, "center")
        for frame in container.decode(stream):
            options = (
                f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1:pixel_aspect=1/1:"
                f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
            )
            if options not in graphs:
                graphs[options] = graph = av.filter.Graph()
                graph.threads = 1
                deep = max(part.bits for part in frame.format.components) > 8
                flags = "bilinear+full_chroma_int" if deep else "bilinear"
                scale = graph.add("scale", f"flags={flags}:interl={interlaced}:in_chroma_loc={chroma}")
                chain = graph.add("buffer", options), scale, graph.add("format", "rgb24"), graph.add("buffersink")
                graph.link_nodes(*chain).configure()
            graphs[options].push(frame)
            frames.append(graphs[options].pull().to_ndarray())
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary file: 12 frames of 64x96, h264 in mp4."""
    return _write_video(tmp_path_factory.mktemp("plain") / "plain.mp4")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(name, **settings of `_write_video`) -> path of the new video."""
    return lambda name, **settings: _write_video(tmp_path / name, **settings)


@pytest.fixture
def encode(tmp_path: Path) -> Callable[..., Path]:
    """encode(name, **settings of `_encode`) -> path of the new video."""
    return lambda name, *count, **settings: _encode(tmp_path / name, *count, **settings)


@pytest.fixture(scope="session")
def remux() -> Callable[[Path, Path, Callable], Path]:
    """remux(source, target, change) as `_remux`."""
    return _remux


@pytest.fixture(scope="session")
def ffmpeg_frames() -> Callable[..., Tensor]:
    """ffmpeg_frames(path, **settings of `_ffmpeg_frames`) -> (N, 3, H, W) uint8."""
    return _ffmpeg_frames


@pytest.fixture(scope="session")
def pyav_frames() -> Callable[[Path | str], Tensor]:
    """pyav_frames(path) -> (N, 3, H, W) uint8."""
    return _pyav_frames


@pytest.fixture(scope="session")
def scene() -> Callable[[int, int, int], list[np.ndarray]]:
    """scene(count, height, width) -> frames (H, W, 3) uint8."""
    return _scene


@pytest.fixture
def right_or_refused(ffmpeg_frames) -> Callable[[Path], bool]:
    """right_or_refused(path) -> whether it was read; asserts that frames are FFmpeg's, and messages are one line."""

    def check(path: Path) -> bool:
        try:
            found = load_video(str(path)).frames
        except UserError as error:
            assert "\n" not in str(error) and path.name in str(error)
            return False
        assert found.equal(ffmpeg_frames(path))
        return True

    return check
