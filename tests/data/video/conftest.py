"""Videos encoded with PyAV, each once a session, and FFmpeg's scale filter as the reference for their pixels.

Helpers are fixtures that return functions, so that tests run under every import mode of pytest.
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
from torch import Tensor

from hnerv.data.chunks import ChunkOptions, ChunkPlan, plan_video
from hnerv.data.video import load_video, sources
from hnerv.errors import UserError

torch.set_num_threads(1)
SITES = {"h264": "left", "hevc": "left", "mpeg2video": "left", "mpeg4": "left", "dvvideo": "topleft"}
"""Chroma siting that a decoder assumes for untagged streams."""


def _scene(count: int, height: int, width: int) -> list[np.ndarray]:
    """Moving waves, with a corner whose grey is 10 times the frame number, so that no two frames are equal."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for k in range(count):
        waves = [127 + 90 * np.sin((x + 3 * k) / 29), 127 + 90 * np.cos((y - 2 * k) / 27), (x + y + 5 * k) % 256]
        frames.append(np.stack(waves, -1).astype(np.uint8))
        frames[-1][:8, :8] = k * 10 % 256
    return frames


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
    rotation: int | None = None,
    interlaced: bool = False,
    sound: str = "",
    container: str | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    setup: Callable[[av.video.stream.VideoStream], None] = lambda stream: None,
) -> Path:
    """Encode `_scene` with frame k at `stamps[k]` ticks (default: k), the last one shown for `last` ticks (0: default).

    `rate` is the rate in the header, by default one frame a tick. Interlaced frames show the upper field first, the
    lower one half a frame later. `sound` is the codec of a stream of noise as long as the video.
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
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if sound:
            voice = output.add_stream(sound, rate=48000)
            voice.layout = "stereo"
        output.start_encoding()
        packets = []
        for stamp, pixels in zip(stamps, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamp, tick
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            if last and packet.pts * packet.time_base == stamps[-1] * tick:
                packet.duration = round(last * tick / packet.time_base)
            output.mux(packet)
        if sound:
            samples = (1, 2 * int(stamps[-1] * tick * 48000))
            noise = np.random.default_rng(0).integers(-3000, 3000, samples).astype("<i2")
            resampler = av.AudioResampler(voice.format, "stereo", 48000, voice.frame_size or 1152)
            block = av.AudioFrame.from_ndarray(noise, format="s16", layout="stereo")
            block.sample_rate, block.pts, block.time_base = 48000, 0, Fraction(1, 48000)
            for part in [*resampler.resample(block), *resampler.resample(None), None]:
                output.mux(voice.encode(part))
    return path


def _remux(source: Path, target: Path, change: Callable[[int, bytes], bytes | None] = lambda k, data: data, **tags):
    """Copy the video stream: change(k, packet k in decoding order) -> its new bytes, None to drop it."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        copy.metadata.update(tags)
        for k, packet in enumerate(packet for packet in old.demux(stream) if packet.size):
            data = change(k, bytes(packet))
            if data is None:
                continue
            if data != bytes(packet):
                times = packet.pts, packet.dts, packet.duration, packet.time_base, packet.is_keyframe
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration, packet.time_base, packet.is_keyframe = times
            packet.stream = copy
            new.mux(packet)
    return target


def _ffmpeg_frames(path: Path | str, *, chroma: str = "", interlaced: int = -1, **options) -> Tensor:
    """(N, 3, H, W) uint8 by FFmpeg's scale filter, as stored (not turned upright); `options` are for av.open.

    `interlaced` is 1 to convert by fields, 0 never, -1 as each frame declares. The filter needs the siting of `chroma`,
    by default what the decoder assumes for untagged files (`SITES`), else the centre, as swscale. It makes no
    difference to 4:2:0 and 4:2:2 of 8 bits and even sizes.
    """
    frames, graphs = [], {}
    metadata = {} if av.__version__ >= "19" else {"metadata_errors": "replace"}
    with av.open(str(path), **metadata, **options) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        chroma = chroma or SITES.get(stream.codec_context.name, "center")
        for frame in container.decode(stream):
            key = (
                f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1:pixel_aspect=1/1:"
                f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
            )
            if key not in graphs:
                graphs[key] = graph = av.filter.Graph()
                graph.threads = 1
                deep = max(part.bits for part in frame.format.components) > 8
                flags = "bilinear+full_chroma_int" if deep else "bilinear"
                scale = graph.add("scale", f"flags={flags}:interl={interlaced}:in_chroma_loc={chroma}")
                chain = graph.add("buffer", key), scale, graph.add("format", "rgb24"), graph.add("buffersink")
                graph.link_nodes(*chain).configure()
            graphs[key].push(frame)
            frames.append(graphs[key].pull().to_ndarray())
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.fixture(scope="session")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """encode(name, **settings of `_encode`) -> path of the video, shared by all tests: not to be changed."""
    made: dict[str, Path] = {}

    def build(name: str, *count: int, **settings) -> Path:
        key = repr((name, count, sorted(settings.items())))
        if key not in made:
            made[key] = _encode(tmp_path_factory.mktemp("encoded") / name, *count, **settings)
        return made[key]

    return build


@pytest.fixture(scope="session")
def plain(encode) -> Path:
    """An ordinary file: 12 frames of 64x96, H.264 in MP4. Not to be changed."""
    return encode("plain.mp4")


@pytest.fixture(scope="session")
def remux() -> Callable[..., Path]:
    """remux(source, target, change, **stream tags) as `_remux`."""
    return _remux


@pytest.fixture(scope="session")
def ffmpeg_frames() -> Callable[..., Tensor]:
    """ffmpeg_frames(path, **settings of `_ffmpeg_frames`) -> (N, 3, H, W) uint8."""
    return _ffmpeg_frames


@pytest.fixture(scope="session")
def scene() -> Callable[[int, int, int], list[np.ndarray]]:
    """scene(count, height, width) -> frames (H, W, 3) uint8."""
    return _scene


@pytest.fixture(scope="session")
def smooth() -> list[np.ndarray]:
    """Frames of 48x64 in colours that 4:2:0 can hold: any error left is that of the conversion or the coding."""
    y, x = np.mgrid[:48, :64]
    waves = [127 + 100 * np.sin(x / 19), 127 + 100 * np.cos(y / 17), 127 + 100 * np.sin((x + y) / 23)]
    return [(np.stack(waves, -1) + 2 * k).astype(np.uint8) for k in range(4)]


@pytest.fixture(scope="session")
def loaded_or_refused() -> Callable[[Path], bool]:
    """loaded_or_refused(path) -> whether it was read: then to FFmpeg's pixels, else with an error of one line."""

    def check(path: Path) -> bool:
        try:
            frames = load_video(str(path)).frames
        except UserError as error:
            assert "\n" not in str(error) and path.name in str(error)
            return False
        assert frames.equal(_ffmpeg_frames(path))
        return True

    return check


@pytest.fixture(scope="session")
def plan() -> Callable[..., ChunkPlan]:
    """plan(path, frames="", longest=8) -> the division of a video into segments of at most `longest` frames."""
    return lambda path, frames="", longest=8: plan_video(str(path), frames, ChunkOptions(longest))


@pytest.fixture
def always_seek(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seek for every slice that does not begin at the first frame."""
    monkeypatch.setattr(sources, "SEEK_FROM", 1)
