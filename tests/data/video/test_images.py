"""Folders of images and animated images: order, pixels, sizes, times, and the images that are refused."""

from __future__ import annotations

import io
import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from hnerv.data.video import load_video
from hnerv.data.video.images import (
    SUFFIXES,
    animation_times,
    common_size,
    frame_total,
    list_images,
    natural_key,
    read_animation,
    read_images,
)
from hnerv.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (8, 10, 14, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (10, 14, 4), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    """Lossless where the format allows it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **({"lossless": True} if path.suffix.lower() == ".webp" else {}), **options)
    return path


def animate(path: Path, pixels: np.ndarray, **options) -> Path:
    first, *others = map(Image.fromarray, pixels)
    return save(path, first, save_all=True, append_images=others, **options)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pixels_of(path: Path) -> np.ndarray:
    """(N, H, W, 3)"""
    return load_video(str(path)).frames.permute(0, 2, 3, 1).numpy()


def refused(path: Path, match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        load_video(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_natural_order() -> None:
    names = ["b1.png", "f10.png", "f2.png", "f02.png", "F1.png", "7.png"]
    expected = ["7.png", "b1.png", "F1.png", "f02.png", "f2.png", "f10.png"]
    assert [path.name for path in sorted(map(Path, names), key=natural_key)] == expected


def test_folder_of_several_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "clip.v2"
    folder.mkdir()
    for k, suffix in enumerate([".png", ".webp", ".tiff", ".PNG", ".webp", ".png", ".tiff", ".webp"]):
        save(folder / f"f{k + 5}{suffix}", NOISE[k])
    for name in ("Thumbs.db", "notes.txt", "meta.json", ".hidden.gif", ".f0.png", "noext"):
        (folder / name).write_bytes(b"\0")
    video = load_video(str(folder))
    assert (video.name, video.source, video.reader, video.fps) == ("clip.v2", str(folder.resolve()), "images", 24.0)
    assert np.array_equal(pixels_of(folder), NOISE) and not caplog.records
    assert load_video(str(folder), frames="1::2").frames.equal(video.frames[1::2])


def test_single_image(tmp_path: Path) -> None:
    video = load_video(str(save(tmp_path / "one.png", NOISE[0])))
    assert (video.name, video.frames.shape) == ("one", (1, 3, 10, 14))


@pytest.mark.parametrize("name", ["a.exr", "b.GIF", "c.heic", "d.dpx", "e.jp2", "f.avif", "g.svg"])
@pytest.mark.parametrize("count", [0, 2])
def test_images_of_another_type(tmp_path: Path, name: str, count: int) -> None:
    for file in (*(f"{k}.png" for k in range(count)), name, "z.psd"):
        (tmp_path / file).write_bytes(b"\0")
    expected = f"{tmp_path / name} is an image of a type that is not read: convert it to PNG, or move it elsewhere"
    refused(tmp_path, f"^{re.escape(expected)}$")


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (
            ["f0003.png", "f0004.png", "f0007.jpg", "f0009.png"],
            "skips 3 numbers after f0004.png (f0005.png is missing): the frames are read as consecutive",
        ),
        (["a9v2.png", "a9v3.png", "a9v5.png"], "skips 1 number after a9v3.png (a9v4.png is missing): the frames"),
        (["8_x.png", "9_x.png", "12_x.png"], "skips 2 numbers after 9_x.png (10_x.png is missing): the frames"),
        (["000.png", "005.png", "015.png", "020.png"], "skips 1 number after 005.png (010.png is missing): the"),
        (["f0.png", "f5.png", "f10.png", "f15.jpg"], ""),
        (["f3.png", "f90.png"], ""),
        (["a1.png", "a2.png", "b9.png"], ""),
        (["a.png", "b7.png", "b9.png", "b12.png"], ""),
        (["1.png"], ""),
    ],
)
def test_gaps_in_the_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list, warning: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    for _ in range(2):  # a command lists its folder several times
        assert [path.name for path in list_images(tmp_path)] == names
    assert len(caplog.messages) == bool(warning)
    assert all(message.startswith(f"{tmp_path} {warning}") for message in caplog.messages)


@pytest.mark.parametrize("pair", [("f1.jpg", "f1.png"), ("f01.png", "f1.png"), ("still.bmp", "still.png")])
def test_two_images_of_one_number(tmp_path: Path, pair: tuple[str, str]) -> None:
    for name in (*pair, "f2.png"):
        (tmp_path / name).write_bytes(b"")
    message = f"{tmp_path / pair[1]} and {pair[0]} have the same number or name: remove one of"
    refused(tmp_path, f"^{re.escape(message)}")


def test_sizes_must_be_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(30):
        save(tmp_path / f"{k}.png", NOISE[0, :, : 12 if k == 29 else 14])
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)  # sizes are read without decoding
    assert common_size(list_images(tmp_path)[:29]) == (10, 14)
    refused(tmp_path, r"29\.png is 10x12, but the images before it are 10x14: remove it from the --data folder")


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    refused(tmp_path, re.escape(f"{tmp_path} has no PNG or JPEG files, nor WebP"))


# Pixels


@pytest.mark.parametrize("suffix", sorted({*SUFFIXES} - {".jpg", ".jpeg"}))
def test_every_type_is_read(tmp_path: Path, suffix: str) -> None:
    grey = suffix == ".pgm"
    path = save(tmp_path / f"f{suffix.upper()}", NOISE[0, ..., 0] if grey else NOISE[0])
    assert np.array_equal(pixels_of(tmp_path)[0], NOISE[0, ..., :1].repeat(3, -1) if grey else NOISE[0])
    assert frame_total(path) == 1


def test_grey_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(NOISE[0, ..., 0])
    palette = Image.fromarray(NOISE[1]).quantize(16)
    bilevel = grey.point(lambda value: 255 * (value > 99)).convert("1")
    for k, image in enumerate([grey, palette, bilevel]):
        save(tmp_path / f"{k}.png", image)
    save(tmp_path / "3.jpg", grey, quality=100)
    frames = pixels_of(tmp_path)
    assert np.array_equal(frames[0], NOISE[0, ..., :1].repeat(3, -1))
    assert np.array_equal(frames[1], np.asarray(palette.convert("RGB")))
    assert np.array_equal(frames[2], 255 * (NOISE[0, ..., :1] > 99).repeat(3, -1))
    assert np.abs(frames[3].astype(int) - frames[0]).max() <= 3


@pytest.mark.parametrize(("pix_fmt", "channels"), [("rgb48", 3), ("gray16", 1), ("rgba64", 4)])
@pytest.mark.parametrize(("name", "order"), [("deep.png", "be"), ("deep.tif", "le")])
def test_16_bits_are_rounded(tmp_path: Path, pix_fmt: str, channels: int, name: str, order: str) -> None:
    pixels = DEEP[..., :channels].copy() if channels > 1 else DEEP[..., 0]
    if channels == 4:
        pixels[..., 3] = 65535
    encoder = av.CodecContext.create("tiff" if name.endswith("tif") else "png", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = 10, 14, pix_fmt + order, Fraction(1, 25)
    packets = [*encoder.encode(av.VideoFrame.from_ndarray(pixels, format=pix_fmt + order)), *encoder.encode()]
    (tmp_path / name).write_bytes(b"".join(map(bytes, packets)))
    expected = np.round(DEEP[..., : min(channels, 3)] / 257).astype(np.uint8)
    assert np.array_equal(pixels_of(tmp_path)[0], np.broadcast_to(expected, (10, 14, 3)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_put_upright(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"f{suffix}", DEEP[..., 0], exif=exif_of(6))
    assert np.array_equal(pixels_of(tmp_path)[0, ..., 0], np.rot90(np.round(DEEP[..., 0] / 257), -1))


@pytest.mark.parametrize(
    ("dtype", "shape", "options"),
    [
        (np.uint16, (10, 14, 3), {"photometric": "rgb", "tile": (16, 16)}),
        (np.uint16, (10, 14, 4), {"photometric": "separated"}),
        (np.int16, (10, 14), {}),
        (np.uint32, (10, 14), {}),
        (np.float32, (10, 14), {}),
    ],
)
def test_samples_that_cannot_be_rounded(tmp_path: Path, dtype: type, shape: tuple, options: dict) -> None:
    tifffile.imwrite(tmp_path / "f.tif", np.ones(shape, dtype), **options)
    refused(tmp_path, r"f\.tif has samples of more than 8 bits that cannot be rounded: save it with 8")


def test_transparent_pixels(tmp_path: Path) -> None:
    pixels = np.dstack([NOISE[0], np.full((10, 14), 255, np.uint8)])
    save(tmp_path / "f.png", pixels)
    assert np.array_equal(pixels_of(tmp_path)[0], NOISE[0])
    pixels[3, 4, 3] = 254
    save(tmp_path / "f.png", pixels)
    refused(tmp_path, r"f\.png has transparent pixels, which a video frame cannot have: flatten it onto")
    save(tmp_path / "f.png", Image.fromarray(NOISE[0]).quantize(16), transparency=0)
    refused(tmp_path, "transparent pixels")


def test_photo_with_a_preview_is_a_still_image(tmp_path: Path) -> None:
    path, alone = tmp_path / "f.jpg", io.BytesIO()
    photo, preview = (Image.new("RGB", (14, 10), colour) for colour in ("red", "blue"))
    photo.save(alone, "JPEG")
    photo.save(path, "MPO", save_all=True, append_images=[preview])
    with Image.open(path, formats=["JPEG"]) as image:
        assert image.format == "MPO" and image.n_frames == 2
    assert frame_total(path) == 1 and np.array_equal(pixels_of(tmp_path)[0], np.asarray(Image.open(alone)))


@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", {}), (".webp", {}), (".tif", {}), (".tif", {"compression": "tiff_lzw"})]
)
def test_exif_puts_a_photo_upright(tmp_path: Path, suffix: str, options: dict) -> None:
    path = save(tmp_path / f"f{suffix}", NOISE[0], exif=exif_of(6), **options)  # turn clockwise to show
    assert np.array_equal(pixels_of(tmp_path)[0], np.rot90(NOISE[0], -1)) and common_size([path]) == (14, 10)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["before", "after", "text"])
def test_orientation_anywhere_in_a_png(tmp_path: Path, orientation: int, place: str) -> None:
    """EXIF may follow the pixels: sizes are those of the upright pictures all the same."""
    path = tmp_path / "f.png"
    if place == "text":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
        save(path, NOISE[0], pnginfo=text)
    else:
        save(path, NOISE[0], exif=exif_of(orientation))
    if place == "after":
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        end = data.index(b"IEND") - 4
        path.write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
    assert common_size([path]) == load_video(str(path)).frames.shape[2:]


# Colour profiles


def profile_of(name: str, space: bytes = b"RGB ") -> bytes:
    """An ICC profile of this description; 13 characters replace those of Pillow's 'sRGB built-in'."""
    data = SRGB.replace("sRGB built-in".encode("utf-16-be"), name.ljust(13).encode("utf-16-be"))
    return data[:16] + space + data[20:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (profile_of("Display P3"), "the colour profile 'Display P3'"),
        (b"broken", "a colour profile that cannot be read"),
        (SRGB, ""),
        (profile_of("c sRGB 2014"), ""),
        (profile_of("Dot Gain 20%", b"GRAY"), ""),
    ],
)
def test_profile_is_reported_once(tmp_path: Path, caplog, suffix: str, profile: bytes, name: str) -> None:
    paths = [tmp_path / f"{k}{suffix}" for k in range(3)]
    for k, path in enumerate(paths):
        save(path, NOISE[k], icc_profile=profile if k else None)
    frames = [*read_images(paths), *read_images(paths[2:0:-1])]
    assert suffix == ".jpg" or np.array_equal(frames, NOISE[[0, 1, 2, 2, 1]])
    expected = f"{paths[1]} has {name}: values are read as stored, not converted to sRGB; convert the images to sRGB"
    assert len(caplog.messages) == bool(name)
    assert all(message.startswith(expected) for message in caplog.messages)


def test_profile_without_the_library_that_reads_it(tmp_path: Path, caplog, monkeypatch) -> None:
    class Missing:
        def __getattr__(self, name: str) -> None:
            raise ImportError

    monkeypatch.setattr(ImageCms, "core", Missing())
    save(tmp_path / "f.png", NOISE[0], icc_profile=profile_of("Adobe RGB"))
    assert np.array_equal(pixels_of(tmp_path)[0], NOISE[0])
    assert "has a colour profile that cannot be read: values are read as stored" in caplog.text


# Animations


@pytest.mark.parametrize("suffix", [".webp", ".png", ".apng"])
@pytest.mark.parametrize(
    ("durations", "times"), [([40, 40, 100, 33], [0, 40, 80, 180, 213]), ([20, 0, 50, 0], [0, 20, 120, 170, 270])]
)
def test_animation(tmp_path: Path, suffix: str, durations: list[int], times: list[int]) -> None:
    path = animate(tmp_path / f"a{suffix}", NOISE[:4], duration=durations)
    assert np.array_equal(list(read_animation(path)), NOISE[:4])
    assert (animation_times(path), frame_total(path), common_size([path])) == (times, 4, (10, 14))
    refused(tmp_path, f"{path} is an animation of 4 frames, a folder takes still pictures: pass")


def test_times_are_rounded_after_summing(tmp_path: Path) -> None:
    """A thirtieth of a second, which not every Pillow writes: put into the control chunk of each frame."""
    path = animate(tmp_path / "a.png", NOISE[:6], duration=50)
    data = bytearray(path.read_bytes())
    for match in list(re.finditer(b"fcTL", data)):
        start, delay = match.start(), match.end() + 20
        data[delay : delay + 4] = struct.pack(">HH", 1, 30)
        data[start + 30 : start + 34] = struct.pack(">I", zlib.crc32(data[start : start + 30]))
    path.write_bytes(data)
    assert animation_times(path) == [0, 33, 67, 100, 133, 167, 200]


def test_default_image_of_an_animation_is_no_frame(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.png", NOISE[:3], default_image=True, duration=50)
    assert np.array_equal(list(read_animation(path)), NOISE[1:3]) and animation_times(path) == [0, 50, 100]


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_orientation_profile_and_alpha_of_an_animation(tmp_path: Path, caplog, suffix: str) -> None:
    options = {"duration": 40, "exif": exif_of(6), "icc_profile": profile_of("Display P3")}
    path = animate(tmp_path / f"a{suffix}", NOISE[:3], **options)
    assert np.array_equal(list(read_animation(path)), np.rot90(NOISE[:3], -1, (1, 2)))
    assert common_size([path]) == (14, 10)
    assert [message.split(":")[0] for message in caplog.messages] == [f"{path} has the colour profile 'Display P3'"]
    pixels = np.concatenate([NOISE[:3], np.full((3, 10, 14, 1), 255, np.uint8)], -1)
    assert np.array_equal(list(read_animation(animate(path, pixels, duration=40))), NOISE[:3])
    pixels[2, 4, 5, 3] = 250
    refused(animate(path, pixels, duration=40), "has transparent pixels, which a video frame cannot have: flatten it")


def test_animation_of_16_bits_and_pages(tmp_path: Path) -> None:
    path = animate(tmp_path / "a.png", NOISE[:2, ..., 0].astype(np.uint16) * 200)
    refused(path, r"a\.png has samples of more than 8 bits that cannot be rounded")
    path = animate(tmp_path / "a.tif", NOISE[:3])
    refused(path, r"a\.tif is a TIFF file of 3 pages, where one picture is read: save each")


# Broken images


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("keep", [0, 20, 60, 200])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".ppm", ".tif"])
def test_broken_image(tmp_path: Path, keep: int, suffix: str) -> None:
    path = save(tmp_path / f"f{suffix}", NOISE[0])
    path.write_bytes(path.read_bytes()[:keep])
    save(tmp_path / f"a{suffix}", NOISE[1])
    message = refused(tmp_path, "cannot be read as an image .*replace it with an intact file")
    assert message.startswith(f"{path} ")


@pytest.mark.parametrize(("side", "depth"), [(60_000, 8), (15_000, 8), (2**31 - 1, 8), (60_000, 16)])
def test_huge_dimensions(side: int, depth: int, tmp_path: Path) -> None:
    """A PNG of some hundred bytes that declares gigapixels is refused by its header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    for source in (tmp_path / "bomb.png", tmp_path):
        assert "bomb.png" in refused(source, "cannot be read as an image")
