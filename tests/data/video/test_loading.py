from __future__ import annotations

import hashlib
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from hnerv.errors import UserError
from hnerv.geometry import CropPlan, plan_crop
from hnerv.data.video import load_video, sources as loading, loader as memory


def test_fields(plain: Path) -> None:
    video = load_video(str(plain))
    assert (video.name, video.source, video.fps) == ("plain", str(plain.resolve()), 25.0)
    assert video.frames.shape == (12, 3, 64, 96) and video.frames.dtype == torch.uint8
    assert video.frames.is_contiguous(memory_format=torch.channels_last)
    assert video.crop == CropPlan(0, 0, 64, 96, 64, 96)
    shape_and_bytes = str((12, 3, 64, 96)).encode() + video.frames.numpy().tobytes()
    assert video.digest == hashlib.sha256(shape_and_bytes).hexdigest()


def test_digest_names_the_content(plain: Path, write, tmp_path: Path) -> None:
    (tmp_path / "copy.mp4").write_bytes(plain.read_bytes())
    same = load_video(str(tmp_path / "copy.mp4")).digest
    assert load_video(str(plain)).digest == same
    others = [load_video(str(plain), **how).digest for how in ({"frames": "1:"}, {"crop": "32x48"}, {"crop": "48x32"})]
    assert len({same, *others}) == 4


@pytest.mark.parametrize("frames", ["", ":", "0:5", "3:", "::2", "1:9:3", "-4:", ":-4", "::-1", "9:2:-3", "5:500"])
def test_frames_are_a_python_slice(plain: Path, frames: str) -> None:
    everything = load_video(str(plain)).frames
    parts = [int(part) if part else None for part in frames.split(":")]
    chosen = everything.numpy()[slice(*parts)] if frames else everything.numpy()
    assert np.array_equal(load_video(str(plain), frames=frames).frames.numpy(), chosen)


@pytest.mark.parametrize("frames", ["5", "a:b", "0:5:0", "1:2:3:4", "0-5", " :5", "1.0:2"])
def test_frames_malformed(plain: Path, frames: str) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"--frames {frames!r} must be start:stop:step with a step other than 0")
    ):
        load_video(str(plain), frames=frames)


@pytest.mark.parametrize("frames", ["12:", "5:5", "9:3", "0:5:-1"])
def test_frames_that_select_nothing(plain: Path, frames: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--frames {frames!r} selects none of the 12 frames: pass a wider")):
        load_video(str(plain), frames=frames)


def test_crop_is_the_centre(plain: Path) -> None:
    everything = load_video(str(plain)).frames
    assert load_video(str(plain), crop="32x48").frames.equal(everything[..., 16:48, 24:72])
    video = load_video(str(plain), multiple=(20, 36))
    assert video.crop == plan_crop((64, 96), "", "", (20, 36))
    assert video.frames.equal(everything[..., 2:62, 12:84])


@pytest.mark.parametrize("resize", ["32x48", "24x24", "100x150", "16x90"])
def test_resize_agrees_with_torchvision(plain: Path, resize: str) -> None:
    video = load_video(str(plain), resize=resize)
    plan = video.crop
    region = load_video(str(plain)).frames[..., plan.top : plan.top + plan.height, plan.left : plan.left + plan.width]
    size = [plan.out_height, plan.out_width]
    expected = V.resize(region.float(), size, InterpolationMode.BICUBIC, antialias=True).round().clamp(0, 255)
    assert list(video.frames.shape[2:]) == size
    assert video.frames.equal(expected.to(torch.uint8))


def test_reducing_agrees_with_pillow(plain: Path) -> None:
    """Pillow's bicubic rounds between its two passes, hence the one level."""
    video = load_video(str(plain), resize="32x48")
    for ours, frame in zip(video.frames, load_video(str(plain)).frames, strict=True):
        pillow = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((48, 32), Image.Resampling.BICUBIC)
        assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(pillow)).max() <= 1


def test_geometry_errors_pass_through(plain: Path) -> None:
    with pytest.raises(UserError, match="--crop 80x96 does not fit into frames of 64x96"):
        load_video(str(plain), crop="80x96")
    with pytest.raises(UserError, match="frames of 64x96 are smaller than 128x128, the least"):
        load_video(str(plain), multiple=(128, 128))


@pytest.mark.parametrize("data", ["", "nothing.mp4", "bunnny"])
def test_neither_path_nor_clip(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--data '{data}' is not .* one of the clips bunny, bikes, carphone: check"):
        load_video(data)


def test_frames_beyond_the_share_of_memory_lie_in_a_file_without_a_name(plain: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    for how in ({}, {"resize": "32x48"}, {"frames": "::-2"}):
        inside = load_video(str(plain), **how)
        with monkeypatch.context() as patch:
            patch.setattr(memory, "IN_MEMORY", inside.frames.nbytes - 1)
            mapped = load_video(str(plain), **how)
        assert mapped.frames.equal(inside.frames) and mapped.digest == inside.digest
        assert mapped.frames.is_contiguous(memory_format=torch.channels_last)
        assert list((tmp_path / "cache").iterdir()) == []


def test_decord_is_not_asked_for_more_than_the_share_of_memory(plain: Path, monkeypatch) -> None:
    monkeypatch.setenv("HNERV_READER", "decord")
    assert load_video(str(plain)).reader == "decord"
    monkeypatch.setattr(memory, "IN_MEMORY", 12 * 3 * 64 * 96 - 1)
    assert load_video(str(plain), frames="0:2").reader == "pyav"


def test_a_small_machine_holds_less_in_memory(plain: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HNERV_CACHE", str(tmp_path / "cache"))
    needed = 12 * 3 * 64 * 96
    monkeypatch.setattr(memory, "memory_bytes", lambda: 4 * needed)
    load_video(str(plain))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(memory, "memory_bytes", lambda: 4 * needed - 1)
    load_video(str(plain))
    assert (tmp_path / "cache").exists()


def test_more_than_memory_and_disk(plain: Path, tmp_path, monkeypatch) -> None:
    """A limit on the size of files stands for a full disk; a file where the cache should be, for one of another."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
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


@pytest.mark.parametrize(("announced", "frames"), [(11, ""), (13, ""), (13, "-3:"), (11, "-3:-1"), (13, "::-1")])
def test_a_wrong_count_is_found_out(plain: Path, monkeypatch, caplog, announced: int, frames: str) -> None:
    expected = load_video(str(plain), frames=frames).frames
    honest = loading._probe
    monkeypatch.setattr(loading, "_probe", lambda *file: honest(*file)._replace(count=announced))
    video = load_video(str(plain), frames=frames)
    assert video.reader == "pyav" and f"plain.mp4 has 12 frames, but declares {announced}" in caplog.text
    assert video.frames.equal(expected)
