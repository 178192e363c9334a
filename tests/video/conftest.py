"""Videos that the tests write with PyAV, and how PyAV reads them: the reference for what `load_video` returns.

The helpers are fixtures that return functions, so that tests run under every import mode of pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)


def _scene(count: int, height: int, width: int) -> list[np.ndarray]:
    """Moving waves and a corner whose grey is 10 times the frame number, so that no two frames are equal."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for i in range(count):
        red = 127 + 90 * np.sin((x + 3 * i) / 29)
        green = 127 + 90 * np.cos((y - 2 * i) / 27)
        frame = np.stack([red, green, (x + y + 5 * i) % 256], -1).astype(np.uint8)
        frame[:8, :8] = i * 10 % 256
        frames.append(frame)
    return frames


def _write_video(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 96),
    count: int = 12,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    rotation: int | None = None,
    first: int = 0,
    setup: Callable[[av.video.stream.VideoStream], None] = lambda stream: None,
) -> Path:
    """Encode `_scene` at 25 frames a second; `first` is the first timestamp, in frames."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1  # the same bytes every time
        setup(stream)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for i, pixels in enumerate(_scene(count, *size)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i + first, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _pyav_frames(path: Path | str) -> Tensor:
    """(N, 3, H, W) uint8 as PyAV decodes and converts, in the orientation stored."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary file: 12 frames of 64x96, h264 in mp4."""
    return _write_video(tmp_path_factory.mktemp("plain") / "plain.mp4")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(name, **settings of `_write_video`) -> path of the new video."""
    return lambda name, **settings: _write_video(tmp_path / name, **settings)


@pytest.fixture(scope="session")
def pyav_frames() -> Callable[[Path | str], Tensor]:
    """pyav_frames(path) -> (N, 3, H, W) uint8."""
    return _pyav_frames


@pytest.fixture(scope="session")
def scene() -> Callable[[int, int, int], list[np.ndarray]]:
    """scene(count, height, width) -> frames (H, W, 3) uint8."""
    return _scene
