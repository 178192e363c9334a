"""What was written, read back by PyAV, Pillow and `load_video`; and what is left when writing fails."""

from __future__ import annotations

import contextlib
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hnerv.errors import UserError
from hnerv.timeline import Timeline, exact_rate
from hnerv.data.video import check_target, load_video, open_writer
from hnerv.data.video.colour import Display, to_rgb, to_yuv420
from hnerv.data.video.writer import FORMATS

SIZE = (48, 64)
TIMES = Timeline.at_rate(25.0)
LOSSLESS = ["out.mkv", "frames"]


@pytest.fixture
def frames(scene) -> list[np.ndarray]:
    return scene(12, *SIZE)


@pytest.fixture
def smooth() -> list[np.ndarray]:
    """Frames whose colours 4:2:0 can hold: what is left of an error is that of the conversion or the coding."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = [127 + 100 * np.sin(x / 19), 127 + 100 * np.cos(y / 17), 127 + 100 * np.sin((x + y) / 23)]
    return [(np.stack(waves, -1) + 2 * i).astype(np.uint8) for i in range(4)]


def write(path: Path, frames: list[np.ndarray], fps: float = 25.0, **how) -> Path:
    with open_writer(path, frames[0].shape[:2], Timeline.at_rate(fps), **how) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def pixels_of(path: Path) -> np.ndarray:
    """(N, H, W, 3) uint8"""
    return load_video(str(path)).frames.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_targets_come_back_bit_for_bit(tmp_path, frames, name):
    assert np.array_equal(pixels_of(write(tmp_path / name, frames)), frames)


@pytest.mark.parametrize("name", LOSSLESS)
def test_odd_sizes_are_for_lossless_targets(tmp_path, scene, name):
    frames = scene(3, 35, 47)
    assert np.array_equal(pixels_of(write(tmp_path / name, frames)), frames)


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "OUT.MP4"])
def test_h264_has_the_colours_that_went_in(tmp_path, smooth, name):
    """A wrong range moves black by 16 levels, a wrong matrix pure colours by 20. Readers that hurry are off by 2."""
    path = write(tmp_path / name, smooth)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        coded = list(container.decode(video=0))
    by_pyav = [frame.to_ndarray(format="rgb24") for frame in coded]
    for found, bound in (([to_rgb(frame) for frame in coded], 1), (by_pyav, 2), (pixels_of(path), 2)):
        error = np.stack(found).astype(float) - np.stack(smooth)
        assert np.abs(error.mean((0, 1, 2))).max() < bound
        assert np.abs(error).mean() < bound + 2


def test_h264_says_which_matrix_and_range_it_has(tmp_path, smooth):
    with av.open(str(write(tmp_path / "out.mp4", smooth))) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1)


def test_the_conversion_is_as_good_as_8_bits_allow(smooth):
    """BT.601 in limited range, rounded to whole levels, leaves about 52 dB; less means unlike ways there and back."""
    mse = np.mean([((to_rgb(to_yuv420(frame)) / 255 - frame / 255) ** 2).mean() for frame in smooth])
    assert -10 * np.log10(mse) > 48


def test_the_matrix_is_that_of_bt601():
    """Luma of pure red, green and blue by the constants of the standard."""
    for colour, weight in (((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114)):
        frame = to_yuv420(np.full((16, 16, 3), colour, np.uint8))
        assert np.frombuffer(frame.planes[0], np.uint8)[0] == pytest.approx(16 + 219 * weight, abs=1)


@pytest.mark.parametrize("range_", [0, 1, 2])
@pytest.mark.parametrize("matrix", [0, 1, 2, 4, 5, 6, 7, 8, 9, 14])
def test_the_matrix_and_range_of_the_source_where_swscale_has_them(tmp_path, matrix, range_):
    """Saturated colours come back by the tags alone; read with another matrix, some are 20 levels off."""
    colours = [(200, 30, 40), (30, 200, 40), (30, 40, 200), (220, 210, 30), (128, 128, 128)]
    frames = [np.full((32, 48, 3), colour, np.uint8) for colour in colours]
    path = write(tmp_path / "a.mp4", frames, display=Display(matrix=matrix, range=range_))
    video = load_video(str(path))
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
def test_rates_become_the_fraction_that_is_meant(fps, expected):
    assert exact_rate(fps) == expected


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path, frames, fps):
    with pytest.raises(UserError, match="frame rate"):
        write(tmp_path / "out.mp4", frames, fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [f"out{suffix}" for suffix in FORMATS])
@pytest.mark.parametrize(("fps", "expected"), [row for row in RATES if row[0] > 10])
def test_the_file_has_the_rate(tmp_path, frames, name, fps, expected):
    with av.open(str(write(tmp_path / name, frames, fps))) as container:
        stream = container.streams.video[0]
        exact = stream.average_rate if not name.endswith(".mkv") else expected  # Matroska counts nanoseconds a frame
        assert exact == expected and float(stream.average_rate) == pytest.approx(float(expected), rel=1e-6)
        stamps = [float(frame.pts * stream.time_base) for frame in container.decode(video=0)]
    assert stamps == pytest.approx([i / fps for i in range(len(frames))], abs=6e-4)  # and milliseconds


def test_packets_leave_before_the_last_frame_comes(tmp_path, scene):
    """A writer that hoarded frames or packets would have written nothing by then."""
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    for name in ("out.mp4", "out.mkv"):
        with open_writer(tmp_path / name, frame.shape[:2], TIMES) as writer:
            for i in range(120):
                writer.write(np.roll(frame, 7 * i))
            assert sum(path.stat().st_size for path in tmp_path.glob(".*.tmp")) > frame.size
    with open_writer(tmp_path / "folder", frame.shape[:2], TIMES) as writer:
        writer.write(frame)
        assert len(list((tmp_path / "folder").rglob("*.png"))) == 1


TARGETS = ["out.mp4", "out.mkv", "frames"]


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_there_before_the_end_and_one_thing_after(tmp_path, frames, name):
    with open_writer(tmp_path / name, SIZE, TIMES) as writer:
        for frame in frames:
            writer.write(frame)
        assert not (tmp_path / name).is_file() and not list((tmp_path / name).glob("*.png"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name == "frames":
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [f"{i:05d}.png" for i in range(12)]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError("stopped"), OSError(5, "the caller's disk")])
def test_a_block_that_fails_leaves_nothing_and_its_own_error(tmp_path, frames, name, failure):
    with pytest.raises(failure if isinstance(failure, type) else type(failure)) as caught:  # noqa: SIM117
        with open_writer(tmp_path / name, SIZE, TIMES) as writer:
            writer.write(frames[0])
            raise failure
    assert not isinstance(caught.value, UserError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TARGETS)
def test_a_block_that_fails_leaves_what_was_there(tmp_path, frames, name):
    path = write(tmp_path / name, frames)
    before = pixels_of(path)
    with contextlib.suppress(RuntimeError), open_writer(path, SIZE, TIMES, overwrite=True) as writer:
        writer.write(frames[5])
        raise RuntimeError
    assert np.array_equal(pixels_of(path), before)
    assert [found.name for found in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_there_is_replaced(tmp_path, frames, name):
    write(tmp_path / name, frames)
    with pytest.raises(UserError, match="already .*: choose .*--overwrite"):
        write(tmp_path / name, frames[:3])
    assert len(pixels_of(tmp_path / name)) == len(frames)
    assert len(pixels_of(write(tmp_path / name, frames[:3], overwrite=True))) == 3


def test_images_may_have_the_numbers_of_their_frames(tmp_path, frames):
    write(tmp_path / "part", frames[:3], numbers=range(40, 34, -2))
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["00036.png", "00038.png", "00040.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "part" / "00040.png")), frames[0])


@pytest.mark.parametrize("name", TARGETS)
def test_no_frame_is_no_video(tmp_path, name):
    with (
        pytest.raises(UserError, match="would contain no frames"),
        open_writer(tmp_path / name, SIZE, TIMES),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(
    "wrong", [np.zeros((48, 62, 3), np.uint8), np.zeros((48, 64, 3)), np.zeros((48, 64), np.uint8)]
)
def test_a_frame_of_another_shape_is_a_fault_of_ours(tmp_path, name, wrong):
    with (
        pytest.raises(ValueError, match="a frame is"),
        open_writer(tmp_path / name, SIZE, TIMES) as writer,
    ):
        writer.write(wrong)
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def files_end_at(size: int):
    """A disk that takes no more than so many bytes a file: Python ignores the signal, writing fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("room", [100, 9000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, name, room):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with pytest.raises(UserError, match="cannot be written") as caught, files_end_at(room):
        write(tmp_path / name, [noise] * 70)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def refused(path: Path, size: tuple[int, int], match: str) -> None:
    """By the early check and by the writer, in the same words, and without a trace."""
    with pytest.raises(UserError, match=match) as early:
        check_target(path, size)
    with pytest.raises(UserError) as late, open_writer(path, size, TIMES):
        pass
    assert str(early.value) == str(late.value)


def test_targets_that_cannot_be_are_refused_early(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "00000.png").touch()
    (tmp_path / "full" / "letter.txt").touch()
    refused(tmp_path / "out.avi", SIZE, r"\.avi is not supported: choose \.mp4, \.mov, \.mkv")
    refused(tmp_path / "out.mp4", (47, 64), "even")
    refused(tmp_path / "out.mov", (48, 63), "even")
    refused(tmp_path / "file", SIZE, "is a file")
    refused(tmp_path / "file" / "out.mp4", SIZE, "is a file")
    refused(tmp_path / "file" / "frames", SIZE, "is a file")
    refused(tmp_path / "full", SIZE, r"letter\.txt")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.png", "file", "full", "letter.txt"]


def test_a_place_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    """Asked of the nearest folder that exists. Root may write everywhere, hence the stand-in for the question."""
    asked = []
    monkeypatch.setattr("hnerv.data.video.writer.os.access", lambda path, mode: asked.append(path))
    refused(tmp_path / "new" / "out.mp4", SIZE, "is not writable")
    assert set(asked) == {tmp_path}


@pytest.mark.parametrize("name", ["out.mp4", "new/folder/out.mkv", "frames", "new/frames"])
def test_the_check_leaves_no_trace(tmp_path, name):
    check_target(tmp_path / name, SIZE)
    assert not list(tmp_path.iterdir())


def test_folders_on_the_way_are_made(tmp_path, frames):
    assert len(pixels_of(write(tmp_path / "a" / "b" / "out.mkv", frames))) == 12
    assert len(pixels_of(write(tmp_path / "c" / "d", frames))) == 12


def test_a_folder_with_a_suffix_is_a_folder_and_hidden_files_stay(tmp_path, frames):
    folder = tmp_path / "take.2"
    folder.mkdir()
    (folder / ".note").touch()
    write(folder, frames[:2])
    assert sorted(path.name for path in folder.iterdir()) == [".note", "00000.png", "00001.png"]
    with Image.open(folder / "00001.png") as image:
        assert np.array_equal(np.array(image), frames[1])
