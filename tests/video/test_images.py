from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hnerv.errors import UserError
from hnerv.video import images, load_video
from hnerv.video.images import common_size, list_images, natural_key

NOISE = np.random.default_rng(0).integers(0, 256, (6, 10, 14, 3), dtype=np.uint8)


def _write_16_bit(path: Path, pixels: np.ndarray, pix_fmt: str) -> None:
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base = pix_fmt, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format=pix_fmt)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()]))


def _only(folder: Path) -> np.ndarray:
    """The one frame of a folder, (H, W, 3)."""
    return load_video(str(folder)).frames[0].permute(1, 2, 0).numpy()


def test_natural_order() -> None:
    names = ["b1.png", "f10.png", "f2.png", "f02.png", "F1.png", "7.png"]
    expected = ["7.png", "b1.png", "F1.png", "f02.png", "f2.png", "f10.png"]
    assert [path.name for path in sorted(map(Path, names), key=natural_key)] == expected


def test_folder_in_natural_order_and_nothing_else_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "clip.v2"
    folder.mkdir()
    for i, name in enumerate(["f1.png", "f2.PNG", "f10.png", "f11.png"]):
        Image.fromarray(NOISE[i]).save(folder / name)
    (folder / ".f0.png").write_bytes(b"\0")
    (folder / "notes.txt").write_text("no frame")
    video = load_video(str(folder))
    assert (video.name, video.source, video.reader, video.fps) == ("clip.v2", str(folder.resolve()), "images", 24.0)
    assert np.array_equal(video.frames.permute(0, 2, 3, 1).numpy(), NOISE[:4])
    assert load_video(str(folder), frames="1::2").frames.equal(video.frames[1::2])


def test_a_single_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(NOISE[0]).save(tmp_path / "one.png")
    video = load_video(str(tmp_path / "one.png"))
    assert (video.name, video.frames.shape) == ("one", (1, 3, 10, 14))


def test_grey_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(NOISE[0, ..., 0])
    palette = Image.fromarray(NOISE[1]).quantize(16)
    bilevel = grey.point(lambda value: 255 * (value > 99)).convert("1")
    for i, image in enumerate([grey, palette, bilevel]):
        image.save(tmp_path / f"{i}.png")
    grey.save(tmp_path / "3.jpg", quality=100)
    frames = load_video(str(tmp_path)).frames.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(frames[0], NOISE[0, ..., :1].repeat(3, -1))
    assert np.array_equal(frames[1], np.asarray(palette.convert("RGB")))
    assert np.array_equal(frames[2], 255 * (NOISE[0, ..., :1] > 99).repeat(3, -1))
    assert np.abs(frames[3].astype(int) - frames[0]).max() <= 3


@pytest.mark.parametrize(("pix_fmt", "channels"), [("rgb48be", 3), ("gray16be", 1), ("rgba64be", 4)])
def test_16_bits_are_rounded(tmp_path: Path, pix_fmt: str, channels: int) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (10, 14, channels), dtype=np.uint16)
    if channels == 4:
        deep[..., 3] = 65535
    _write_16_bit(tmp_path / "deep.png", deep if channels > 1 else deep[..., 0], pix_fmt)
    expected = np.round(deep[..., :3] / 257).astype(np.uint8)
    assert np.array_equal(_only(tmp_path), np.broadcast_to(expected, (10, 14, 3)))


def test_opaque_alpha_is_dropped_and_transparent_refused(tmp_path: Path) -> None:
    alpha = np.dstack([NOISE[0], np.full((10, 14), 255, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "f.png")
    assert np.array_equal(_only(tmp_path), NOISE[0])
    alpha[3, 4, 3] = 254
    Image.fromarray(alpha).save(tmp_path / "f.png")
    with pytest.raises(
        UserError, match=r"f\.png has transparent pixels, which a video frame cannot have: flatten it onto"
    ):
        load_video(str(tmp_path))
    Image.fromarray(NOISE[0]).quantize(16).save(tmp_path / "f.png", transparency=0)
    with pytest.raises(UserError, match="transparent pixels"):
        load_video(str(tmp_path))


def test_exif_puts_a_photo_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    Image.fromarray(NOISE[0]).save(tmp_path / "f.png", exif=exif)
    assert np.array_equal(_only(tmp_path), np.rot90(NOISE[0], -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["before", "behind", "text"])
def test_an_orientation_anywhere_in_a_png_is_seen(tmp_path: Path, orientation: int, place: str) -> None:
    """EXIF may stand behind the pixels too: sizes are those of the upright pictures."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "f.png"
    if place == "text":
        about = PngImagePlugin.PngInfo()
        about.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
        Image.fromarray(NOISE[0]).save(path, pnginfo=about)
    else:
        Image.fromarray(NOISE[0]).save(path, exif=exif)
    if place == "behind":
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        end = data.index(b"IEND") - 4
        path.write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
    assert common_size([path]) == load_video(str(path)).frames.shape[2:]


def test_sizes_are_told_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(300):
        Image.fromarray(NOISE[i % 6]).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(images, "_opened", None)
    assert common_size(list_images(tmp_path)) == (10, 14)


def test_sizes_must_be_equal(tmp_path: Path) -> None:
    for i, size in enumerate([(14, 10), (14, 10), (12, 10)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    with pytest.raises(
        UserError, match=r"2\.png is 10x12, but the images before it are 10x14: remove it from the --data folder"
    ):
        load_video(str(tmp_path))


@pytest.mark.parametrize("keep", [0, 20, 60, 200])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_broken_image(tmp_path: Path, keep: int, suffix: str) -> None:
    path = tmp_path / f"f{suffix}"
    Image.fromarray(NOISE[0]).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    Image.fromarray(NOISE[1]).save(tmp_path / f"a{suffix}")
    with pytest.raises(UserError, match="cannot be read as PNG or JPEG .*replace it with an intact file") as caught:
        load_video(str(tmp_path))
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} has no PNG or JPEG files: pass a folder of images")):
        load_video(str(tmp_path))
