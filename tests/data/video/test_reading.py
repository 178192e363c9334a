"""Files that decord reads, files that it gets wrong, and files that nobody can read."""

from __future__ import annotations

import re
import struct
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from hnerv.errors import UserError
from hnerv.data.video import load_video, readers as reading
from hnerv.data.video.probe import Orientation
from hnerv.data.video.container import InputSpec as Medium
from hnerv.data.video.probe import probe_video

X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=6:min-keyint=6:bframes=3"}


def _colours(stream) -> None:
    stream.codec_context.colorspace, stream.codec_context.color_range = 1, 2


MANY: dict[str, dict] = {
    "plain.mp4": {},
    "plain.mkv": {},
    "b-frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "plain.flv": {},
    "422.mp4": {"pix_fmt": "yuv422p"},
    "444-odd.mp4": {"pix_fmt": "yuv444p", "size": (63, 97)},
    "bt709-full.mp4": {"pix_fmt": "yuvj420p", "setup": _colours},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "open-gop.mp4": {"options": OPEN_GOP, "count": 20},
    "late.mp4": {"first": 7},
    "10-bit.mp4": {"pix_fmt": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": X265},
    "grey-16.mkv": {"codec": "ffv1", "pix_fmt": "gray16le"},
    "odd.mkv": {"codec": "ffv1", "size": (63, 97)},
    "av1.mp4": {"codec": "libsvtav1", "options": {"svtav1-params": "lp=1"}},
    "stream.ts": {"codec": "mpeg2video"},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "raw.h264": {},
    "edit-list.mp4": {"first": -4},
    "phone.mp4": {"rotation": 90},
}
BY_DECORD = {"plain.mp4", "bt709-full.mp4", "open-gop.mp4", "late.mp4"}


@pytest.mark.parametrize("name", MANY)
def test_the_same_pixels_whatever_reads_them_and_not_a_word(name, write, pyav_frames, monkeypatch, caplog) -> None:
    path = write(name, **MANY[name])
    default = load_video(str(path))
    monkeypatch.setenv("HNERV_READER", "decord")
    other = load_video(str(path))
    assert (default.reader, other.reader) == ("pyav", "decord" if name in BY_DECORD else "pyav")
    assert default._replace(frames=0, reader="") == other._replace(frames=0, reader="") and not caplog.records
    turns = MANY[name].get("rotation", 0) // 90
    assert default.frames.equal(torch.rot90(pyav_frames(path), turns, (2, 3))) and default.frames.equal(other.frames)


def test_an_edit_list_hides_its_frames(write) -> None:
    assert len(load_video(str(write("edit-list.mp4", first=-4))).frames) == 8


@pytest.mark.parametrize("name", ["10-bit.mp4", "odd.mkv", "444.mp4", "bt709.mp4"])
def test_pixels_are_those_that_were_written(name: str, write, scene) -> None:
    """Wrong matrix, range or chroma place would be 10 levels away or more in the mean."""
    settings = {
        "10-bit.mp4": {"pix_fmt": "yuv420p10le", "options": {"crf": "4"}},
        "odd.mkv": {"codec": "ffv1", "size": (63, 97)},
        "444.mp4": {"pix_fmt": "yuv444p", "options": {"crf": "4"}},
        "bt709.mp4": {"options": {"crf": "4"}},
    }[name]
    video = load_video(str(write(name, **settings)))
    written = np.stack(scene(12, *video.frames.shape[2:]))
    distance = np.abs(video.frames.permute(0, 2, 3, 1).numpy().astype(int) - written)
    assert distance.mean() < 4


@pytest.mark.parametrize("rotation", [90, 180, -90])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
def test_phone_videos_are_upright(rotation: int, pix_fmt: str, write, pyav_frames) -> None:
    """PyAV says by how many degrees to turn against the clock; torch.rot90 turns that way too."""
    path = write("phone.mp4", rotation=rotation, pix_fmt=pix_fmt)
    assert load_video(str(path)).frames.equal(torch.rot90(pyav_frames(path), rotation // 90, (2, 3)))


def test_mirrored_video(write, pyav_frames) -> None:
    """The header of a half turn, x' = -x and y' = -y, edited into x' = -x and y' = y."""
    path = write("selfie.mp4", rotation=180)
    half_turn, mirror = (struct.pack(">5i", -65536, 0, 0, 0, d) for d in (-65536, 65536))
    data = path.read_bytes()
    assert data.count(half_turn) == 1
    path.write_bytes(data.replace(half_turn, mirror))
    assert load_video(str(path)).frames.equal(pyav_frames(path).flip(3))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_rows", [False, True])
@pytest.mark.parametrize("flip_cols", [False, True])
def test_orientation_is_mirrored_or_a_rotation(transpose: bool, flip_rows: bool, flip_cols: bool) -> None:
    orientation = Orientation(transpose, flip_rows, flip_cols)
    frame = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    turned = [np.rot90(frame, k) for k in range(4)]
    upright = orientation.upright(frame)
    assert upright.flags.c_contiguous
    mirrored = transpose ^ flip_rows ^ flip_cols
    assert any(np.array_equal(upright, turn) for turn in turned) is not mirrored


def _two_sizes(path: Path, scene, container_codec: str = "libx264") -> Path:
    """Ten frames of 64x96, then ten of 48x80, in one stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(container_codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for part, (height, width) in enumerate([(64, 96), (48, 80)]):
            encoder = av.CodecContext.create(container_codec, "w")
            encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuv420p"
            encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 25), Fraction(25), {"bf": "0"}
            packets = []
            for i, pixels in enumerate(scene(10, height, width)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = part * 10 + i, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode():
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                container.mux(packet)
    return path


@pytest.mark.parametrize("name", ["sizes.mkv", "sizes.ts"])
def test_changing_size(name: str, tmp_path: Path, scene) -> None:
    path = _two_sizes(tmp_path / name, scene)
    command = f"ffmpeg -i {name} -vf scale=96:64 out.mp4"
    mend = f"at frame 10: pass --frames 0:10, or scale all frames to one size with {command}"
    with pytest.raises(UserError, match=re.escape(f"changes size from 64x96 to 48x80 {mend}")):
        load_video(str(path))
    assert load_video(str(path), frames="0:10").frames.shape == (10, 3, 64, 96)


@pytest.mark.parametrize("kept", [0.45, 0.7, 0.95])
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi", "cut.flv"])
def test_cut_short(name: str, kept: float, write, pyav_frames) -> None:
    muxer = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = write(name, count=48, size=(128, 160), options={"g": "12"}, muxer=muxer)
    whole = pyav_frames(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=r"is truncated; only \d+ frames can be read: .* copy or download it") as caught:
        load_video(str(path))
    readable = int(re.search(r"pass --frames 0:(\d+),", str(caught.value))[1])
    assert 0 < readable < 48
    video = load_video(str(path), frames=f"0:{readable}")
    assert video.reader == "pyav" and video.frames.equal(whole[:readable])
    for frames in (f"0:{readable + 1}", "::2", "-3:", "0:-1"):
        with pytest.raises(UserError, match="is truncated"):
            load_video(str(path), frames=frames)


def test_cut_before_the_first_frame(write) -> None:
    path = write("cut.mp4", muxer={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 40])
    with pytest.raises(UserError, match="is truncated before its first complete frame: copy or download it again"):
        load_video(str(path))


def test_cut_before_its_index_and_other_files_that_are_no_video(write, tmp_path: Path) -> None:
    cut = write("cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-900])
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("cut.mp4", "text.mp4", "text.txt", "empty.mp4"):
        with pytest.raises(UserError, match="is not a video, or is truncated before its index") as caught:
            load_video(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_damage_in_the_middle(pix_fmt: str, write, pyav_frames) -> None:
    path = write("damaged.mp4", count=48, size=(128, 160), pix_fmt=pix_fmt)
    whole = pyav_frames(path)
    data = bytearray(path.read_bytes())
    middle = len(data) * 6 // 10
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"frame \d+ cannot be decoded \(.*\): pass --frames 0:\d+, or repair"
    ) as caught:
        load_video(str(path))
    sound = int(re.search(r"--frames 0:(\d+)", str(caught.value))[1])
    assert 10 < sound < 40
    assert load_video(str(path), frames=f"0:{sound}").frames.equal(whole[:sound])


def test_sound_only_and_no_frames(tmp_path: Path, write) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(UserError, match="has no video stream, only audio or other data: pass a video to --data"):
        load_video(str(tmp_path / "sound.wav"))
    path = write("none.avi", count=0)
    with pytest.raises(UserError, match="has no frames that can be decoded: .* pass another video to --data"):
        load_video(str(path))


@pytest.fixture
def ask_decord(monkeypatch) -> None:
    monkeypatch.setenv("HNERV_READER", "decord")


def test_without_decord(plain: Path, pyav_frames, ask_decord, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    video = load_video(str(plain))
    assert video.reader == "pyav" and "plain.mp4 is read with PyAV: decord is not installed" in caplog.text
    assert video.frames.equal(pyav_frames(plain))


def test_decord_is_not_used_for_fields(write, pyav_frames, ask_decord) -> None:
    path = write("fields.mp4", options={"x264-params": "tff=1"})
    video = load_video(str(path))
    assert video.reader == "pyav" and video.frames.equal(pyav_frames(path))
    with pytest.raises(reading.DecordFailed, match="chroma of interlaced fields"):
        next(reading.read_decord(probe_video(Medium(path))))


@pytest.mark.parametrize(("decoded", "reason"), [(11, "but 11 can be decoded"), (13, "decord fails at frame 12")])
def test_decord_is_held_against_pyav(
    plain: Path, decoded: int, reason: str, ask_decord, monkeypatch, caplog, pyav_frames
) -> None:
    honest, calls = reading._decode, []

    def miscounting(probe, start=0):
        calls.append(probe)
        frames = list(honest(probe))
        return iter((frames + frames)[:decoded] if len(calls) == 1 else frames)

    monkeypatch.setattr(reading, "_decode", miscounting)
    video = load_video(str(plain))
    assert video.reader == "pyav" and reason in caplog.text
    assert video.frames.equal(pyav_frames(plain))
