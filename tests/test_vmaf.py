"""VMAF by a stand-in for ffmpeg; by a real one where one with libvmaf is installed."""

from __future__ import annotations

import numpy as np
import pytest

from hnerv.errors import UserError
from hnerv.vmaf import vmaf_meter, vmaf_obstacle


def measured(decoded: np.ndarray, source: np.ndarray, size: tuple[int, int]) -> list[float]:
    """Scores of frames (N, 3 H W / 2) uint8, added out of order."""
    with vmaf_meter(size) as meter:
        for number in reversed(range(len(decoded))):
            meter.add(number, decoded[number].tobytes(), source[number].tobytes())
        return meter.scores()


@pytest.fixture
def frames() -> tuple[np.ndarray, np.ndarray]:
    """Decoded and source frames of 4x6: frame k has levels k apart."""
    source = np.full((3, 36), 100, np.uint8)
    return source + np.arange(3, dtype=np.uint8)[:, None], source


def test_frames_reach_ffmpeg_in_order(vmaf_stand_in, frames):
    vmaf_stand_in()
    assert vmaf_obstacle() == ""
    assert measured(*frames, (4, 6)) == [100.0, 99.0, 98.0]


def test_without_an_able_ffmpeg_there_is_one_sentence(vmaf_stand_in, monkeypatch):
    path = vmaf_stand_in(filters=" T. psnr VV->V ")
    assert vmaf_obstacle() == (
        f"VMAF needs ffmpeg with the filter libvmaf, which {path} lacks: install a build with libvmaf"
    )
    vmaf_obstacle.cache_clear()
    path.write_text("no program")
    assert "does not run" in vmaf_obstacle()
    vmaf_obstacle.cache_clear()
    monkeypatch.setenv("PATH", str(path.parent.parent))
    assert "there is no ffmpeg on the PATH" in vmaf_obstacle()


@pytest.mark.parametrize(
    ("ending", "match"),
    [
        ("sys.exit('no model')", "could not measure VMAF \\(no model\\): remove --vmaf"),
        ("sys.exit(3)", "exit status 3 and no scores"),
        ("scores = scores[1:]", "VMAF of 2 of 3 frames"),
    ],
)
def test_a_failure_of_ffmpeg_is_one_line(vmaf_stand_in, frames, ending, match):
    vmaf_stand_in(ending=ending)
    with pytest.raises(UserError, match=match):
        measured(*frames, (4, 6))


def test_odd_sizes_are_refused_and_nothing_is_left(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="even frame sizes, not 5x6"):
        measured(*frames, (5, 6))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(bool(vmaf_obstacle()), reason="needs ffmpeg with libvmaf")
def test_a_real_ffmpeg_ranks_distortions():
    y, x = np.mgrid[:96, :128]
    luma = (127 + 60 * np.sin(x / 5) + 50 * np.cos(y / 7)).astype(np.uint8).ravel()
    source = np.stack([np.concatenate([np.roll(luma, 2 * k), np.full(96 * 64, 128, np.uint8)]) for k in range(4)])
    noise = np.random.default_rng(0).normal(size=source.shape)
    scores = [
        np.mean(measured((source + s * noise).clip(0, 255).astype(np.uint8), source, (96, 128))) for s in (0, 5, 30)
    ]
    assert scores[0] > 90 and scores == sorted(scores, reverse=True) and scores[2] < 80
