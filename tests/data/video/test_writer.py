"""Written files and folders, read back by PyAV, Pillow and `load_video`, and what is left if writing fails."""

from __future__ import annotations

import contextlib
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hnerv.data.video import check_target, load_video, open_writer
from hnerv.data.video.colour import Display, to_rgb
from hnerv.errors import UserError
from hnerv.timeline import Timeline, exact_rate

SIZE = (48, 64)
TIMES = Timeline.at_rate(25.0)
TARGETS = ["out.mp4", "out.mkv", "frames"]


@pytest.fixture(scope="session")
def frames(scene) -> list[np.ndarray]:
    return scene(12, *SIZE)


def write(path: Path, frames: list[np.ndarray], fps: float = 25.0, **options) -> Path:
    with open_writer(path, frames[0].shape[:2], Timeline.at_rate(fps), **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def pixels_of(path: Path) -> np.ndarray:
    """(N, H, W, 3) uint8"""
    return load_video(str(path)).frames.permute(0, 2, 3, 1).numpy()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Pixels, tags and rates


@pytest.mark.parametrize("name", ["out.mkv", "frames", "new/folder/out.mkv", "new/frames"])
def test_lossless_targets_are_bit_exact(tmp_path, frames, scene, name):
    check_target(tmp_path / name, SIZE)
    assert not list(tmp_path.iterdir())
    assert np.array_equal(pixels_of(write(tmp_path / name, frames)), frames)
    odd = scene(3, 35, 47)
    assert np.array_equal(pixels_of(write(tmp_path / name, odd, overwrite=True)), odd)


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "OUT.MP4"])
def test_h264_keeps_the_colours(tmp_path, smooth, name):
    """A wrong range moves black by 16 levels, a wrong matrix pure colours by 20. Fast readers are off by 2."""
    path = write(tmp_path / name, smooth)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, stream.pix_fmt, context.colorspace, context.color_range) == ("h264", "yuv420p", 6, 1)
        coded = list(container.decode(video=0))
    by_pyav = [frame.to_ndarray(format="rgb24") for frame in coded]
    for decoded, bound in (([to_rgb(frame) for frame in coded], 1), (by_pyav, 2), (pixels_of(path), 2)):
        error = np.stack(decoded).astype(float) - np.stack(smooth)
        assert np.abs(error.mean((0, 1, 2))).max() < bound
        assert np.abs(error).mean() < bound + 2


@pytest.mark.parametrize(
    ("matrix", "range_"), [*((matrix, 1) for matrix in (0, 1, 2, 4, 5, 6, 7, 8, 9, 14)), (1, 0), (9, 2), (2, 2)]
)
def test_matrix_and_range_of_the_source_are_kept_if_swscale_has_them(tmp_path, matrix, range_):
    """Saturated colours come back by the tags alone; read with another matrix, some are 20 levels off."""
    colours = [(200, 30, 40), (30, 200, 40), (30, 40, 200), (220, 210, 30), (128, 128, 128)]
    frames = [np.full((32, 48, 3), colour, np.uint8) for colour in colours]
    video = load_video(str(write(tmp_path / "a.mp4", frames, display=Display(matrix=matrix, range=range_))))
    assert video.display.matrix == (matrix if matrix in (1, 4, 5, 6, 7, 9) else 6)
    assert video.display.range == (2 if range_ == 2 else 1)
    assert np.abs(video.frames[:, :, 16, 24].numpy().astype(int) - np.array(colours)).max() <= 4


RATES = [
    (24.0, Fraction(24)),
    (25, Fraction(25)),
    (23.976, Fraction(24000, 1001)),
    (24000 / 1001, Fraction(24000, 1001)),
    (29.97, Fraction(30000, 1001)),
    (59.94, Fraction(60000, 1001)),
    (12.5, Fraction(25, 2)),
    (15.3, Fraction(153, 10)),
    (1000 / 999, Fraction(1000, 999)),
    (1e-9, Fraction(1, 10**9)),
    (1 / 3600, Fraction(1, 3600)),
]


@pytest.mark.parametrize(("fps", "expected"), RATES)
def test_exact_rate(fps, expected):
    assert exact_rate(fps) == expected


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf")])
def test_invalid_rate(fps):
    with pytest.raises(UserError, match="frame rate"):
        exact_rate(fps)


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize(("fps", "expected"), [row for row in RATES if row[0] in (25, 23.976, 12.5, 15.3)])
def test_rate_of_the_file(tmp_path, frames, name, fps, expected):
    with av.open(str(write(tmp_path / name, frames, fps))) as container:
        stream = container.streams.video[0]
        exact = stream.average_rate if not name.endswith(".mkv") else expected  # Matroska counts nanoseconds a frame
        assert exact == expected and float(stream.average_rate) == pytest.approx(float(expected), rel=1e-6)
        stamps = [float(frame.pts * stream.time_base) for frame in container.decode(video=0)]
    assert stamps == pytest.approx([i / fps for i in range(len(frames))], abs=6e-4)  # and milliseconds


def test_packets_are_written_before_the_last_frame(tmp_path):
    """A writer that kept frames or packets in memory would have written nothing by then."""
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    for name, count in (("out.mp4", 120), ("out.mkv", 120), ("folder", 1)):
        with open_writer(tmp_path / name, frame.shape[:2], TIMES) as writer:
            for k in range(count):
                writer.write(np.roll(frame, 7 * k))
            assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > frame.size


def test_images_with_the_numbers_of_their_frames(tmp_path, frames):
    write(tmp_path / "part", frames[:3], numbers=range(40, 34, -2))
    assert names_in(tmp_path / "part") == ["00036.png", "00038.png", "00040.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "part" / "00040.png")), frames[0])


def test_folder_with_a_suffix_and_hidden_files(tmp_path, frames):
    folder = tmp_path / "take.2"
    folder.mkdir()
    (folder / ".note").touch()
    write(folder, frames[:2])
    assert names_in(folder) == [".note", "00000.png", "00001.png"]


# All or nothing


@pytest.mark.parametrize("name", TARGETS)
def test_output_appears_at_the_end(tmp_path, frames, name):
    with open_writer(tmp_path / name, SIZE, TIMES) as writer:
        for frame in frames:
            writer.write(frame)
        assert not (tmp_path / name).is_file() and not list((tmp_path / name).glob("*.png"))
    assert names_in(tmp_path) == [name]
    assert name != "frames" or names_in(tmp_path / name) == [f"{k:05d}.png" for k in range(12)]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("stopped"), OSError(5, "the caller's disk")])
def test_failing_block_changes_nothing_and_keeps_its_error(tmp_path, frames, name, failure):
    path = tmp_path / name
    for existing in (False, True):
        if existing:
            before = pixels_of(write(path, frames[:3]))
        with pytest.raises(type(failure)) as caught, open_writer(path, SIZE, TIMES, overwrite=existing) as writer:
            writer.write(frames[5])
            raise failure
        assert caught.value is failure
        assert names_in(tmp_path) == [name] * existing
    assert np.array_equal(pixels_of(path), before)


@pytest.mark.parametrize("name", TARGETS)
def test_overwriting(tmp_path, frames, name):
    write(tmp_path / name, frames)
    with pytest.raises(UserError, match="already .*: choose .*--overwrite"):
        write(tmp_path / name, frames[:3])
    assert len(pixels_of(tmp_path / name)) == len(frames)
    assert len(pixels_of(write(tmp_path / name, frames[:3], overwrite=True))) == 3


@pytest.mark.parametrize("name", TARGETS)
def test_no_frames_and_wrong_frames(tmp_path, name):
    with pytest.raises(UserError, match="would contain no frames"), open_writer(tmp_path / name, SIZE, TIMES):
        pass
    for wrong in (np.zeros((48, 62, 3), np.uint8), np.zeros((48, 64, 3)), np.zeros((48, 64), np.uint8)):
        with pytest.raises(ValueError, match="a frame is"), open_writer(tmp_path / name, SIZE, TIMES) as writer:
            writer.write(wrong)
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def file_size_limit(size: int):
    """Stands for a full disk: Python ignores the signal, and writing fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("room", [100, 9000])
def test_full_disk(tmp_path, name, room):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with pytest.raises(UserError, match="cannot be written") as caught, file_size_limit(room):
        write(tmp_path / name, [noise] * 70)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("out.avi", SIZE, r"\.avi is not supported: choose \.mp4, \.mov, \.mkv"),
        ("out.mp4", (47, 64), "even"),
        ("out.mov", (48, 63), "even"),
        ("file", SIZE, "is a file"),
        ("file/out.mp4", SIZE, "is a file"),
        ("file/frames", SIZE, "is a file"),
        ("full", SIZE, r"letter\.txt"),
        ("locked/new/out.mp4", SIZE, "locked is not writable"),
    ],
)
def test_refused_targets(tmp_path, monkeypatch, name, size, match):
    """By the early check and by the writer, with the same message. Root may write everywhere: access is simulated."""
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "00000.png").touch()
    (tmp_path / "full" / "letter.txt").touch()
    monkeypatch.setattr("hnerv.files.os.access", lambda path, mode: path.name != "locked")
    with pytest.raises(UserError, match=match) as early:
        check_target(tmp_path / name, size)
    with pytest.raises(UserError) as late, open_writer(tmp_path / name, size, TIMES):
        pass
    assert str(early.value) == str(late.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["00000.png", "file", "full", "letter.txt", "locked"]
