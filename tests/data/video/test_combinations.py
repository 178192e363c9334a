"""Every codec, container, pixel format and mode of the frame rate, intact and damaged, against FFmpeg itself.

Frames are equal to those of its scale filter, without tolerance. Count, rate and duration are those of the packets, as
the test reads them. A damaged file gives the frames that FFmpeg gives, or is refused in one line.
"""

from __future__ import annotations

import statistics
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from hnerv.data.video import frame_count, load_video

NTSC = Fraction(1001, 30000)
X264 = {"x264-params": "keyint=6:min-keyint=6:bframes=2"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=6:min-keyint=6:bframes=2"}
X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1:keyint=6:min-keyint=6:bframes=2"}
SVT = {"svtav1-params": "lp=1:keyint=6"}
VPX = {"cpu-used": "8", "deadline": "realtime", "g": "6"}
MPEG = {"g": "6", "bf": "2"}
UNEVEN = [0, 1, 2, 5, 6, 9, 10, 11, 15, 16, 18, 19]
"""No rate has these stamps."""


class Kind(NamedTuple):
    codec: str
    suffix: str
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = {}
    interlaced: bool = False
    size: tuple[int, int] = (64, 96)
    modes: str = "constant ntsc variable late"


AVI = "constant ntsc variable"
"""FFmpeg's writer puts a late start between the first frame and the second: the file itself says so."""
KINDS = [
    Kind("libx264", "mp4", options=X264),
    Kind("libx264", "mkv", options=OPEN_GOP),
    Kind("libx264", "ts", options=X264),
    Kind("libx264", "flv", options=X264),
    Kind("libx264", "avi", options={"bf": "0", "g": "6"}, modes=AVI),
    Kind("libx264", "mov", "yuv422p", X264),
    Kind("libx264", "mp4", "yuv444p", X264),
    Kind("libx264", "mkv", "yuv420p10le", X264),
    Kind("libx264", "ts", "yuv422p10le", X264),
    Kind("libx264", "mp4", "yuvj420p", X264),
    Kind("libx264", "mkv", "gray", X264),
    Kind("libx264", "mp4", options=X264 | {"x264-params": "tff=1:keyint=6:bframes=2"}, interlaced=True),
    Kind("libx264", "ts", options=X264 | {"x264-params": "tff=1:keyint=6:bframes=2"}, interlaced=True),
    Kind("libx264", "mkv", "yuv420p10le", {"x264-params": "bff=1:keyint=6:bframes=2"}, True),
    Kind("libx264", "mkv", "yuv422p", {"x264-params": "tff=1:keyint=6:bframes=2"}, True),
    Kind("libx264", "mp4", options={"x264-params": "intra-refresh=1:keyint=6:bframes=0"}),
    Kind("libx265", "mp4", options=X265),
    Kind("libx265", "ts", "yuv420p10le", X265),
    Kind("libx265", "mkv", "yuv444p10le", X265),
    Kind("libsvtav1", "mp4", options=SVT),
    Kind("libsvtav1", "webm", "yuv420p10le", SVT),
    Kind("libvpx", "webm", options=VPX),
    Kind("libvpx-vp9", "webm", options=VPX),
    Kind("libvpx-vp9", "mp4", "yuv444p", VPX),
    Kind("libvpx-vp9", "mkv", options={"cpu-used": "5", "deadline": "good", "lag-in-frames": "8", "g": "6"}),
    Kind("mpeg2video", "mpg", options=MPEG, modes="constant ntsc late"),
    Kind("mpeg2video", "ts", options=MPEG, interlaced=True),
    Kind("mpeg2video", "vob", "yuv420p", MPEG, True, modes="constant ntsc late"),
    Kind("mpeg2video", "mkv", "yuv422p", MPEG, True),
    Kind("mpeg4", "avi", options={"g": "6"}, modes=AVI),
    Kind("mpeg4", "mp4", options={"g": "6", "bf": "2"}),
    Kind("mpeg4", "avi", options={"g": "6", "bf": "2"}, modes="constant ntsc"),
    Kind("mjpeg", "avi", "yuvj422p", modes=AVI),
    Kind("mjpeg", "mov", "yuvj444p"),
    Kind("ffv1", "mkv", "yuv420p10le"),
    Kind("ffv1", "avi", "yuv444p", modes=AVI),
    Kind("ffv1", "mkv", "yuv420p", size=(63, 97)),
    Kind("ffv1", "mkv", "bgr0"),
    Kind("ffv1", "mkv", "gbrp12le"),
    Kind("ffv1", "mkv", "gray16le"),
    Kind("prores_ks", "mov", "yuv422p10le"),
    Kind("huffyuv", "avi", "yuv422p", modes=AVI),
    Kind("utvideo", "avi", "gbrp", modes=AVI),
    Kind("flv", "flv", options={"g": "6"}),
]
WHOLE = [(kind, mode) for kind in KINDS for mode in kind.modes.split()]
DAMAGED = [(kind, kind.modes.split()[k % len(kind.modes.split())]) for k, kind in enumerate(KINDS)]


def label(part: Kind | str) -> str:
    if isinstance(part, str):
        return part
    odd = f"{part.size[1]}x{part.size[0]}" if part.size != (64, 96) else ""
    words = part.codec, part.suffix, part.pix_fmt, odd, "interlaced" * part.interlaced
    return " ".join(word for word in words if word)


@pytest.fixture
def make(encode):
    """make(kind, mode) -> path of 12 frames, or of several times as many."""

    def build(kind: Kind, mode: str, times: int = 1) -> Path:
        uneven = [20 * k + stamp for k in range(times) for stamp in UNEVEN]
        stamps = {"variable": uneven, "late": range(7, 7 + 12 * times)}.get(mode, range(12 * times))
        return encode(
            f"a.{kind.suffix}",
            codec=kind.codec,
            pix_fmt=kind.pix_fmt,
            size=kind.size,
            stamps=stamps,
            tick=NTSC if mode == "ntsc" else Fraction(1, 25),
            last=1 if mode == "variable" else 0,
            interlaced=kind.interlaced,
            options=kind.options,
            container="vob" if kind.suffix == "vob" else None,
        )

    return build


class Facts(NamedTuple):
    """Of the packets: seconds of each frame after the first, and of the last one's end."""

    starts: list[float]
    end: float


def facts_of(path: Path) -> Facts:
    """AVI has decoding time stamps only.

    The last frame lasts as long as most where its packet has no duration, or is not the last one: in MP4 that is the
    time to the next packet in decoding order.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        stamps = [packet.dts if path.suffix == ".avi" else packet.pts for packet in packets]
        last = packets[-1].duration if stamps[-1] == max(stamps) else 0
        tick = stream.time_base
    stamps.sort()
    steps = np.diff(stamps).tolist()
    starts = [float((stamp - stamps[0]) * tick) for stamp in stamps]
    return Facts(starts, starts[-1] + float((last or statistics.median_low(steps)) * tick))


@pytest.mark.parametrize(("kind", "mode"), WHOLE, ids=label)
def test_whole(kind: Kind, mode: str, make, ffmpeg_frames) -> None:
    path = make(kind, mode)
    expected, facts = ffmpeg_frames(path), facts_of(path)
    video = load_video(str(path))
    assert video.frames.equal(expected)
    assert len(expected) == len(facts.starts) == frame_count(str(path)) == 12
    stamps = UNEVEN if mode == "variable" else range(12)
    step = float(NTSC) if mode == "ntsc" else 1 / 25
    times = [video.times.seconds(k) if video.times else k / video.fps for k in range(12)]
    assert (video.times is None) == (mode != "variable")
    assert times == pytest.approx(facts.starts, abs=1.1e-3)  # a tick of Matroska and FLV
    assert times == pytest.approx([stamp * step for stamp in stamps], abs=1.1e-3)
    end = times[-1] + float(video.times.median_step * video.times.tick) if video.times else 12 / video.fps
    assert end == pytest.approx(facts.end, abs=2.1e-3)
    if mode == "variable":
        assert video.fps == pytest.approx(12 / facts.end, rel=1e-3) == pytest.approx(12 / 20 / step, rel=1e-3)
    else:
        rounded = kind.suffix == "flv" and mode == "ntsc"  # its ticks are as coarse as the difference
        assert video.fps == pytest.approx(1 / step, rel=2e-5 if rounded else 1e-9)


@pytest.mark.parametrize(("kind", "mode"), WHOLE[::3], ids=label)
def test_from_the_middle(kind: Kind, mode: str, make, monkeypatch) -> None:
    """Frames that are sought, from beyond the third key frame too, are those of decoding from the start."""
    from hnerv.data.video import sources as loading

    path = make(kind, mode, times=3)
    whole = load_video(str(path)).frames
    monkeypatch.setattr(loading, "SEEK_FROM", 1)
    for start in (2, 7, 19, 26, 35):
        assert load_video(str(path), frames=f"{start}:{start + 3}").frames.equal(whole[start : start + 3])


def orientation_bytes(data: bytes) -> list[slice]:
    """Where MP4 and MOV have their matrices of 9 numbers: in the movie's header, and in that of its track."""
    starts = [data.index(box) + behind for box, behind in ((b"mvhd", 40), (b"tkhd", 44)) if box in data]
    return [slice(start, start + 36) for start in starts]


@pytest.mark.parametrize(("kind", "mode"), DAMAGED, ids=label)
def test_truncated(kind: Kind, mode: str, make, right_or_refused, caplog) -> None:
    path = make(kind, mode)
    data, share = path.read_bytes(), np.random.default_rng(KINDS.index(kind)).uniform(0.05, 0.98, 3)
    for part in share:
        path.write_bytes(data[: int(part * len(data))])
        assert not right_or_refused(path) or kind.suffix in ("ts", "mpg", "vob")  # these do not know their length


@pytest.mark.parametrize(("kind", "mode"), DAMAGED, ids=label)
def test_flipped_bytes(kind: Kind, mode: str, make, right_or_refused, caplog) -> None:
    path = make(kind, mode)
    data, draw = path.read_bytes(), np.random.default_rng(KINDS.index(kind))
    for count in (1, 3, 30):
        spoilt = np.frombuffer(data, np.uint8).copy()
        spoilt[draw.integers(0, len(data), count)] ^= draw.integers(1, 256, count, dtype=np.uint8)
        for place in orientation_bytes(data):  # the reference is as stored: no other orientation
            spoilt[place] = np.frombuffer(data, np.uint8)[place]
        path.write_bytes(spoilt.tobytes())
        right_or_refused(path)
