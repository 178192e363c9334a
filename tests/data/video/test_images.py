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

from hnerv.errors import UserError
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

NOISE = np.random.default_rng(0).integers(0, 256, (6, 10, 14, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _write_16_bit(path: Path, pixels: np.ndarray, pix_fmt: str) -> None:
    encoder = av.CodecContext.create("tiff" if path.suffix == ".tif" else "png", "w")
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


@pytest.mark.parametrize(("pix_fmt", "channels"), [("rgb48", 3), ("gray16", 1), ("rgba64", 4)])
@pytest.mark.parametrize(("name", "order"), [("deep.png", "be"), ("deep.tif", "le")])
def test_16_bits_are_rounded(tmp_path: Path, pix_fmt: str, channels: int, name: str, order: str) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (10, 14, channels), dtype=np.uint16)
    if channels == 4:
        deep[..., 3] = 65535
    _write_16_bit(tmp_path / name, deep if channels > 1 else deep[..., 0], pix_fmt + order)
    expected = np.round(deep[..., :3] / 257).astype(np.uint8)
    assert np.array_equal(_only(tmp_path), np.broadcast_to(expected, (10, 14, 3)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_put_upright(tmp_path: Path, suffix: str) -> None:
    deep, exif = np.random.default_rng(1).integers(0, 65536, (10, 14), dtype=np.uint16), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(deep).save(tmp_path / f"f{suffix}", exif=exif)
    assert np.array_equal(_only(tmp_path)[..., 0], np.rot90(np.round(deep / 257), -1))


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
def test_samples_that_would_be_cut_are_refused(tmp_path: Path, dtype: type, shape: tuple, options: dict) -> None:
    tifffile.imwrite(tmp_path / "f.tif", np.ones(shape, dtype), **options)
    with pytest.raises(
        UserError, match=r"f\.tif has samples of more than 8 bits that cannot be rounded: save it with 8"
    ):
        load_video(str(tmp_path))


@pytest.mark.parametrize("suffix", sorted({*SUFFIXES} - {".jpg", ".jpeg"}))
def test_every_type_is_read(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(NOISE[0, ..., 0] if suffix == ".pgm" else NOISE[0])
    image.save(tmp_path / f"f{suffix.upper()}", **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(_only(tmp_path), NOISE[0, ..., :1].repeat(3, -1) if suffix == ".pgm" else NOISE[0])
    assert frame_total(tmp_path / f"f{suffix.upper()}") == 1


def test_a_folder_of_several_types_is_read_in_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (8, 10, 14, 3), dtype=np.uint8)
    for i, suffix in enumerate([".png", ".webp", ".tiff", ".png", ".webp", ".png", ".tiff", ".webp"]):
        image = Image.fromarray(pixels[i])
        image.save(tmp_path / f"f{i + 5}{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    for name in ("Thumbs.db", "notes.txt", "meta.json", ".hidden.gif", "noext"):
        (tmp_path / name).write_bytes(b"\0")
    assert np.array_equal(load_video(str(tmp_path)).frames.permute(0, 2, 3, 1).numpy(), pixels)
    assert not caplog.records


@pytest.mark.parametrize("name", ["a.exr", "b.GIF", "c.heic", "d.dpx", "e.jp2", "f.avif", "g.svg"])
@pytest.mark.parametrize("count", [0, 2])
def test_images_of_another_type_are_refused(tmp_path: Path, name: str, count: int) -> None:
    for i in range(count):
        Image.fromarray(NOISE[i]).save(tmp_path / f"{i}.png")
    for other in (name, "z.psd"):
        (tmp_path / other).write_bytes(b"\0")
    expected = f"{tmp_path / name} is an image of a type that is not read: convert it to PNG, or move it elsewhere"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        list_images(tmp_path)


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
def test_two_images_of_one_number_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    for name in (*pair, "f2.png"):
        (tmp_path / name).write_bytes(b"")
    expected = f"{tmp_path / pair[1]} and {pair[0]} have the same number or name: remove one of them"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        list_images(tmp_path)


def _profile(name: str, space: bytes = b"RGB ") -> bytes:
    """An ICC profile of this description; 13 characters replace those of Pillow's 'sRGB built-in'."""
    data = SRGB.replace("sRGB built-in".encode("utf-16-be"), name.ljust(13).encode("utf-16-be"))
    return data[:16] + space + data[20:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (_profile("Display P3"), "the colour profile 'Display P3'"),
        (b"broken", "a colour profile that cannot be read"),
        (SRGB, ""),
        (_profile("c sRGB 2014"), ""),
        (_profile("Dot Gain 20%", b"GRAY"), ""),
    ],
)
def test_a_profile_is_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, profile: bytes, name: str
) -> None:
    paths = [tmp_path / f"{i}{suffix}" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(NOISE[i]).save(
            path, icc_profile=profile if i else None, **({"lossless": True} if "w" in suffix else {})
        )
    read = [*read_images(paths), *read_images(paths[2:0:-1])]
    if suffix != ".jpg":
        assert np.array_equal(read, NOISE[[0, 1, 2, 2, 1]])
    expected = f"{paths[1]} has {name}: values are read as stored, not converted to sRGB; convert the images to sRGB"
    assert len(caplog.messages) == bool(name)
    assert all(message.startswith(expected) for message in caplog.messages)


def test_a_profile_without_the_library_that_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing:
        def __getattr__(self, name: str) -> None:
            raise ImportError

    monkeypatch.setattr(ImageCms, "core", Missing())
    Image.fromarray(NOISE[0]).save(tmp_path / "f.png", icc_profile=_profile("Adobe RGB"))
    assert np.array_equal(_only(tmp_path), NOISE[0])
    assert "has a colour profile that cannot be read: values are read as stored" in caplog.text


def _animate(path: Path, pixels: np.ndarray, **options) -> None:
    frames = [Image.fromarray(frame) for frame in pixels]
    if path.suffix == ".webp":
        options["lossless"] = True
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".apng"])
@pytest.mark.parametrize(
    ("durations", "times"),
    [
        ([40, 40, 100, 33], [0, 40, 80, 180, 213]),
        ([20, 0, 50, 0], [0, 20, 120, 170, 270]),
    ],
)
def test_an_animation(tmp_path: Path, suffix: str, durations: list[int], times: list[int]) -> None:
    path = tmp_path / f"a{suffix}"
    _animate(path, NOISE[:4], duration=durations)
    assert np.array_equal(list(read_animation(path)), NOISE[:4])
    assert (animation_times(path), frame_total(path), common_size([path])) == (times, 4, (10, 14))
    for read in (lambda: [*read_images([path])], lambda: load_video(str(tmp_path))):
        with pytest.raises(UserError, match=f"{path} is an animation of 4 frames, a folder takes still pictures: pass"):
            read()


def test_times_are_not_rounded_one_by_one(tmp_path: Path) -> None:
    """A thirtieth of a second, which not every Pillow writes: put into the control chunk of each frame."""
    _animate(tmp_path / "a.png", NOISE, duration=50)
    data = bytearray((tmp_path / "a.png").read_bytes())
    for match in list(re.finditer(b"fcTL", data)):
        start, delay = match.start(), match.end() + 20
        data[delay : delay + 4] = struct.pack(">HH", 1, 30)
        data[start + 30 : start + 34] = struct.pack(">I", zlib.crc32(data[start : start + 30]))
    (tmp_path / "a.png").write_bytes(data)
    assert animation_times(tmp_path / "a.png") == [0, 33, 67, 100, 133, 167, 200]


def test_the_default_image_of_an_animation_is_no_frame(tmp_path: Path) -> None:
    _animate(tmp_path / "a.png", NOISE[:3], default_image=True, duration=50)
    assert np.array_equal(list(read_animation(tmp_path / "a.png")), NOISE[1:3])
    assert animation_times(tmp_path / "a.png") == [0, 50, 100]


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_an_animation_is_put_upright_and_its_profile_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a{suffix}"
    _animate(path, NOISE[:3], duration=40, exif=exif, icc_profile=_profile("Display P3"))
    assert np.array_equal(list(read_animation(path)), np.rot90(NOISE[:3], -1, (1, 2)))
    assert common_size([path]) == (14, 10)
    assert [message.split(":")[0] for message in caplog.messages] == [f"{path} has the colour profile 'Display P3'"]


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_a_transparent_animation_is_refused(tmp_path: Path, suffix: str) -> None:
    pixels = np.concatenate([NOISE[:3], np.full((3, 10, 14, 1), 255, np.uint8)], -1)
    _animate(tmp_path / f"a{suffix}", pixels, duration=40)
    assert np.array_equal(list(read_animation(tmp_path / f"a{suffix}")), NOISE[:3])
    pixels[2, 4, 5, 3] = 250
    _animate(tmp_path / f"b{suffix}", pixels, duration=40)
    with pytest.raises(UserError, match=r"b\.\w+ has transparent pixels, which a video frame cannot have: flatten it"):
        list(read_animation(tmp_path / f"b{suffix}"))


def test_an_animation_of_16_bits_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(NOISE[i, ..., 0].astype(np.uint16) * 200) for i in range(2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"a\.png has samples of more than 8 bits that cannot be rounded"):
        list(read_animation(tmp_path / "a.png"))


def test_pages_are_refused(tmp_path: Path) -> None:
    _animate(tmp_path / "a.tif", NOISE[:3])
    for read in (frame_total, lambda path: [*read_images([path])], lambda path: [*read_animation(path)]):
        with pytest.raises(UserError, match=r"a\.tif is a TIFF file of 3 pages, where one picture is read: save each"):
            read(tmp_path / "a.tif")


def test_a_photo_with_a_preview_is_a_still_image(tmp_path: Path) -> None:
    path, alone = tmp_path / "f.jpg", io.BytesIO()
    frames = [Image.new("RGB", (14, 10), colour) for colour in ("red", "blue")]
    frames[0].save(alone, "JPEG")
    frames[0].save(path, "MPO", save_all=True, append_images=frames[1:])
    with Image.open(path, formats=["JPEG"]) as image:
        assert image.format == "MPO" and image.n_frames == 2
    assert frame_total(path) == 1
    assert np.array_equal(_only(tmp_path), np.asarray(Image.open(alone)))


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


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", {}), (".webp", {"lossless": True}), (".tif", {}), (".tif", {"compression": "tiff_lzw"})],
)
def test_exif_puts_a_photo_upright(tmp_path: Path, suffix: str, options: dict) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    Image.fromarray(NOISE[0]).save(tmp_path / f"f{suffix}", exif=exif, **options)
    assert np.array_equal(_only(tmp_path), np.rot90(NOISE[0], -1))
    assert common_size([tmp_path / f"f{suffix}"]) == (14, 10)


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
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert common_size(list_images(tmp_path)) == (10, 14)


def test_sizes_must_be_equal(tmp_path: Path) -> None:
    for i, size in enumerate([(14, 10), (14, 10), (12, 10)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    with pytest.raises(
        UserError, match=r"2\.png is 10x12, but the images before it are 10x14: remove it from the --data folder"
    ):
        load_video(str(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("keep", [0, 20, 60, 200])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".ppm", ".tif"])
def test_broken_image(tmp_path: Path, keep: int, suffix: str) -> None:
    path = tmp_path / f"f{suffix}"
    Image.fromarray(NOISE[0]).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    Image.fromarray(NOISE[1]).save(tmp_path / f"a{suffix}")
    with pytest.raises(UserError, match="cannot be read as an image .*replace it with an intact file") as caught:
        load_video(str(tmp_path))
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} has no PNG or JPEG files, nor WebP")):
        load_video(str(tmp_path))
