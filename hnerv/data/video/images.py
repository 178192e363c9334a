"""Folders of still images and animated image files as frames.

Read with Pillow, as RGB of 8 bits. Colour profiles are not applied.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnerv.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger("hnerv")
SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
_OTHER_TYPES = (
    "arw avif avifs cr2 cr3 cur dcm dcx dds dib dng dpx eps exr fit fits gif hdr heic heif hif icns ico j2c j2k jfif "
    "jng jp2 jpc jpe jpf jpx jxl jxr mpo nef orf pam pbm pcx pfm pnm psd qoi raf ras rw2 sgi svg tga wmf xbm xcf xpm"
)
"""Images too, but not read: a folder that holds one is refused, as it would lose a frame."""
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_TILE, _TIFF_FORMAT = 256, 257, 258, 322, 339
_DEFAULT_MS = 100
"""Duration of a frame that declares none, as in browsers."""
_PNG, _CHUNK = b"\x89PNG\r\n\x1a\n", struct.Struct(">I4s")
_MAY_TURN = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
"""Chunks in which Pillow looks for an orientation."""
_OF_BROKEN_FILES = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error)
"""What Pillow's readers raise, next to its own error for images that are too large."""
_MOST_PIXELS = 1 << 26
"""What is larger is left to Pillow to refuse."""


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key that puts f2 before f10; equal numbers, as in f1 and f01, go by their spelling."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], path.name


def list_images(folder: Path) -> list[Path]:
    """The still images of a folder (SUFFIXES) in natural order, hidden ones left out.

    Logs a warning once if the numbers in their names have gaps. Raises UserError when there are none, for an image of
    another type, and for two files of the same number.
    """
    found = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=natural_key)
    for path in found:
        if path.suffix[1:].lower() in _OTHER_TYPES.split():
            raise UserError(f"{path} is an image of a type that is not read: convert it to PNG, or move it elsewhere")
    images = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(
            f"{folder} has no PNG or JPEG files, nor WebP, BMP, TIFF or PPM images: pass a folder of images or the "
            "path of a video to --data"
        )
    _check_numbers(folder, images)
    return images


def _check_numbers(folder: Path, images: list[Path]) -> None:
    """Refuse images whose names differ only in type or zeros, and warn about gaps in a common numbering."""
    seen: dict[tuple, Path] = {}
    for image in images:
        other = seen.setdefault(tuple(natural_key(Path(image.stem))[0]), image)
        if other != image:
            raise UserError(f"{image} and {other.name} have the same number or name: remove one of them")
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", image.stem, re.DOTALL) for image in images]
    if len({part and (part[1], part[3]) for part in parts}) > 1 or not parts[0]:
        return
    numbers = [int(part[2]) for part in parts]
    # Every fifth frame is a choice: gaps are counted in multiples of the largest step that reaches all numbers.
    step = math.gcd(*(after - before for before, after in pairwise(numbers)))
    for image, part, (before, after) in zip(images, parts, pairwise(numbers), strict=False):
        if after - before > step:
            missing = (numbers[-1] - numbers[0]) // step + 1 - len(numbers)
            expected = f"{part[1]}{before + step:0{len(part[2])}d}{part[3]}{image.suffix}"
            _warn_once(
                folder,
                "numbers",
                f"{folder} skips {missing} number{'s' * (missing > 1)} after {image.name} ({expected} is missing): the "
                "frames are read as consecutive",
            )
            return


def common_size(paths: list[Path]) -> tuple[int, int]:
    """(H, W) of all images, read from their headers. Raises UserError naming the first one that differs."""
    size = _size_of(paths[0])
    for path in paths[1:]:
        other = _size_of(path)
        if other != size:
            raise UserError(
                f"{path} is {other[0]}x{other[1]}, but the images before it are {size[0]}x{size[1]}: remove it from "
                "the --data folder, or resize it"
            )
    return size


def read_images(paths: list[Path]) -> Iterator[np.ndarray]:
    """Yield each still image as (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Grey and palette become RGB, 16 bits are rounded to 8. Logs a warning for the first colour profile that is not
    sRGB. Raises UserError for animations, transparent pixels, samples of more than 16 bits and broken files.
    """
    for path in paths:
        with _opened(path) as image:
            frames = _frames_of(path, image)
            if len(frames) > 1:
                raise UserError(
                    f"{path} is an animation of {len(frames)} frames, a folder takes still pictures: pass the file "
                    "alone to --data, or save its frames as PNG files"
                )
            _check_profile(path if len(paths) == 1 else path.parent, path, image)
            image.seek(frames[0])
            pixels = _pixels(path, image)
        yield pixels


def frame_total(path: Path) -> int:
    """Frames of an animated WebP or PNG file, 1 for a still image. Raises UserError."""
    with _opened(path) as image:
        return len(_frames_of(path, image))


def read_animation(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of an animated WebP or PNG file, composed and as `read_images` does. Raises UserError."""
    with _opened(path) as image:
        _check_profile(path, path, image)
        for position in _frames_of(path, image):
            image.seek(position)
            yield _pixels(path, image)


def animation_times(path: Path) -> list[int]:
    """Milliseconds at which each frame starts and, as the last value, the last one ends. Decodes all frames.

    Has frame_total(path) + 1 values. A duration of 0, or none, counts as 100 ms. Raises UserError.
    """
    ends = [0.0]
    with _opened(path) as image:
        for position in _frames_of(path, image):
            image.seek(position)
            image.load()
            ends.append(ends[-1] + (image.info.get("duration") or _DEFAULT_MS))
    return [round(end) for end in ends]


def _frames_of(path: Path, image: Image) -> range:
    """Positions of the frames for Image.seek. Raises UserError for a TIFF file of several pages.

    Not counted: the default image of an APNG, for viewers without animation, and what a JPEG of a phone or camera
    carries behind its picture (MPO), such as a preview or a depth map.
    """
    total = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format == "TIFF" and total > 1:
        raise UserError(f"{path} is a TIFF file of {total} pages, where one picture is read: save each page as a file")
    return range(int(getattr(image, "default_image", False)), total)


def _pixels(path: Path, image: Image) -> np.ndarray:
    """(H, W, 3) uint8 of the frame that `image` is at."""
    from PIL import Image, ImageOps

    if _has_16_bits(path, image):
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        image.load()  # Pillow checks that the file is intact, which FFmpeg does not
        image = Image.fromarray(_pixels_of_16_bits(path))
        image.getexif()[_EXIF_ORIENTATION] = orientation
    image = ImageOps.exif_transpose(image)
    # A transparent colour or palette entry is in `info`, where no mode shows it.
    transparent = image.has_transparency_data
    pixels = np.array(image.convert("RGBA" if transparent else "RGB"))
    if transparent and pixels[..., 3].min() < 255:
        raise UserError(
            f"{path} has transparent pixels, which a video frame cannot have: flatten it onto an opaque background "
            "and save it without alpha"
        )
    return pixels[..., :3]


def _pixels_of_16_bits(path: Path) -> np.ndarray:
    """Pillow cuts colours of 16 bits to their high byte; FFmpeg hands out all bits, which are rounded here."""
    import av

    try:
        with path.open("rb") as file, av.open(file) as container:
            [frame] = container.decode(video=0)
            deep = frame.to_ndarray(format="rgba64le")
    except av.error.FFmpegError as error:
        raise OSError(str(error)) from error
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _has_16_bits(path: Path, image: Image) -> bool:
    """Whether FFmpeg has to read the samples. Raises UserError for samples that neither it nor Pillow reads exactly."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    with path.open("rb") as file:
        head = file.read(25)
    deep = max(tags.get(_TIFF_BITS, (1,))) == 16 or (head.startswith(_PNG) and head[24:] == b"\x10")
    # FFmpeg decodes these to other values without an error, and of an APNG only the first frame.
    misread = max(tags.get(_TIFF_FORMAT, (1,))) > 1 or _TIFF_TILE in tags or image.mode == "CMYK"
    if deep and (misread or getattr(image, "is_animated", False)) or not deep and image.mode[0] in "IF":
        raise UserError(f"{path} has samples of more than 8 bits that cannot be rounded: save it with 8 bits")
    return deep


def _check_profile(source: Path, path: Path, image: Image) -> None:
    """Warn, once for a source, about a colour profile that is neither grey nor sRGB."""
    name = _profile_name(image.info.get("icc_profile") or b"")
    if name:
        _warn_once(
            source,
            "profile",
            f"{path} has {name}: values are read as stored, not converted to sRGB; convert the images to sRGB first if "
            "their colours should match other videos",
        )


@functools.lru_cache(maxsize=8)
def _profile_name(profile: bytes) -> str:
    """The description in an ICC profile, '' where its values are those of sRGB, or grey."""
    from PIL import ImageCms

    if not profile or profile[16:20] == b"GRAY":
        return ""
    try:
        name = " ".join(ImageCms.getProfileDescription(io.BytesIO(profile)).split())
    except (ImportError, ImageCms.PyCMSError):  # a Pillow without ImageCms, or a broken profile
        return "a colour profile that cannot be read"
    return "" if "srgb" in name.casefold() else f"the colour profile {name!r}"


def _size_of_plain_png(path: Path) -> tuple[int, int] | None:
    """(H, W) of a PNG file with all its chunks and without an orientation; None for all others.

    Pillow decodes every pixel to know that there is no EXIF tag behind them, a thousand times the work.
    """
    try:
        with path.open("rb") as file:
            head = file.read(33)
            if not head.startswith(_PNG) or head[12:16] != b"IHDR":
                return None
            while True:
                length, kind = _CHUNK.unpack(file.read(_CHUNK.size))
                if kind in _MAY_TURN:
                    return None
                if kind == b"IEND":
                    break
                file.seek(length + 4, 1)
    except (OSError, struct.error):
        return None
    width, height = struct.unpack(">II", head[16:24])
    return (height, width) if 0 < height * width <= _MOST_PIXELS else None


def _size_of(path: Path) -> tuple[int, int]:
    if size := _size_of_plain_png(path):
        return size
    with _opened(path) as image:
        # The size of a TIFF file is the upright one in some versions of Pillow, where its tags never are.
        tags = image.tag_v2 if image.format == "TIFF" else {}
        width, height = (tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]) if tags else image.size
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open an image; what Pillow raises on a broken one, here or inside the block, becomes a UserError."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except UserError:
        raise
    except (*_OF_BROKEN_FILES, Image.DecompressionBombError) as error:
        cause = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as an image ({cause}): replace it with an intact file, such as a PNG of 8 bits"
        ) from error


_warned: set[tuple[Path, str]] = set()


def _warn_once(source: Path, subject: str, message: str) -> None:
    """A command opens its source several times and may read it in pieces: only the first warning is logged."""
    if (source, subject) not in _warned:
        _warned.add((source, subject))
        _log.warning("%s", message)
