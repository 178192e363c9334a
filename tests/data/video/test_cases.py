"""Kinds of files that people had trouble with, made here, with counts, times and colours found by arithmetic.

Pixels are compared with FFmpeg's own scale filter, and have to be equal.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.errors import UserError
from hnerv.data.chunks import ChunkOptions, plan_video
from hnerv.data.video import Video, frame_count, load_video
from hnerv.data.video.probing import _shows
from hnerv.data.video.raw import geometry_of

NTSC = Fraction(30000, 1001)
MILLI = Fraction(1, 1000)
X265 = "log-level=none:pools=none:frame-threads=1"
REAL_TIME = {"cpu-used": "8", "deadline": "realtime", "lag-in-frames": "0", "auto-alt-ref": "0"}
RESILIENT = REAL_TIME | {"error-resilient": "1"}
NO_B_FRAMES = {"bf": "0"}
TOP_FIRST = {"x264-params": "tff=1"}
RECORDING = [*range(0, 5000, 100), *range(5000, 25000, 1000)]
"""Milliseconds of 70 frames in 24.1 s: 50 at 10 a second, then 20 at 1 a second, the last one shown for 0.1 s."""
DROPPED = [0, 1, 2, 5, 6, 7, 8, 10, 11, 12]
"""Of 13 frames, 10 that were captured."""


def duration(video: Video) -> float:
    """Seconds from the first frame to the end of the last one."""
    if video.times is None:
        return len(video.frames) / video.fps
    return video.times.seconds(len(video.frames) - 1) + float(video.times.step * video.times.tick)


def check(path: Path | str, frames: int, seconds: float, rate: float, expected: torch.Tensor) -> Video:
    video = load_video(str(path))
    assert len(video.frames) == frames == frame_count(str(path))
    assert video.fps == pytest.approx(rate, rel=1e-4)
    assert duration(video) == pytest.approx(seconds, abs=2e-3)
    assert video.frames.equal(expected)
    return video


def recording(tick: Fraction = MILLI, **settings) -> dict:
    stamps = [int(stamp * MILLI / tick) for stamp in RECORDING]
    return {
        "stamps": stamps,
        "tick": tick,
        "last": int(100 * MILLI / tick),
        "rate": 10,
        "options": NO_B_FRAMES,
    } | settings


def tagged(primaries: int, transfer: int, matrix: int, range_: int) -> Callable:
    def setup(stream: av.video.stream.VideoStream) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = primaries, transfer, matrix
        context.color_range = range_

    return setup


def shaped(wide: int, high: int) -> Callable:
    def setup(stream: av.video.stream.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(wide, high)

    return setup


CASES: dict[str, tuple[dict, int, float, float]] = {
    "ps.mpg": ({"codec": "mpeg2video", "sound": "mp2", "count": 20}, 20, 0.8, 25),
    "disc.vob": ({"codec": "mpeg2video", "sound": "mp2", "count": 20, "container": "vob"}, 20, 0.8, 25),
    "list.m3u8": (
        {"options": {"g": "5", "bf": "0"}, "muxer": {"hls_time": "0.2", "hls_list_size": "0"}, "count": 20},
        20, 0.8, 25,
    ),
    "mp3.avi": ({"codec": "mpeg4", "sound": "libmp3lame", "count": 20}, 20, 0.8, 25),
    "no_b_frames.avi": ({"options": NO_B_FRAMES, "count": 20}, 20, 0.8, 25),
    "null_frames.avi": ({"codec": "mpeg4", "stamps": DROPPED}, 10, 0.52, 10 / 0.52),
    "rec.mp4": (recording(), 70, 24.1, 70 / 24.1),
    "rec.mov": (recording(), 70, 24.1, 70 / 24.1),
    "rec.mkv": (recording(), 70, 24.1, 70 / 24.1),
    "rec.flv": (recording(), 70, 24.1, 70 / 24.1),
    "rec.ts": (recording(Fraction(1, 90000)), 70, 24.1, 70 / 24.1),
    "rec-vp8.webm": (recording(codec="libvpx", options=REAL_TIME), 70, 24.1, 70 / 24.1),
    "rec-vp9.webm": (recording(codec="libvpx-vp9", options=REAL_TIME), 70, 24.1, 70 / 24.1),
    "long_last.mkv": ({"count": 20, "last": 100, "options": NO_B_FRAMES}, 20, 0.8, 25),
    "long_last.flv": ({"count": 20, "last": 100, "options": NO_B_FRAMES}, 20, 0.8, 25),
    "sar.mp4": ({"count": 20, "setup": shaped(2, 1)}, 20, 0.8, 25),
    "hdr10.mp4": (
        {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": X265}, "tick": Fraction(1, 24),
         "count": 10, "setup": tagged(9, 16, 9, 1)},
        10, 10 / 24, 24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, encode, ffmpeg_frames) -> None:
    settings, frames, seconds, rate = CASES[name]
    path = encode(name, **settings)
    video = check(path, frames, seconds, rate, ffmpeg_frames(path))
    if "stamps" in settings:
        for k, stamp in enumerate(settings["stamps"]):
            assert video.times.seconds(k) == pytest.approx(float(stamp * settings.get("tick", 1 / 25)), abs=6e-4)
    else:
        assert video.times is None


def test_recordings_agree_in_all_containers(encode) -> None:
    """The rate, the duration and the time stamps do not depend on the container's tick."""
    found = [load_video(str(encode(f"rec.{suffix}", **recording()))) for suffix in ("mp4", "mov", "mkv", "flv")]
    assert {(video.fps, duration(video)) for video in found} == {(found[0].fps, duration(found[0]))}
    for k in range(70):
        assert len({video.times.seconds(k) for video in found}) == 1


CUT: dict[str, dict] = {
    "no_b_frames.avi": {"options": NO_B_FRAMES},
    "sound.avi": {"options": NO_B_FRAMES, "sound": "libmp3lame"},
    "mp3.avi": {"codec": "mpeg4", "sound": "libmp3lame"},
    "null_frames.avi": {"codec": "mpeg4", "stamps": [4 * k + k % 3 for k in range(30)]},
    "long_last.mkv": {"options": NO_B_FRAMES, "last": 100},
    "long_last.flv": {"options": NO_B_FRAMES, "last": 100},
    "rec.mp4": recording(),
    "rec.mov": recording(),
    "rec.mkv": recording(),
    "rec.flv": recording(),
    "rec.webm": recording(codec="libvpx-vp9", options=REAL_TIME),
}
"""Containers that know how long they are."""


@pytest.mark.parametrize("name", CUT)
def test_cut_at_60_percent(name: str, encode, ffmpeg_frames) -> None:
    """The cut is found, and the frames before it are right."""
    muxer = {"movflags": "faststart"} if name.endswith(("mp4", "mov")) else {}
    path = encode(name, 40, **CUT[name], size=(128, 160), muxer=muxer)
    whole, data = ffmpeg_frames(path), path.read_bytes()
    assert load_video(str(path)).frames.equal(whole)
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(UserError, match="is truncated; only [0-9]+ frames can be read") as caught:
        load_video(str(path))
    left = int(str(caught.value).split("only ")[1].split()[0])
    assert 0 < left < len(whole) and "\n" not in str(caught.value)
    assert load_video(str(path), frames=f"0:{left}").frames.equal(whole[:left])


# Names and tags


def test_tags_that_are_not_utf_8(encode, ffmpeg_frames) -> None:
    path = encode("tags.mp4")
    with av.open(str(path)) as old, av.open(str(path.with_name("titled.mp4")), "w") as new:
        new.metadata["title"] = "cafXXX"
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    path = path.with_name("titled.mp4")
    data = path.read_bytes()
    assert data.count(b"cafXXX") == 1
    path.write_bytes(data.replace(b"cafXXX", b"caf\xe9\xff\x80"))
    check(path, 12, 0.48, 25, ffmpeg_frames(path))


def test_file_name_that_is_not_utf_8(encode, tmp_path: Path, ffmpeg_frames) -> None:
    path = encode("plain.mp4")
    expected = ffmpeg_frames(path)
    try:
        path = path.rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    check(path, 12, 0.48, 25, expected)


# Fields


def raw_dv(path: Path, size: tuple[int, int], pix_fmt: str, rate: Fraction, scene) -> Path:
    """A DV file is its frames, one after the other."""
    encoder = av.CodecContext.create("dvvideo", "w")
    (encoder.height, encoder.width), encoder.pix_fmt = size, pix_fmt
    encoder.time_base, encoder.framerate = 1 / rate, rate
    data = b""
    for k, pixels in enumerate(scene(4, *size)):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
        frame.pts, frame.time_base = k, 1 / rate
        data += b"".join(bytes(packet) for packet in encoder.encode(frame))
    path.write_bytes(data)
    return path


DV = {"pal": ((576, 720), "yuv420p", Fraction(25)), "ntsc": ((480, 720), "yuv411p", NTSC)}


@pytest.mark.parametrize("norm", DV)
def test_raw_dv(norm: str, tmp_path: Path, scene, ffmpeg_frames) -> None:
    size, pix_fmt, rate = DV[norm]
    path = raw_dv(tmp_path / "tape.dv", size, pix_fmt, rate, scene)
    check(path, 4, 4 / rate, float(rate), ffmpeg_frames(path))


FIELDS = {
    "h264.mp4": {"options": TOP_FIRST, "interlaced": True},
    "h264.ts": {"options": TOP_FIRST, "interlaced": True},
    "h264-10.mkv": {"options": TOP_FIRST, "interlaced": True, "pix_fmt": "yuv420p10le"},
    "mpeg2.mpg": {"codec": "mpeg2video", "interlaced": True},
    "mpeg2.mkv": {"codec": "mpeg2video", "interlaced": True},
    "tape.dv": {},
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("reader", ["", "decord"])
def test_fields_are_converted_one_by_one(name, reader, encode, tmp_path, scene, ffmpeg_frames, monkeypatch) -> None:
    """Chroma rows of 4:2:0 belong to one field each; read as those of a full frame, they are of the wrong moment."""
    path = raw_dv(tmp_path / name, *DV["pal"], scene) if name == "tape.dv" else encode(name, **FIELDS[name])
    by_field, progressive = ffmpeg_frames(path, interlaced=1), ffmpeg_frames(path, interlaced=0)
    assert not by_field.equal(progressive)
    plain = load_video(str(path))
    monkeypatch.setenv("HNERV_READER", reader)
    video = load_video(str(path))
    assert video.reader == "pyav" and video.frames.equal(by_field) and video.digest == plain.digest


def test_decord_gives_the_same_for_a_simple_file(encode, monkeypatch) -> None:
    path = encode("plain.mp4", count=20)
    plain = load_video(str(path))
    monkeypatch.setenv("HNERV_READER", "decord")
    video = load_video(str(path))
    assert (plain.reader, video.reader) == ("pyav", "decord")
    assert video.digest == plain.digest and video.times is None and video.fps == 25


# Frames that packets hide, and packets that give no frame


def decoded(codec: str, packets: list[bytes]) -> list[np.ndarray]:
    decoder = av.CodecContext.create(codec, "r")
    frames = [frame for data in [*packets, None] for frame in decoder.decode(av.Packet(data) if data else None)]
    return [frame.to_ndarray() for frame in frames]


def hidden_vp9(packets: list[bytes], k: int) -> bytes:
    """Packet k, an inter frame of profile 0, with show_frame = 0: the header then has intra_only = 0 behind 8 bits.

    A bit of the header's padding goes instead. Its length is not marked: it is right where all other frames are what
    they were, which resilient ones are (others take motion vectors from a frame before that was shown).
    """
    expected = decoded("vp9", packets)
    del expected[k]
    for length in range(6, 30):
        bits = f"{int.from_bytes(packets[k][:length]):0{8 * length}b}"
        bits = f"{bits[:6]}0{bits[7]}0{bits[8:-1]}"
        candidate = int(bits, 2).to_bytes(length) + packets[k][length:]
        try:
            found = decoded("vp9", [*packets[:k], candidate, *packets[k + 1 :]])
        except av.error.FFmpegError:
            continue
        if len(found) == len(expected) and all(map(np.array_equal, found, expected)):
            return candidate
    raise AssertionError("no padding to take a bit of")


def superframe(first: bytes, second: bytes) -> bytes:
    """Two VP9 frames in one packet. Source: annex B of the VP9 bitstream specification, here with sizes of 4 bytes."""
    marker = bytes([0b110_11_001])
    return first + second + marker + b"".join(len(part).to_bytes(4, "little") for part in (first, second)) + marker


@pytest.mark.parametrize("kind", ["vp8", "vp9", "vp9 superframe"])
@pytest.mark.parametrize("suffix", ["webm", "mkv"])
def test_alternate_reference_frames(kind: str, suffix: str, encode, remux, tmp_path: Path, ffmpeg_frames) -> None:
    """Frames 4 and 9 of 20 are not shown; those that lean on them are as they were."""
    hidden, packets = (4, 9), []
    path = encode(f"all.{suffix}", 20, codec="libvpx" if kind == "vp8" else "libvpx-vp9", options=RESILIENT)
    remux(path, tmp_path / "copy.webm", lambda k, data: packets.append(data))
    edited = dict(enumerate(packets))
    for k in hidden:
        edited[k] = bytes([packets[k][0] & ~0x10]) + packets[k][1:] if kind == "vp8" else hidden_vp9(packets, k)
        if kind == "vp9 superframe":
            edited[k + 1], edited[k] = superframe(edited[k], edited[k + 1]), None
    target = remux(path, tmp_path / f"hidden.{suffix}", lambda k, data: edited[k])
    shown = [k for k in range(20) if k not in hidden]
    assert ffmpeg_frames(target).equal(ffmpeg_frames(path)[shown])
    video = load_video(str(target))
    assert video.frames.equal(ffmpeg_frames(target)) and frame_count(str(target)) == 18
    assert [video.times.seconds(k) for k in range(18)] == pytest.approx([k / 25 for k in shown], abs=1e-3)
    check_segments(target, 18)


@pytest.mark.parametrize("profile", range(4))
@pytest.mark.parametrize("inter", [0, 1])
@pytest.mark.parametrize("shown", [0, 1])
def test_shown_flag_of_vp9_profiles(profile: int, inter: int, shown: int) -> None:
    """frame_marker, profile_low_bit, profile_high_bit, reserved in profile 3, show_existing_frame, frame_type, ..."""
    bits = f"10{profile & 1}{profile >> 1}{'0' * (profile == 3)}0{inter}{shown}" + "0" * 9
    assert _shows("vp9", int(bits[:16], 2).to_bytes(2)) is bool(shown)


def check_segments(path: Path, total: int) -> None:
    """Training in segments of at most 8 frames covers exactly the frames that can be decoded."""
    plan, whole = plan_video(str(path), "", ChunkOptions(8)), load_video(str(path)).frames
    assert plan.total == plan.count == len(whole) == total
    parts = [load_video(str(path), frames=segment.frames).frames for segment in plan.chunks]
    assert max(map(len, parts)) <= 8 and torch.cat(parts).equal(whole)


MID_GOP = {
    "h264.ts": {"options": {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=0"}},
    "b_frames.ts": {"options": {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=2:b-adapt=0"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"g": "8", "sc_threshold": "1000000000"}},
    "h264.mkv": {"options": {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=0"}},
}


@pytest.mark.parametrize("name", MID_GOP)
def test_start_inside_a_group_of_pictures(name: str, encode, remux, tmp_path: Path, ffmpeg_frames) -> None:
    """28 frames in groups of 8, of which the first 3 packets are lost: 20 frames from the second key frame on."""
    path = encode(name, 28, **MID_GOP[name])
    whole = ffmpeg_frames(path)
    cut = remux(path, tmp_path / f"midgop-{name}", lambda k, data: data if k >= 3 else None)
    expected = ffmpeg_frames(cut)
    assert expected.equal(whole[8:])
    check(cut, 20, 0.8, 25, expected)
    check_segments(cut, 20)


# Colours


@pytest.fixture
def log(caplog) -> Callable[[], list[str]]:
    """log() -> the warnings so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


MASTERED = (
    "hdr10=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
)


@pytest.mark.parametrize(
    ("name", "transfer", "word", "settings"),
    [
        ("hdr10.mp4", 16, "PQ", {"codec": "libx265", "options": {"x265-params": f"{X265}:{MASTERED}"}}),
        ("hdr10.mkv", 16, "PQ", {"codec": "libsvtav1", "options": {"svtav1-params": "lp=1"}}),
        ("hlg.mp4", 18, "HLG", {"codec": "libx265", "options": {"x265-params": X265}}),
        ("hlg.mov", 18, "HLG", {"options": {}}),
    ],
)
def test_hdr_is_named_once(name, transfer, word, settings, encode, ffmpeg_frames, log) -> None:
    path = encode(name, **settings, pix_fmt="yuv420p10le", setup=tagged(9, transfer, 9, 1))
    videos = [load_video(str(path)) for _ in range(2)]
    assert videos[0].display == (9, transfer, 9, 1, 1, 1)
    assert videos[0].frames.equal(ffmpeg_frames(path))
    assert [name in line and word in line and "\n" not in line for line in log()] == [True]


def test_sdr_is_not_named(encode, log) -> None:
    video = load_video(str(encode("sdr.mp4", setup=tagged(1, 1, 1, 1))))
    assert video.display == (1, 1, 1, 1, 1, 1) and log() == []


CHROMA = {"left": 0, "center": 1, "topleft": 2, "top": 3, "bottomleft": 4, "bottom": 5}


@pytest.mark.parametrize("chroma", CHROMA)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_chroma_is_taken_from_where_it_sits(pix_fmt: str, chroma: str, encode, ffmpeg_frames) -> None:
    """BT.2020 has it at the top left. FFmpeg's fast conversion of 8 bits repeats each chroma value, wherever it is."""
    path = encode("sited.mkv", pix_fmt=pix_fmt, options={"x264-params": f"chromaloc={CHROMA[chroma]}"})
    expected = ffmpeg_frames(path, chroma=chroma)
    if pix_fmt == "yuv420p10le" and chroma != "left":
        assert not expected.equal(ffmpeg_frames(path))
    assert load_video(str(path)).frames.equal(expected)


def patches(path: Path, pix_fmt: str, values: np.ndarray, setup: Callable) -> Path:
    """Frames of flat colour, 16x16, or of one row after the other: values (N, planes) or (N, 1, rows)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, pix_fmt
        setup(stream)
        for k, planes in enumerate(values):
            frame = av.VideoFrame(16, 16, pix_fmt)
            for plane, value in zip(frame.planes, planes, strict=True):
                row = np.zeros((plane.height, plane.line_size // 2), "<u2")
                row[:] = np.reshape(value, (-1, 1))
                plane.update(row.tobytes())
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_grey_of_10_bits_keeps_its_high_bits(tmp_path: Path) -> None:
    """All 1024 values, 16 rows a frame. FFmpeg takes full range of 10 bits as 4 times that of 8."""
    ramp = np.arange(1024).reshape(64, 1, 16)
    path = patches(tmp_path / "ramp.mkv", "gray10le", ramp, lambda stream: None)
    found = load_video(str(path)).frames.numpy().astype(float)
    assert np.ptp(found, axis=(1, 3)).max() == 0
    exact = np.minimum(ramp.reshape(64, 16) / 4, 255)
    assert np.abs(found[:, 0, :, 0] - exact).max() <= 0.5 + ROUNDING
    assert np.abs(found[:, 0, :, 0] - ramp.reshape(64, 16) * 255 / 1023).max() <= 1.25


ROUNDING = 0.05
"""Levels by which fixed-point tables may round another way than exact arithmetic."""
WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Of red and blue in luma, by the matrix of H.273."""


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("range_", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_colours_of_10_bits_are_those_of_the_matrix(matrix: int, range_: int, pix_fmt: str, tmp_path: Path) -> None:
    """By the equations of H.273: R = Y + 2 (1 - Kr) Cr, B = Y + 2 (1 - Kb) Cb, and Y = Kr R + Kg G + Kb B.

    Scaled to 8 bits by 1/4 before, in full range too, as FFmpeg does.
    """
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.integers(64, 941, (40, 1)), draw.integers(412, 612, (40, 2))], 1)
    path = patches(tmp_path / "flat.mkv", pix_fmt, values, tagged(1, 1, matrix, range_))
    video = load_video(str(path))
    assert video.display[2:4] == (matrix, range_)
    found = video.frames.numpy().astype(float)
    assert np.ptp(found, axis=(2, 3)).max() == 0
    luma = (values[:, 0] / 4 - 16) / 219 if range_ == 1 else values[:, 0] / 4 / 255
    cb, cr = (values[:, 1:].T / 4 - 128) / (224 if range_ == 1 else 255)
    kr, kb = WEIGHTS[matrix]
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    exact = 255 * np.clip(np.stack([red, green, blue], 1), 0, 1)
    assert np.abs(found[:, :, 0, 0] - exact).max() <= 0.5 + ROUNDING


# Shape of a pixel


@pytest.mark.parametrize(
    ("rotation", "resize", "expected"),
    [
        (None, "", (2, 1)),
        (90, "", (1, 2)),
        (-90, "", (1, 2)),
        (180, "", (2, 1)),
        (None, "64x48", (4, 1)),  # 96 columns become 48, each twice as wide
        (None, "32x96", (1, 1)),  # 64 rows become 32
        (None, "32x48", (2, 1)),
        (90, "96x32", (1, 1)),  # 96x64 upright: 64 columns become 32
    ],
)
def test_pixel_aspect(rotation: int | None, resize: str, expected: tuple[int, int], encode, ffmpeg_frames) -> None:
    def setup(stream: av.video.stream.VideoStream) -> None:
        shaped(2, 1)(stream)
        if rotation is not None:
            stream.set_display_rotation(rotation)

    path = encode("sar.mp4", setup=setup)
    size = "96x64" if rotation == 90 else "64x96"
    video = load_video(str(path), **({"resize": resize, "crop": size} if resize else {}))
    assert (video.display.wide, video.display.high) == expected
    if not resize:
        assert video.frames.equal(torch.rot90(ffmpeg_frames(path), (rotation or 0) // 90, (2, 3)))


# Transparency


def with_alpha(path: Path, codec: str, pix_fmt: str, alpha: np.ndarray, scene) -> Path:
    """8 frames of 64x96 with this alpha (64, 96), in a container of the name."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=REAL_TIME if codec.startswith("libvpx") else {})
        stream.height, stream.width, stream.pix_fmt = 64, 96, pix_fmt
        for k, pixels in enumerate(scene(8, 64, 96)):
            frame = av.VideoFrame.from_ndarray(np.dstack([pixels, alpha]), format="rgba").reformat(format=pix_fmt)
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


OPAQUE = np.full((64, 96), 255, np.uint8)
HALF = np.where(np.arange(96) < 48, 0, OPAQUE).astype(np.uint8)


def advised_frames(path: Path, advice: str) -> list[np.ndarray]:
    """Run the command that a message advises, as PyAV can: its decoder, and its -vf chain."""
    words = advice.split("ffmpeg ")[1].split()
    name = words[words.index("-c:v") + 1] if "-c:v" in words[: words.index("-i")] else None
    assert words[words.index("-i") + 1] == path.name
    chain = words[words.index("-vf") + 1]
    frames, graph = [], None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = av.CodecContext.create(name, "r") if name else stream.codec_context
        for packet in container.demux(stream):
            for frame in decoder.decode(packet if packet.size else None):
                if graph is None:
                    graph = av.filter.Graph()
                    buffer = graph.add("buffer", f"video_size=96x64:pix_fmt={frame.format.name}:time_base=1/25")
                    filters = [step.split("=", 1) for step in chain.split(",")]
                    links = [buffer, *(graph.add(*step) for step in filters), graph.add("buffersink")]
                    graph.link_nodes(*links).configure()
                graph.push(frame)
                frames.append(graph.pull().to_ndarray(format="rgb24"))
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.webm", "libvpx-vp9", "yuva420p"), ("a8.webm", "libvpx", "yuva420p"), ("a.mkv", "ffv1", "bgra")],
)
def test_transparent_pixels_are_refused(name: str, codec: str, pix_fmt: str, tmp_path: Path, scene) -> None:
    """And the command that the message gives puts them on black, where they are shown so."""
    path = with_alpha(tmp_path / name, codec, pix_fmt, HALF, scene)
    with pytest.raises(UserError, match="has transparency \\(alpha\\), which a video frame cannot have: ") as caught:
        load_video(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    fixed = advised_frames(path, str(caught.value))
    assert len(fixed) == 8
    for frame, pixels in zip(fixed, scene(8, 64, 96), strict=True):
        assert frame[:, :40].max() <= 12
        assert np.abs(frame[:, 56:].astype(int) - pixels[:, 56:]).mean() < 12


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "ffv1", "bgra"), ("a.mov", "png", "rgba")])
def test_opaque_alpha_is_read(name: str, codec: str, pix_fmt: str, tmp_path: Path, scene) -> None:
    video = load_video(str(with_alpha(tmp_path / name, codec, pix_fmt, OPAQUE, scene)))
    assert np.array_equal(video.frames.permute(0, 2, 3, 1).numpy(), np.stack(scene(8, 64, 96)))
    one = OPAQUE.copy()
    one[63, 95] = 254
    with pytest.raises(UserError, match="has transparency"):
        load_video(str(with_alpha(tmp_path / name, codec, pix_fmt, one, scene)))


@pytest.mark.parametrize("metadata", [{}, {"alpha_mode": "1"}])
def test_alpha_of_a_remuxed_file_is_not_lost(metadata: dict, tmp_path: Path, scene) -> None:
    """FFmpeg copies the alpha of each packet, but may leave out, or spell ALPHA_MODE, what its decoder goes by."""
    path = with_alpha(tmp_path / "a.webm", "libvpx-vp9", "yuva420p", HALF, scene)
    with av.open(str(path)) as old, av.open(str(tmp_path / "copy.webm"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.metadata.update(metadata)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    with av.open(str(tmp_path / "copy.webm")) as copy:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        [frame, *_] = [frame for packet in copy.demux(video=0) for frame in decoder.decode(packet)]
        assert frame.to_ndarray(format="rgba")[..., 3].min() < 255
    with pytest.raises(UserError, match="has transparency"):
        load_video(str(tmp_path / "copy.webm"))


# Sources without time stamps


@pytest.fixture
def pictures(tmp_path: Path, scene) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, pixels in enumerate(scene(5, 64, 96)):
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def test_rate_of_a_folder(pictures: Path) -> None:
    assert load_video(str(pictures)).fps == 24 and load_video(str(pictures), fps=50).fps == 50
    assert load_video(str(pictures), fps=29.97).fps == pytest.approx(30000 / 1001, abs=1e-9)
    assert load_video(str(pictures), fps=50).times is None


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "plain.ts", "plain.avi"])
def test_rate_of_a_file_with_time_stamps_is_not_changed(name: str, encode) -> None:
    path = encode(name, options=NO_B_FRAMES)
    with pytest.raises(UserError, match="has time stamps, of 25 frames per second: remove --fps") as caught:
        load_video(str(path), fps=50)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [NO_B_FRAMES, {}])
def test_rate_of_a_stream_without_time_stamps(options: dict, encode, ffmpeg_frames) -> None:
    path = encode("stream.h264", 20, options=options)
    check(path, 20, 0.8, 25, ffmpeg_frames(path))
    video = load_video(str(path), fps=50)
    assert (video.fps, video.times) == (50, None) and duration(video) == 0.4


# Raw video

FORMATS = [f"yuv{chroma}p{depth}" for chroma in (420, 422, 444) for depth in ("", "10le")] + ["gray", "gray10le"]


def raw_frames(pix_fmt: str, width: int, height: int, count: int) -> tuple[bytes, list[np.ndarray]]:
    """Random planes: the bytes of a raw file, and its frames in RGB by FFmpeg's scale filter."""
    draw, data, frames, graph = np.random.default_rng(0), b"", [], av.filter.Graph()
    links = (
        graph.add("buffer", f"video_size={width}x{height}:pix_fmt={pix_fmt}:time_base=1/1:pixel_aspect=1/1"),
        graph.add("scale", f"flags=bilinear{'+full_chroma_int' if pix_fmt.endswith('10le') else ''}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    )
    graph.link_nodes(*links).configure()
    dtype, top = ("<u2", 1024) if pix_fmt.endswith("10le") else ("u1", 256)
    for _ in range(count):
        frame = av.VideoFrame(width, height, pix_fmt)
        for plane in frame.planes:
            values = draw.integers(0, top, (plane.height, plane.width)).astype(dtype)
            padded = np.zeros((plane.height, plane.line_size // values.itemsize), dtype)
            padded[:, : plane.width] = values
            plane.update(padded.tobytes())
            data += values.tobytes()
        graph.push(frame)
        frames.append(graph.pull().to_ndarray())
    return data, frames


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("size", [(96, 64), (50, 34)])
def test_raw_video(pix_fmt: str, named: bool, size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    data, expected = raw_frames(pix_fmt, width, height, 3)
    chroma, depth = pix_fmt.removeprefix("yuv")[:3], 10 if pix_fmt.endswith("10le") else 8
    chroma = chroma if chroma.isdigit() else "400"
    path = tmp_path / (f"Beauty_{width}x{height}_120fps_{chroma}_{depth}bit_YUV.yuv" if named else "beauty.raw")
    path.write_bytes(data)
    geometry = "" if named else f"{width}x{height}:{pix_fmt}:120"
    video = load_video(str(path), raw_video=geometry)
    assert (video.fps, video.times, len(video.frames)) == (120, None, 3)
    assert frame_count(str(path), raw_video=geometry) == 3
    assert np.array_equal(video.frames.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert load_video(str(path), raw_video=geometry, fps=60).fps == 60
    assert load_video(str(path), raw_video=geometry, frames="1:2").frames.equal(video.frames[1:2])


def test_raw_video_without_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "akiyo_qcif.yuv"
    path.write_bytes(raw_frames("yuv420p", 176, 144, 2)[0])
    assert load_video(str(path)).fps == 24 and load_video(str(path), fps=30).fps == 30


@pytest.mark.parametrize(
    ("name", "geometry", "message"),
    [
        ("beauty.yuv", "", "its name does not give its size: pass --raw-video"),
        ("a_96x66.yuv", "", "no multiple of the 9504 bytes of a 96x66:yuv420p frame: pass its geometry with --raw-vid"),
        ("a.yuv", "96x64:yuv420p10le", "no multiple of the 18432 bytes"),
        ("a.yuv", "96x64:yuv421p", "--raw-video '96x64:yuv421p'"),
        ("a.yuv", "96x64", "--raw-video '96x64'"),
        ("a.yuv", "96:yuv420p", "--raw-video '96'"),
        ("a.yuv", "96x64:yuv420p:fast", "--raw-video '96x64:yuv420p:fast'"),
        ("a.yuv", "96x64:yuv420p:0", "--raw-video '96x64:yuv420p:0'"),
        ("a.yuv", "0x64:yuv420p", "--raw-video '0x64'"),
    ],
)
def test_raw_video_refused(name: str, geometry: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(96 * 64 * 3 // 2 * 3))
    with pytest.raises(UserError) as caught:
        load_video(str(path), raw_video=geometry)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "--raw-video" in str(caught.value)


GEOMETRIES = {
    # UVG
    "Beauty_1920x1080_120fps_420_8bit_YUV.yuv": "1920x1080:yuv420p:120",
    "Beauty_3840x2160_120fps_420_10bit_YUV.yuv": "3840x2160:yuv420p10le:120",
    "CityAlley_3840x2160_50fps_420_10bit_YUV.yuv": "3840x2160:yuv420p10le:50",
    "ReadySteadyGo_1920x1080_120fps_420_8bit_YUV.yuv": "1920x1080:yuv420p:120",
    # JVET common test conditions
    "BasketballDrive_1920x1080_50.yuv": "1920x1080:yuv420p:50",
    "Cactus_1920x1080_50.yuv": "1920x1080:yuv420p:50",
    "Cactus_1920x1080_50fps_10bit_420.yuv": "1920x1080:yuv420p10le:50",
    "FoodMarket4_3840x2160_60fps_10bit_420.yuv": "3840x2160:yuv420p10le:60",
    "CatRobot_3840x2160_60fps_10bit_420_jvet.yuv": "3840x2160:yuv420p10le:60",
    "Tango2_3840x2160_60fps_10bit_420.yuv": "3840x2160:yuv420p10le:60",
    "BQMall_832x480_60.yuv": "832x480:yuv420p:60",
    "BQSquare_416x240_60.yuv": "416x240:yuv420p:60",
    "FourPeople_1280x720_60.yuv": "1280x720:yuv420p:60",
    "ArenaOfValor_1920x1080_60_8bit_420.yuv": "1920x1080:yuv420p:60",
    "MarketPlace_1920x1080_60fps_10bit_420.yuv": "1920x1080:yuv420p10le:60",
    "Kimono1_1920x1080_24.yuv": "1920x1080:yuv420p:24",
    # Xiph, VQEG and others
    "akiyo_cif.yuv": "352x288:yuv420p",
    "carphone_qcif.yuv": "176x144:yuv420p",
    "city_4cif.yuv": "704x576:yuv420p",
    "mobile_calendar_720p.yuv": "1280x720:yuv420p",
    "crowd_run_1080p50.yuv": "1920x1080:yuv420p:50",
    "ducks_take_off_1080p_50fps.yuv": "1920x1080:yuv420p:50",
    "foreman_352x288_30fps_8b_420.yuv": "352x288:yuv420p:30",
    "foreman_352x288_29.97fps.yuv": "352x288:yuv420p:29.97",
    "x_1920x1080_yuv444p10le.yuv": "1920x1080:yuv444p10le",
    "x_1920x1080_yuv422p.yuv": "1920x1080:yuv422p",
    "x_1920x1080_60_422_10b.yuv": "1920x1080:yuv422p10le:60",
    "x_1920x1080_400_10bit.yuv": "1920x1080:gray10le",
    "x_1920x1080_444_8bit.yuv": "1920x1080:yuv444p",
    "foreman_352x288_420.yuv": "352x288:yuv420p",
    "foreman_352x288_420_30.yuv": "352x288:yuv420p",
    "Traffic_2560x1600_30_crop.yuv": "2560x1600:yuv420p:30",
    "Beauty_8bit_1920x1080_120fps.yuv": "1920x1080:yuv420p:120",
    # No size
    "beauty.yuv": "",
    "take_2.yuv": "",
    "video_1920.yuv": "",
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_of_names(name: str) -> None:
    assert geometry_of(name) == GEOMETRIES[name]


# Animated images


@pytest.mark.parametrize(("name", "how"), [("a.webp", {"lossless": True}), ("a.png", {}), ("a.apng", {})])
@pytest.mark.parametrize("steps", [[40] * 8, [100, 40, 40, 500, 40, 40, 250, 40]])
def test_animated_image_alone(name: str, how: dict, steps: list[int], tmp_path: Path, scene) -> None:
    first, *others = map(Image.fromarray, scene(8, 64, 96))
    form = "WEBP" if name == "a.webp" else "PNG"
    first.save(tmp_path / name, form, save_all=True, append_images=others, duration=steps, **how)
    video = load_video(str(tmp_path / name))
    assert np.array_equal(video.frames.permute(0, 2, 3, 1).numpy(), np.stack(scene(8, 64, 96)))
    assert frame_count(str(tmp_path / name)) == 8
    assert video.fps == pytest.approx(8000 / sum(steps)) and duration(video) == pytest.approx(sum(steps) / 1000)
    starts = list(itertools.accumulate(steps[:-1], initial=0))
    assert (video.times is None) == (len(set(steps)) == 1)
    if video.times:
        assert [video.times.seconds(k) for k in range(8)] == pytest.approx([start / 1000 for start in starts])
    with pytest.raises(UserError, match="has time stamps"):
        load_video(str(tmp_path / name), fps=50)
