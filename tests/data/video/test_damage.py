"""Truncated and damaged files, and files that are not videos: intact frames are right, the rest is refused."""

from __future__ import annotations

import math
import os
import re
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hnerv.data.video import load_video
from hnerv.errors import UserError

NO_B_FRAMES = {"bf": "0"}
GROUPS_OF_8 = {"g": "8", "bf": "0", "sc_threshold": "0"}
CLOSED = {"x264-params": "keyint=6:min-keyint=6:bframes=3"}
NOISE = np.random.default_rng(0).bytes(4000)
RECORDING = {
    "stamps": [*range(0, 2000, 100), *range(2000, 22000, 1000)],
    "tick": Fraction(1, 1000),
    "last": 100,
    "rate": 10,
    "options": NO_B_FRAMES,
}


def refusal(path: Path, match: str, **options) -> str:
    """The message, of one line, with which a file is refused."""
    with pytest.raises(UserError, match=match) as caught:
        load_video(str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def advised_frames(message: str) -> str:
    return re.search(r"pass --frames (\d+:\d+),", message)[1]


TRUNCATED: dict[str, dict] = {
    "plain.mp4": {"options": {"g": "12"}},
    "plain.mkv": {"options": {"g": "12"}},
    "plain.flv": {"options": {"g": "12"}},
    "plain.avi": {"options": {"g": "12"}, "size": (128, 160)},
    "no_b_frames.avi": {"options": NO_B_FRAMES, "sound": "libmp3lame"},
    "mp3.avi": {"codec": "mpeg4", "sound": "libmp3lame"},
    "null_frames.avi": {"codec": "mpeg4", "stamps": [4 * k + k % 3 for k in range(30)], "size": (128, 160)},
    "long_last.mkv": {"options": NO_B_FRAMES, "last": 100},
    "long_last.flv": {"options": NO_B_FRAMES, "last": 100},
    "rec.mp4": RECORDING,
    "rec.mov": RECORDING,
    "rec.mkv": RECORDING,
    "rec.flv": RECORDING,
    "rec.webm": RECORDING | {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
}
"""Containers that state how long they are."""


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated(name: str, encode, ffmpeg_frames, tmp_path: Path) -> None:
    muxer = {"movflags": "faststart"} if name.endswith(("mp4", "mov")) else {}
    source, path = encode(name, 40, **TRUNCATED[name], muxer=muxer), tmp_path / name
    data, full = source.read_bytes(), ffmpeg_frames(source)
    for share in (0.5, 0.85):
        path.write_bytes(data[: int(len(data) * share)])
        message = refusal(path, r"is truncated; only \d+ frames can be read: .* copy or download it")
        left = int(advised_frames(message).split(":")[1])
        assert 0 < left < len(full) and f"only {left} frames" in message
        video = load_video(str(path), frames=f"0:{left}")
        assert video.reader == "pyav" and video.frames.equal(full[:left])
    for frames in (f"0:{left + 1}", "::2", "-3:", "0:-1"):
        refusal(path, "is truncated", frames=frames)


def test_truncated_before_the_first_frame_or_the_index(encode, tmp_path: Path) -> None:
    data, path = encode("a.mp4", muxer={"movflags": "faststart"}).read_bytes(), tmp_path / "a.mp4"
    path.write_bytes(data[: data.index(b"mdat") + 40])
    refusal(path, "is truncated before its first complete frame: copy or download it again")
    path.write_bytes(encode("a.mp4").read_bytes()[:-900])
    refusal(path, "is not a video, or is truncated before its index")


def test_truncated_variable_rate_has_one_rate_in_all_segments(encode, plan, tmp_path, always_seek) -> None:
    stamps = [*range(14), 20, 21, 22, 30, 40, 50]
    data, path = encode("a.mkv", stamps=stamps, options=GROUPS_OF_8).read_bytes(), tmp_path / "a.mkv"
    path.write_bytes(data[: int(0.93 * len(data))])
    advice = advised_frames(refusal(path, "is truncated"))
    division = plan(path, advice, 5)
    assert division.count == int(advice.split(":")[1]) > 10
    assert len({load_video(str(path), frames=segment.frames).fps for segment in division.chunks}) == 1


# Damage in the middle


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_damage_in_the_middle(pix_fmt: str, encode, ffmpeg_frames, tmp_path: Path) -> None:
    source, path = encode("a.mp4", 48, size=(128, 160), pix_fmt=pix_fmt), tmp_path / "damaged.mp4"
    data = source.read_bytes()
    middle = len(data) * 6 // 10
    path.write_bytes(data[:middle] + NOISE[:400] + data[middle + 400 :])
    advice = advised_frames(refusal(path, r"frame \d+ cannot be decoded \(.*\): pass --frames 0:\d+, or repair"))
    intact = int(advice.split(":")[1])
    assert 10 < intact < 40
    assert load_video(str(path), frames=advice).frames.equal(ffmpeg_frames(source)[:intact])


def test_damage_after_the_start_of_a_slice(encode, tmp_path: Path, always_seek) -> None:
    data, path = bytearray(encode("a.mp4", 60, options=CLOSED).read_bytes()), tmp_path / "a.mp4"
    middle = len(data) * 3 // 4
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    refusal(path, "frame [45][0-9] cannot be decoded .*pass --frames 30:[345]", frames="30:60")


def test_damage_before_a_slice_that_is_predicted_from_it(encode, remux, tmp_path: Path, always_seek) -> None:
    source = encode("a.mkv", 60, options=GROUPS_OF_8)
    spoil = lambda k, data: data[:20] + NOISE[:400] + data[420:] if k == 41 else data  # noqa: E731
    path = remux(source, tmp_path / "a.mkv", spoil)
    refusal(path, "frame 4[01] cannot be decoded", frames="43:47")
    assert load_video(str(path), frames="58:60").frames.equal(load_video(str(source), frames="58:60").frames)


def test_damage_in_a_file_whose_frames_are_counted_by_decoding(encode, remux, plan, tmp_path: Path) -> None:
    """The advised range can be read, nothing after it, and segments are not planned as if the video ended there."""
    source = encode("a.mkv", 40, codec="mpeg4", options={"g": "8", "bf": "0"})
    spoil = lambda k, data: data[:20] + NOISE[20 : len(data)] if k == 24 else data  # noqa: E731
    path = remux(source, tmp_path / "a.mkv", spoil)
    advice = advised_frames(refusal(path, r"frame \d+ cannot be decoded .* pass --frames 0:\d+"))
    intact = load_video(str(path), frames=advice).frames
    assert len(intact) > 15 and intact.equal(load_video(str(source), frames=advice).frames)
    for beyond in ("0:30", "::2", "-1:"):
        refusal(path, r"frame \d+ cannot be decoded", frames=beyond)
    with pytest.raises(UserError, match=r"frame \d+ cannot be decoded"):
        plan(path)


@pytest.mark.parametrize("name", ["sizes.mkv", "sizes.ts"])
def test_changing_size(name: str, tmp_path: Path, scene) -> None:
    """Ten frames of 64x96, then ten of 48x80, in one stream."""
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for part, (height, width) in enumerate([(64, 96), (48, 80)]):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
            encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 25), Fraction(25), NO_B_FRAMES
            packets = []
            for k, pixels in enumerate(scene(10, height, width)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = part * 10 + k, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode():
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                container.mux(packet)
    fix = f"pass --frames 0:10, or scale all frames to one size with ffmpeg -i {name} -vf scale=96:64 out.mp4"
    refusal(path, re.escape(f"changes size from 64x96 to 48x80 at frame 10: {fix}"))
    assert load_video(str(path), frames="0:10").frames.shape == (10, 3, 64, 96)


# Lengths that headers state wrongly, playlists


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", bytes(4), None], ids=["stream", "unfinished", "own header"])
def test_avi_of_unknown_length_or_that_counts_its_own_header(size: bytes | None, encode, tmp_path: Path) -> None:
    data, path = bytearray(encode("a.avi", 20, options=NO_B_FRAMES).read_bytes()), tmp_path / "a.avi"
    data[4:8] = struct.pack("<I", len(data)) if size is None else size
    path.write_bytes(data)
    assert len(load_video(str(path)).frames) == 20


@pytest.mark.parametrize("size", [math.nan, math.inf, -1.0])
def test_flv_whose_length_is_no_number(size: float, encode, tmp_path: Path) -> None:
    data, path = bytearray(encode("a.flv", 20, options=NO_B_FRAMES).read_bytes()), tmp_path / "a.flv"
    start = data.index(b"filesize\0") + 9
    data[start : start + 8] = struct.pack(">d", size)
    path.write_bytes(data)
    assert len(load_video(str(path)).frames) == 20


def test_playlists(tmp_path: Path, encode) -> None:
    """A missing part, which FFmpeg skips, and a missing end, for which it would wait."""
    muxer = {"hls_time": "0.3", "hls_list_size": "0"}
    source = encode("list.m3u8", 40, container="hls", muxer=muxer, options=GROUPS_OF_8)
    for file in source.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "list.m3u8"
    assert len(load_video(str(path)).frames) == 40
    text = path.read_text()
    path.write_text(text.replace("#EXT-X-ENDLIST", ""))
    refusal(path, "add the line #EXT-X-ENDLIST")
    (tmp_path / "main.m3u8").write_text("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\nlist.m3u8\n")
    refusal(tmp_path / "main.m3u8", "list.m3u8 is a playlist without an end")
    path.write_text(f"{text}\n")
    (tmp_path / "list1.ts").unlink()
    refusal(path, "list1.ts, which is missing")


# Files that are not videos


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_picture_with_the_name_of_a_video(kind: str, name: str, tmp_path: Path, loaded_or_refused) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, format=kind)
    loaded_or_refused(tmp_path / name)


def test_files_without_video(tmp_path: Path) -> None:
    for name, data in (("text.mp4", b"hello\n" * 100), ("text.txt", b"hello\n" * 100), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(data)
        refusal(tmp_path / name, "is not a video, or is truncated before its index")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    refusal(tmp_path / "sound.wav", "has no video stream, only audio or other data: pass a video to --data")
    os.mkfifo(tmp_path / "pipe.mp4")
    refusal(tmp_path / "pipe.mp4", "is not a file, a folder")


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "aac"), ("mkv", "aac"), ("ts", "mp2")])
def test_sound_alone(suffix: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000)
        resampler = av.AudioResampler(stream.format.name, stream.layout.name, 48000, 1152 if codec == "mp2" else 1024)
        samples = np.zeros((len(stream.layout.channels), 11520), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        for part in [*resampler.resample(frame), None]:
            container.mux(stream.encode(part))
    refusal(path, "has no video stream, only audio")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "mov", "webm"])
def test_no_frames(suffix: str, encode) -> None:
    message = refusal(encode(f"none.{suffix}", 0, codec={"webm": "libvpx"}.get(suffix, "mpeg4")), "video")
    if suffix == "avi":
        assert "has no frames that can be decoded: " in message and "pass another video to --data" in message


# Names and tags that are not UTF-8


def test_title_that_is_not_utf_8(encode, tmp_path: Path, ffmpeg_frames) -> None:
    source = encode("a.mp4", setup=lambda stream: stream.container.metadata.update(title="cafXXX"))
    data, path = source.read_bytes(), tmp_path / "titled.mp4"
    assert data.count(b"cafXXX") == 1
    path.write_bytes(data.replace(b"cafXXX", b"caf\xe9\xff\x80"))
    assert load_video(str(path)).frames.equal(ffmpeg_frames(path))


def test_file_name_that_is_not_utf_8(plain: Path, tmp_path: Path, ffmpeg_frames) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        path.write_bytes(plain.read_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert load_video(str(path)).frames.equal(ffmpeg_frames(plain))
