"""Codecs, containers, pixel formats and kinds of frame rates, intact and damaged, compared with FFmpeg itself.

Pixels equal those of its scale filter, without tolerance. Count, rate and duration are those of the packets, as the
test reads them. A damaged file gives the frames that FFmpeg gives, or is refused in one line. The default run has each
codec in each container once, `pytest -m campaign` every kind of file with every kind of rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from hnerv.data.video import frame_count, load_video

NTSC = Fraction(1001, 30000)
GOP = "keyint=6:min-keyint=6:bframes=2"
X264, OPEN_GOP = {"x264-params": GOP}, {"x264-params": f"open-gop=1:{GOP}"}
TOP_FIRST, BOTTOM_FIRST = ({"x264-params": f"{order}=1:keyint=6:bframes=2"} for order in ("tff", "bff"))
X265 = {"x265-params": f"log-level=none:pools=none:frame-threads=1:open-gop=1:{GOP}"}
SVT = {"svtav1-params": "lp=1:keyint=6"}
VPX = {"cpu-used": "8", "deadline": "realtime", "g": "6"}
MPEG = {"g": "6", "bf": "2"}
COUNT = 24
UNEVEN = [20 * k + stamp for k in range(2) for stamp in [0, 1, 2, 5, 6, 9, 10, 11, 15, 16, 18, 19]]
"""No rate has these stamps."""
EARLY = 4
"""Frames before time 0, which MP4 and MOV hide by an edit list."""


class Kind(NamedTuple):
    codec: str
    suffix: str
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = {}
    interlaced: bool = False
    size: tuple[int, int] = (64, 96)
    rates: str = "constant ntsc variable late"


AVI = "constant ntsc variable"
"""FFmpeg's writer puts a late start between the first frame and the second: the file itself declares it so."""
EDITED = "early constant ntsc variable late"
KINDS = [
    Kind("libx264", "mp4", options=X264, rates=EDITED),
    Kind("libx264", "mkv", options=OPEN_GOP),
    Kind("libx264", "mp4", options=OPEN_GOP, rates="variable constant ntsc late"),
    Kind("libx264", "ts", options=X264),
    Kind("libx264", "ts", options=OPEN_GOP),
    Kind("libx264", "flv", options=X264),
    Kind("libx264", "avi", options={"bf": "0", "g": "6"}, rates=AVI),
    Kind("libx264", "mov", "yuv422p", X264, rates=EDITED),
    Kind("libx264", "mp4", "yuv444p", X264, size=(63, 97)),
    Kind("libx264", "mkv", "yuv420p10le", X264),
    Kind("libx264", "ts", "yuv422p10le", X264),
    Kind("libx264", "mp4", "yuvj420p", {"x264-params": f"colormatrix=bt709:{GOP}"}),
    Kind("libx264", "mkv", "gray", X264),
    Kind("libx264", "mp4", options=TOP_FIRST, interlaced=True),
    Kind("libx264", "ts", options=TOP_FIRST, interlaced=True),
    Kind("libx264", "mkv", "yuv420p10le", BOTTOM_FIRST, interlaced=True),
    Kind("libx264", "mkv", "yuv422p", TOP_FIRST, interlaced=True),
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
    Kind("mpeg2video", "mpg", options=MPEG, rates="constant ntsc late"),
    Kind("mpeg2video", "ts", options=MPEG, interlaced=True),
    Kind("mpeg2video", "vob", "yuv420p", MPEG, interlaced=True, rates="constant ntsc late"),
    Kind("mpeg2video", "mkv", "yuv422p", MPEG, interlaced=True),
    Kind("mpeg4", "avi", options={"g": "6"}, rates=AVI),
    Kind("mpeg4", "mp4", options=MPEG),
    Kind("mpeg4", "avi", options=MPEG, rates="constant ntsc"),
    Kind("mjpeg", "avi", "yuvj422p", rates=AVI),
    Kind("mjpeg", "mov", "yuvj444p"),
    Kind("ffv1", "mkv", "yuv420p10le"),
    Kind("ffv1", "avi", "yuv444p", rates=AVI),
    Kind("ffv1", "mkv", "yuv420p", size=(63, 97)),
    Kind("ffv1", "mkv", "yuv422p", size=(63, 97)),
    Kind("ffv1", "mkv", "yuv444p", size=(2, 2)),
    Kind("ffv1", "mkv", "bgr0"),
    Kind("ffv1", "mkv", "gbrp12le"),
    Kind("ffv1", "mkv", "gbrp16le"),
    Kind("ffv1", "mkv", "gray10le"),
    Kind("ffv1", "mkv", "gray16le"),
    Kind("prores_ks", "mov", "yuv422p10le"),
    Kind("png", "mov", "rgb24"),
    Kind("gif", "gif", "rgb8", rates="constant"),
    Kind("huffyuv", "avi", "yuv422p", rates=AVI),
    Kind("utvideo", "avi", "gbrp", rates=AVI),
    Kind("flv", "flv", options={"g": "6"}),
]


def cases(rates: bool, by: Callable[[Kind], object]) -> list:
    """A row for each kind and each (or one) of its rates.

    By default only the first kind of those that are equal `by` a property is run, with one rate.
    """
    rows, seen = [], set()
    for k, kind in enumerate(KINDS):
        names = kind.rates.split()
        chosen = names[0] if kind.rates == EDITED else names[k % len(names)]
        for name in names if rates else [chosen]:
            marks = () if name == chosen and by(kind) not in seen else pytest.mark.campaign
            size = "" if kind.size == (64, 96) else "x".join(map(str, kind.size))
            words = kind.codec, kind.suffix, kind.pix_fmt, size, "interlaced" * kind.interlaced, name
            rows.append(pytest.param(kind, name, marks=marks, id=" ".join(filter(None, words))))
        seen.add(by(kind))
    return rows


@pytest.fixture
def make(encode):
    """make(kind, rate) -> path of COUNT frames."""
    stamps = {"variable": UNEVEN, "late": range(7, 7 + COUNT), "early": range(-EARLY, COUNT - EARLY)}
    return lambda kind, rate: encode(
        f"a.{kind.suffix}",
        codec=kind.codec,
        pix_fmt=kind.pix_fmt,
        size=kind.size,
        stamps=stamps.get(rate, range(COUNT)),
        tick=NTSC if rate == "ntsc" else Fraction(1, 25),
        last=1 if rate == "variable" else 0,
        interlaced=kind.interlaced,
        options=kind.options,
        container="vob" if kind.suffix == "vob" else None,
    )


def packet_times(path: Path) -> tuple[list[float], float]:
    """Seconds of each frame after the first, and of the end of the last one, from the packets; AVI has only dts.

    The last frame lasts as long as most if its packet has no duration or is not the last one: in MP4 a duration is the
    time to the next packet in decoding order.
    """
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        stamps = [packet.dts if path.suffix == ".avi" else packet.pts for packet in packets]
        last = packets[-1].duration if stamps[-1] == max(stamps) else 0
        tick = stream.time_base
    stamps.sort()
    starts = [float((stamp - stamps[0]) * tick) for stamp in stamps]
    return starts, starts[-1] + float((last or statistics.median_low(np.diff(stamps).tolist())) * tick)


@pytest.mark.parametrize(("kind", "rate"), cases(rates=True, by=lambda k: (k.codec, k.suffix, k.interlaced)))
def test_intact(kind: Kind, rate: str, make, ffmpeg_frames, monkeypatch, always_seek, caplog) -> None:
    path = make(kind, rate)
    expected, (starts, end) = ffmpeg_frames(path), packet_times(path)
    video = load_video(str(path))
    assert video.frames.equal(expected) and video.reader == "pyav"
    count = COUNT - EARLY if rate == "early" else COUNT
    assert len(expected) == len(starts) == frame_count(str(path)) == count

    stamps = UNEVEN if rate == "variable" else range(count)
    step = float(NTSC) if rate == "ntsc" else 1 / 25
    times = [video.times.seconds(k) if video.times else k / video.fps for k in range(count)]
    assert (video.times is None) == (rate != "variable")
    assert times == pytest.approx(starts, abs=1.1e-3)  # a tick of Matroska and FLV
    assert times == pytest.approx([stamp * step for stamp in stamps], abs=1.1e-3)
    last = float(video.times.median_step * video.times.tick) if video.times else 1 / video.fps
    assert times[-1] + last == pytest.approx(end, abs=2.1e-3)
    if rate == "variable":
        assert video.fps == pytest.approx(count / end, rel=1e-3) == pytest.approx(count / 40 / step, rel=1e-3)
    else:
        rounded = kind.suffix == "flv" and rate == "ntsc"  # its ticks are as coarse as the difference
        assert video.fps == pytest.approx(1 / step, rel=2e-5 if rounded else 1e-9)

    for start in (2, 9, 14, 19):  # before the second key frame, and after the third
        assert load_video(str(path), frames=f"{start}:{start + 3}").frames.equal(expected[start : start + 3])
    assert load_video(str(path), frames="-9::4").frames.equal(expected[-9::4])

    monkeypatch.setenv("HNERV_READER", "decord")
    other = load_video(str(path))
    simple = kind.codec == "libx264" and kind.suffix == "mp4" and kind.pix_fmt in ("yuv420p", "yuvj420p")
    assert other.reader == ("decord" if simple and not kind.interlaced and rate != "early" else "pyav")
    assert other._replace(frames=0, reader="") == video._replace(frames=0, reader="") and not caplog.records


def orientation_bytes(data: bytes) -> list[slice]:
    """Where MP4 and MOV store their display matrices of 9 numbers: in the header of the movie, and of its track."""
    starts = [data.index(box) + offset for box, offset in ((b"mvhd", 40), (b"tkhd", 44)) if box in data]
    return [slice(start, start + 36) for start in starts]


@pytest.mark.parametrize(("kind", "rate"), cases(rates=False, by=lambda kind: kind.codec))
def test_damaged(kind: Kind, rate: str, make, loaded_or_refused, tmp_path: Path, caplog) -> None:
    data, draw = make(kind, rate).read_bytes(), np.random.default_rng(KINDS.index(kind))
    path = tmp_path / f"a.{kind.suffix}"
    for share in (0, *draw.uniform(0.03, 0.98, 3), 0.999):
        path.write_bytes(data[: int(share * len(data))])
        # These formats do not know their length.
        assert not loaded_or_refused(path) or kind.suffix in ("ts", "mpg", "vob", "gif") or share == 0.999
    for count in (1, 3, 30):
        spoilt = np.frombuffer(data, np.uint8).copy()
        spoilt[draw.integers(0, len(data), count)] ^= draw.integers(1, 256, count, dtype=np.uint8)
        for part in orientation_bytes(data):  # the reference is not turned upright
            spoilt[part] = np.frombuffer(data, np.uint8)[part]
        path.write_bytes(spoilt.tobytes())
        loaded_or_refused(path)
    start, length = int(draw.integers(len(data))), 60
    path.write_bytes(data[:start] + draw.bytes(length) + data[start + length :])
    loaded_or_refused(path)
    path.write_bytes(data)
    assert loaded_or_refused(path)
