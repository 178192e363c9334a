"""A corpus of odd and broken media made with PyAV: each comes out as PyAV decodes it, or is refused in words.

What `test_reading.py` has on single faults is not repeated; here every kind of file meets every way of breaking it.
"""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.errors import UserError
from hnerv.data.video import load_video

X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=6:min-keyint=6:bframes=3"}
SVT = {"svtav1-params": "lp=1"}
SOUND: dict[str, dict] = {
    "plain.mp4": {},
    "10-bit.mkv": {"pix_fmt": "yuv420p10le"},
    "422.mkv": {"pix_fmt": "yuv422p"},
    "444.mp4": {"pix_fmt": "yuv444p"},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "grey-10.mkv": {"codec": "ffv1", "pix_fmt": "gray10le"},
    "odd-420.mkv": {"codec": "ffv1", "size": (63, 97)},
    "odd-422.mkv": {"codec": "ffv1", "pix_fmt": "yuv422p", "size": (63, 97)},
    "rgb.mkv": {"codec": "ffv1", "pix_fmt": "bgr0"},
    "rgb-16.mkv": {"codec": "ffv1", "pix_fmt": "gbrp16le"},
    "open-gop.ts": {"options": OPEN_GOP, "count": 20},
    "open-gop.mkv": {"options": OPEN_GOP, "count": 20},
    "edit-list.mov": {"first": -4},
    "late.mkv": {"first": 7},
    "stream.ts": {},
    "old.ts": {"codec": "mpeg2video"},
    "av1.mkv": {"codec": "libsvtav1", "options": SVT},
    "av1-10.mp4": {"codec": "libsvtav1", "options": SVT, "pix_fmt": "yuv420p10le"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "hevc.mkv": {"codec": "libx265", "options": X265},
    "one.mp4": {"count": 1},
    "one.mkv": {"count": 1},
    "portrait.mp4": {"size": (96, 64)},
    "portrait.ts": {"size": (96, 64)},
    "tiny.mkv": {"codec": "ffv1", "size": (2, 2), "pix_fmt": "yuv444p"},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
    "animation.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "animation.png.mov": {"codec": "png", "pix_fmt": "rgb24"},
}


@pytest.mark.parametrize("name", SOUND)
def test_odd_but_sound(name: str, write, pyav_frames) -> None:
    path = write(name, **SOUND[name])
    video = load_video(str(path))
    assert video.frames.equal(pyav_frames(path))
    last = load_video(str(path), frames="-1:")
    assert last.frames.equal(video.frames[-1:])


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("name", ["phone.mp4", "phone.mov", "phone.mkv"])
def test_turned(name: str, rotation: int, write, pyav_frames) -> None:
    path = write(name, rotation=rotation, size=(96, 64))
    expected = torch.rot90(pyav_frames(path), rotation // 90, (2, 3))
    assert load_video(str(path)).frames.equal(expected)


def with_times(path: Path, scene, times: list[int], codec: str = "libx264", pix_fmt: str = "yuv420p") -> Path:
    """Frames at these multiples of 1/1000 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time in zip(scene(len(times), 64, 96), times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


TIMES = {
    "variable": [0, 10, 50, 60, 200, 210, 1000, 1001, 1500, 4000],
    "long gap": [0, 40, 80, 900_000, 900_040],
    "negative": [-400, -360, -320, 0, 40, 80],
    "all negative but one": [-400, -360, -320, -280, 0],
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("case", TIMES)
def test_times_of_all_kinds(case: str, suffix: str, tmp_path: Path, scene, pyav_frames) -> None:
    path = with_times(tmp_path / f"a.{suffix}", scene, TIMES[case])
    video = load_video(str(path))
    assert video.frames.equal(pyav_frames(path)) and video.fps > 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_picture_under_the_name_of_a_video(kind: str, name: str, tmp_path: Path, pyav_frames) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(pixels).save(path, format=kind)
    try:
        found = load_video(str(path)).frames
    except UserError as error:
        assert "\n" not in str(error) and name in str(error)
    else:
        assert found.equal(pyav_frames(path)) and found.shape == (1, 3, 16, 24)


def sound_alone(path: Path) -> Path:
    codec = {".mp4": "aac", ".mkv": "aac", ".ts": "mp2"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000)
        layout, form = stream.layout, stream.format.name
        for i in range(10):
            samples = np.zeros((len(layout.channels), 1152), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout.name)
            frame.sample_rate, frame.pts, frame.time_base = 48000, i * 1152, Fraction(1, 48000)
            resampler = av.AudioResampler(format=form, layout=layout.name, rate=48000)
            for part in resampler.resample(frame):
                part.pts = None
                container.mux(stream.encode(part))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_sound_alone(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no video stream, only audio"):
        load_video(str(sound_alone(tmp_path / f"a.{suffix}")))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "mov", "webm"])
def test_zero_frames(suffix: str, write) -> None:
    codec = {"webm": "libvpx"}.get(suffix, "mpeg4")
    with pytest.raises(UserError, match="video"):
        load_video(str(write(f"none.{suffix}", count=0, codec=codec)))


BROKEN = [
    "plain.mp4",
    "open-gop.ts",
    "open-gop.mkv",
    "av1.mkv",
    "vp9.webm",
    "hevc.mkv",
    "grey.mkv",
    "edit-list.mov",
    "motion.avi",
]


@pytest.mark.parametrize("name", BROKEN)
def test_truncated_anywhere(name: str, write, tmp_path: Path, right_or_refused, caplog) -> None:
    data, path = write(name, **SOUND[name]).read_bytes(), tmp_path / f"cut-{name}"
    read = 0
    for share in (0.0, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999):
        path.write_bytes(data[: int(share * len(data))])
        read += right_or_refused(path)
    assert read < 9
    shutil.copy(write(name, **SOUND[name]), path)
    assert right_or_refused(path)


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_anywhere(name: str, write, tmp_path: Path, right_or_refused, caplog) -> None:
    """Damage that FFmpeg does not notice either gives the pixels that it gives."""
    data, path = write(name, **SOUND[name]).read_bytes(), tmp_path / f"bad-{name}"
    draw = np.random.default_rng(len(name))
    for trial in range(8):
        spoilt = bytearray(data)
        place, length = int(draw.integers(len(data))), [1, 4, 60][trial % 3]
        spoilt[place : place + length] = draw.bytes(len(spoilt[place : place + length]))
        path.write_bytes(spoilt)
        right_or_refused(path)


def test_images_of_huge_dimensions(tmp_path: Path) -> None:
    """A PNG of some hundred bytes that promises gigapixels is refused by its header."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side, deep in ((60_000, 8), (15_000, 8), (2**31 - 1, 8), (60_000, 16)):
        header = struct.pack(">IIBBBBB", side, side, deep, 2, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        for place in (path, tmp_path):
            with pytest.raises(UserError) as caught:
                load_video(str(place))
            assert "\n" not in str(caught.value) and "bomb.png" in str(caught.value)
