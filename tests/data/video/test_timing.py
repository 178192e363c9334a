"""Counts, durations, rates and time stamps, computed by hand, of files that other readers get wrong."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hnerv.data.video import Video, frame_count, load_video
from hnerv.data.video.container import shows_frame
from hnerv.errors import UserError

MILLI = Fraction(1, 1000)
REAL_TIME = {"cpu-used": "8", "deadline": "realtime", "lag-in-frames": "0", "auto-alt-ref": "0"}
NO_B_FRAMES = {"bf": "0"}
GROUPS_OF_8 = {"g": "8", "bf": "0", "sc_threshold": "0"}
RECORDING = [*range(0, 5000, 100), *range(5000, 25000, 1000)]
"""Milliseconds of 70 frames in 24.1 s: 50 at 10 a second, then 20 at 1 a second, the last one shown for 0.1 s."""
DROPPED = [0, 1, 2, 5, 6, 7, 8, 10, 11, 12]
"""Of 13 frames, 10 that were captured."""
UNEVEN = [*range(14), 20, 21, 22, 30, 40, 50]
"""Ticks of 1/25 s."""


def duration(video: Video) -> float:
    """Seconds from the first frame to the end of the last one."""
    if video.times is None:
        return len(video.frames) / video.fps
    return video.times.seconds(len(video.frames) - 1) + float(video.times.median_step * video.times.tick)


def seconds_of(video: Video) -> list[float]:
    return [video.times.seconds(k) if video.times else k / video.fps for k in range(len(video.frames))]


def recording(tick: Fraction = MILLI, **settings) -> dict:
    stamps = [int(stamp * MILLI / tick) for stamp in RECORDING]
    own = {"stamps": stamps, "tick": tick, "last": int(100 * MILLI / tick), "rate": 10, "options": NO_B_FRAMES}
    return own | settings


MPEG_2 = {"codec": "mpeg2video", "sound": "mp2"}
CONSTANT: dict[str, dict] = {
    "ps.mpg": MPEG_2,
    "disc.vob": MPEG_2 | {"container": "vob"},
    "list.m3u8": {"options": {"g": "5", "bf": "0"}, "muxer": {"hls_time": "0.2", "hls_list_size": "0"}},
    "mp3.avi": {"codec": "mpeg4", "sound": "libmp3lame"},
    "no_b_frames.avi": {"options": NO_B_FRAMES},
    "long_last.mkv": {"last": 100, "options": NO_B_FRAMES},
    "long_last.flv": {"last": 100, "options": NO_B_FRAMES},
    "stream.h264": {},
    "no_b_frames.h264": {"options": NO_B_FRAMES},
}
VARIABLE: dict[str, dict] = {
    "rec.mp4": recording(),
    "rec.mov": recording(),
    "rec.mkv": recording(),
    "rec.flv": recording(),
    "rec.ts": recording(Fraction(1, 90000)),
    "rec-vp8.webm": recording(codec="libvpx", options=REAL_TIME),
    "rec-vp9.webm": recording(codec="libvpx-vp9", options=REAL_TIME),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constant_rate(name: str, encode, ffmpeg_frames) -> None:
    path = encode(name, 20, **CONSTANT[name])
    video = load_video(str(path))
    assert (len(video.frames), frame_count(str(path)), video.fps, video.times) == (20, 20, 25, None)
    assert video.frames.equal(ffmpeg_frames(path))


@pytest.mark.parametrize("name", VARIABLE)
def test_variable_rate(name: str, encode, ffmpeg_frames) -> None:
    """Rate, duration and time stamps do not depend on the container."""
    path = encode(name, **VARIABLE[name])
    video = load_video(str(path))
    assert (len(video.frames), frame_count(str(path))) == (70, 70) and video.frames.equal(ffmpeg_frames(path))
    assert video.fps == pytest.approx(70 / 24.1) and duration(video) == pytest.approx(24.1)
    assert seconds_of(video) == pytest.approx([stamp / 1000 for stamp in RECORDING])


def test_empty_chunks_of_avi(encode) -> None:
    """Frames that were not captured are chunks without data: time passes, no frame is shown."""
    video = load_video(str(encode("null_frames.avi", codec="mpeg4", stamps=DROPPED)))
    assert (len(video.frames), video.fps, duration(video)) == (10, pytest.approx(10 / 0.52), pytest.approx(0.52))
    assert seconds_of(video) == pytest.approx([stamp / 25 for stamp in DROPPED])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(
    "stamps",
    [
        [0, 40, 80, 900_000, 900_040],
        [-400, -360, -320, 0, 40, 80],
        [-400, -360, -320, -280, 0],
    ],
    ids=["long gap", "negative", "all negative but one"],
)
def test_odd_stamps(stamps: list[int], suffix: str, encode, ffmpeg_frames) -> None:
    path = encode(f"a.{suffix}", stamps=stamps, tick=MILLI, rate=25, options=NO_B_FRAMES)
    video = load_video(str(path))
    assert video.frames.equal(ffmpeg_frames(path)) and video.fps > 0


@pytest.mark.parametrize("name", ["one.mp4", "one.mkv"])
def test_single_frame(name: str, encode) -> None:
    video = load_video(str(encode(name, 1)))
    assert (len(video.frames), video.fps, video.times) == (1, 25, None)


def test_stamps_rounded_before_remuxing(encode, remux, tmp_path: Path) -> None:
    """Milliseconds of Matroska in the finer ticks of MP4."""
    video = load_video(str(remux(encode("a.mkv", 48, tick=Fraction(1, 30), options=NO_B_FRAMES), tmp_path / "a.mp4")))
    assert (video.fps, video.times) == (30, None)


def test_concatenated_recordings(encode, tmp_path: Path) -> None:
    """Each half has a clock of its own."""
    path = tmp_path / "both.ts"
    path.write_bytes(encode("half.ts", 20, options=GROUPS_OF_8).read_bytes() * 2)
    video = load_video(str(path))
    assert (len(video.frames), video.fps, video.times) == (40, 25, None)


# Packets that are hidden, and packets that give no frame


@pytest.fixture
def check_slices(plan):
    """check_slices(path, count) -> the video, after these checks.

    Slices have the pixels, rate and times that they have in the full file, and segments cover it exactly.
    """
    return functools.partial(_check_slices, plan)


def _check_slices(plan, path: Path, count: int) -> Video:
    full = load_video(str(path))
    assert len(full.frames) == count == frame_count(str(path))
    for start in range(0, count, 5):
        part = load_video(str(path), frames=f"{start}:{start + 5}")
        assert part.frames.equal(full.frames[start : start + 5]) and part.fps == full.fps
        assert seconds_of(part)[0] == pytest.approx(seconds_of(full)[start])
    assert load_video(str(path), frames="-3:").frames.equal(full.frames[-3:])
    division = plan(path)
    parts = [load_video(str(path), frames=segment.frames).frames for segment in division.chunks]
    assert division.count == count and max(map(len, parts)) <= 8 and torch.cat(parts).equal(full.frames)
    return full


def not_coded(data: bytes) -> bytes:
    """An MPEG-4 P-VOP at 25 frames a second, cut off after its vop_coded bit, cleared (ISO/IEC 14496-2, 6.2.5)."""
    start = data.index(b"\0\0\1\xb6") + 4
    bits = f"{int.from_bytes(data[start : start + 4], 'big'):032b}"
    end = bits.index("0", 2) + 2 + 5  # coding type, modulo_time_base, marker, time increment of 5 bits
    bits = bits[:end] + "1" + "0"  # marker, vop_coded
    bits += "1" * (-len(bits) % 8)
    return data[:start] + int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_mpeg4_packets_that_repeat_a_frame(name, encode, remux, tmp_path, check_slices, always_seek) -> None:
    source = encode(name, 40, codec="mpeg4", options={"g": "8", "bf": "0"})
    check_slices(remux(source, tmp_path / name, lambda k, data: not_coded(data) if k in (10, 21) else data), 38)


KEYS = "keyint=8:min-keyint=8:scenecut=0"
VPX = {"g": "8", "cpu-used": "8"}
MID_GOP = {
    "a.ts": {"options": {"x264-params": f"{KEYS}:bframes=0"}},
    "b_frames.ts": {"options": {"x264-params": f"{KEYS}:bframes=2:b-adapt=0"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"g": "8", "sc_threshold": "1000000000"}},
    "a.mkv": {"options": {"x264-params": f"{KEYS}:bframes=0"}},
    "vp8.webm": {"codec": "libvpx", "options": VPX},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VPX},
}


@pytest.mark.parametrize("name", MID_GOP)
def test_start_inside_a_group_of_pictures(
    name, encode, remux, tmp_path, ffmpeg_frames, check_slices, always_seek
) -> None:
    """28 frames in groups of 8, of which the first 3 packets are lost: 20 frames from the second key frame on."""
    path = encode(name, 28, **MID_GOP[name])
    cut = remux(path, tmp_path / name, lambda k, data: data if k >= 3 else None)
    assert check_slices(cut, 20).frames.equal(ffmpeg_frames(path)[8:])


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_variable_rate_from_inside_a_group_of_pictures(
    name, encode, remux, tmp_path, check_slices, always_seek
) -> None:
    source = encode(name, stamps=UNEVEN, options=GROUPS_OF_8)
    video = check_slices(remux(source, tmp_path / name, lambda k, data: data if k >= 4 else None), 12)
    assert seconds_of(video) == pytest.approx([(t - 8) / 25 for t in UNEVEN[8:]])


def decode_packets(codec: str, packets: list[bytes]) -> list[np.ndarray]:
    decoder = av.CodecContext.create(codec, "r")
    frames = [frame for data in [*packets, None] for frame in decoder.decode(av.Packet(data) if data else None)]
    return [frame.to_ndarray() for frame in frames]


def hide_vp9(packets: list[bytes], k: int) -> bytes:
    """Packet k, an inter frame of profile 0, with show_frame = 0, after which the header has a bit intra_only = 0.

    A bit of the header's padding makes room. Its position is not marked: it is right if all other frames stay the same,
    which error-resilient ones do (others take motion vectors from a shown frame before them).
    """
    expected = decode_packets("vp9", packets)
    del expected[k]
    for length in range(6, 30):
        bits = f"{int.from_bytes(packets[k][:length]):0{8 * length}b}"
        bits = f"{bits[:6]}0{bits[7]}0{bits[8:-1]}"
        candidate = int(bits, 2).to_bytes(length) + packets[k][length:]
        try:
            decoded = decode_packets("vp9", [*packets[:k], candidate, *packets[k + 1 :]])
        except av.error.FFmpegError:
            continue
        if len(decoded) == len(expected) and all(map(np.array_equal, decoded, expected)):
            return candidate
    raise AssertionError("no padding to take a bit of")


def superframe(first: bytes, second: bytes) -> bytes:
    """Two VP9 frames in one packet. Source: annex B of the VP9 bitstream specification, here with sizes of 4 bytes."""
    marker = bytes([0b110_11_001])
    return first + second + marker + b"".join(len(part).to_bytes(4, "little") for part in (first, second)) + marker


@pytest.mark.parametrize(
    ("kind", "suffix"), [("vp8", "webm"), ("vp8", "mkv"), ("vp9", "webm"), ("vp9 superframe", "mkv")]
)
def test_alternate_reference_frames(kind, suffix, encode, remux, tmp_path, ffmpeg_frames, check_slices) -> None:
    """Frames 4 and 9 of 20 are not shown; frames predicted from them do not change."""
    hidden, packets = (4, 9), []
    options = REAL_TIME | {"error-resilient": "1"}
    path = encode(f"all.{suffix}", 20, codec="libvpx" if kind == "vp8" else "libvpx-vp9", options=options)
    remux(path, tmp_path / "copy.webm", lambda k, data: packets.append(data))
    edited = dict(enumerate(packets))
    for k in hidden:
        edited[k] = bytes([packets[k][0] & ~0x10]) + packets[k][1:] if kind == "vp8" else hide_vp9(packets, k)
        if kind == "vp9 superframe":
            edited[k + 1], edited[k] = superframe(edited[k], edited[k + 1]), None
    target = remux(path, tmp_path / f"hidden.{suffix}", lambda k, data: edited[k])
    shown = [k for k in range(20) if k not in hidden]
    video = check_slices(target, 18)
    assert video.frames.equal(ffmpeg_frames(target)) and video.frames.equal(ffmpeg_frames(path)[shown])
    assert seconds_of(video) == pytest.approx([k / 25 for k in shown], abs=1e-3)


@pytest.mark.parametrize("profile", range(4))
def test_shown_flag_of_vp9_profiles(profile: int) -> None:
    """frame_marker, profile_low_bit, profile_high_bit, reserved in profile 3, show_existing_frame, frame_type, ..."""
    for inter in (0, 1):
        for shown in (0, 1):
            bits = f"10{profile & 1}{profile >> 1}{'0' * (profile == 3)}0{inter}{shown}" + "0" * 9
            assert shows_frame("vp9", int(bits[:16], 2).to_bytes(2)) is bool(shown)


# Sources without time stamps


def test_rate_of_a_folder(tmp_path: Path, scene) -> None:
    for k, pixels in enumerate(scene(3, 64, 96)):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    for fps, expected in ((0, 24), (50, 50), (29.97, 30000 / 1001)):
        video = load_video(str(tmp_path), fps=fps)
        assert (video.fps, video.times) == (pytest.approx(expected, abs=1e-9), None)


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "plain.ts", "plain.avi"])
def test_rate_of_a_file_with_time_stamps_is_not_changed(name: str, encode) -> None:
    with pytest.raises(UserError, match="has time stamps, of 25 frames per second: remove --fps") as caught:
        load_video(str(encode(name, options=NO_B_FRAMES)), fps=50)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "codec"), [("a.h264", "libx264"), ("a.m2v", "mpeg2video")])
def test_elementary_streams_take_a_rate(name: str, codec: str, encode) -> None:
    container = "mpeg2video" if codec == "mpeg2video" else None
    video = load_video(str(encode(name, codec=codec, container=container, options=NO_B_FRAMES)), fps=50)
    assert (len(video.frames), video.fps, video.times) == (12, 50, None)


@pytest.mark.parametrize(("name", "options"), [("a.webp", {"lossless": True}), ("a.png", {}), ("a.apng", {})])
@pytest.mark.parametrize("steps", [[40] * 8, [100, 40, 40, 500, 40, 40, 250, 40]])
def test_animated_image(name: str, options: dict, steps: list[int], tmp_path: Path, scene) -> None:
    first, *others = map(Image.fromarray, scene(8, 64, 96))
    form = "WEBP" if name == "a.webp" else "PNG"
    first.save(tmp_path / name, form, save_all=True, append_images=others, duration=steps, **options)
    video = load_video(str(tmp_path / name))
    assert np.array_equal(video.frames.permute(0, 2, 3, 1).numpy(), np.stack(scene(8, 64, 96)))
    assert frame_count(str(tmp_path / name)) == 8
    assert video.fps == pytest.approx(8000 / sum(steps)) and duration(video) == pytest.approx(sum(steps) / 1000)
    assert (video.times is None) == (len(set(steps)) == 1)
    assert seconds_of(video) == pytest.approx([sum(steps[:k]) / 1000 for k in range(8)])
    with pytest.raises(UserError, match="has time stamps"):
        load_video(str(tmp_path / name), fps=50)
