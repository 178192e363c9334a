"""Folders of still images and animated images as frames, read with Pillow as 8-bit RGB, without colour management."""

from __future__ import annotations

import functools
import io
import logging
import math
import os
import re
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
_UNSUPPORTED = (
    "arw avif avifs cr2 cr3 cur dcm dcx dds dib dng dpx eps exr fit fits gif hdr heic heif hif icns ico j2c j2k jfif "
    "jng jp2 jpc jpe jpf jpx jxl jxr mpo nef orf pam pbm pcx pfm pnm psd qoi raf ras rw2 sgi svg tga wmf xbm xcf xpm"
)
"""Other types of images: skipping one in a folder would lose a frame, so the folder is refused."""
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_TILE, _TIFF_FORMAT = 256, 257, 258, 322, 339
_DEFAULT_MS = 100
"""Duration of a frame that declares none, as in browsers."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
"""Chunks in which Pillow looks for an orientation."""


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key with f2 before f10; equal numbers, as in f1 and f01, are sorted by their spelling."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], path.name


def list_images(folder: Path) -> list[Path]:
    """The images of a folder (SUFFIXES) in natural order, without hidden files.

    Logs one warning if the numbers in their names have gaps. Raises UserError if there are none, for an image of an
    unsupported type, and for two files with the same number.
    """
    paths = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=natural_key)
    for path in paths:
        if path.suffix[1:].lower() in _UNSUPPORTED.split():
            raise UserError(f"{path} is an image of a type that is not read: convert it to PNG, or move it elsewhere")
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(
            f"{folder} has no PNG or JPEG files, nor WebP, BMP, TIFF or PPM images: pass a folder of images or the "
            "path of a video to --data"
        )
    first_of: dict[tuple, Path] = {}
    for image in images:
        other = first_of.setdefault(tuple(natural_key(Path(image.stem))[0]), image)
        if other != image:
            raise UserError(f"{image} and {other.name} have the same number or name: remove one of them")
    _warn_of_gaps(folder, images)
    return images


def _warn_of_gaps(folder: Path, images: list[Path]) -> None:
    """Warn if all names are one prefix, a number and one suffix, and the numbers are not equally spaced."""
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", image.stem, re.DOTALL) for image in images]
    if len({part and (part[1], part[3]) for part in parts}) > 1 or not parts[0]:
        return
    numbers = [int(part[2]) for part in parts]
    # Every fifth frame may be a deliberate selection: the expected step is the largest that reaches all numbers.
    step = math.gcd(*(after - before for before, after in pairwise(numbers)))
    for image, part, (before, after) in zip(images, parts, pairwise(numbers), strict=False):
        if after - before > step:
            missing = (numbers[-1] - numbers[0]) // step + 1 - len(numbers)
            expected = f"{part[1]}{before + step:0{len(part[2])}d}{part[3]}{image.suffix}"
            message = (
                f"{folder} skips {missing} number{'s' * (missing > 1)} after {image.name} ({expected} is missing): the "
                "frames are read as consecutive"
            )
            return _warn_once(folder, "numbers", message)


def common_size(paths: list[Path]) -> tuple[int, int]:
    """Upright size (H, W) of all images, from their headers. Raises UserError naming the first one that differs."""
    size = _upright_size(paths[0])
    for path in paths[1:]:
        other = _upright_size(path)
        if other != size:
            raise UserError(
                f"{path} is {other[0]}x{other[1]}, but the images before it are {size[0]}x{size[1]}: remove it from "
                "the --data folder, or resize it"
            )
    return size


def _upright_size(path: Path) -> tuple[int, int]:
    with _open_image(path) as image:
        # EXIF may follow the pixels of a PNG file, so Pillow decodes them all before it answers. Skipping from chunk to
        # chunk takes a fiftieth of the time.
        if image.format == "PNG" and not _png_chunks(path) & _PNG_METADATA:
            return image.height, image.width
        # Some versions of Pillow report the upright size of a TIFF file, but its tags are always those of the file.
        tags = image.tag_v2 if image.format == "TIFF" else {}
        width, height = (tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]) if tags else image.size
        return (width, height) if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5 else (height, width)


def _png_chunks(path: Path) -> set[bytes]:
    """Types of the chunks in a PNG file: each is a length of 4 bytes, a type of 4, the data, a checksum of 4."""
    types = set()
    with path.open("rb") as file:
        file.seek(len(_PNG_SIGNATURE))
        while len(head := file.read(8)) == 8:
            types.add(head[4:])
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return types


def read_images(paths: list[Path]) -> Iterator[np.ndarray]:
    """Yield each still image as (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Grey and palette images become RGB, 16 bits are rounded to 8. Logs one warning about a colour profile other than
    sRGB. Raises UserError for animations, transparent pixels, samples of more than 16 bits and broken files.
    """
    for path in paths:
        with _open_image(path) as image:
            positions = _frame_positions(path, image)
            if len(positions) > 1:
                raise UserError(
                    f"{path} is an animation of {len(positions)} frames, a folder takes still pictures: pass the file "
                    "alone to --data, or save its frames as PNG files"
                )
            _check_profile(path if len(paths) == 1 else path.parent, path, image)
            image.seek(positions[0])
            pixels = _rgb_of(path, image)
        yield pixels


def frame_total(path: Path) -> int:
    """Frames of an animated WebP or PNG file, 1 for a still image. Raises UserError."""
    with _open_image(path) as image:
        return len(_frame_positions(path, image))


def read_animation(path: Path) -> Iterator[np.ndarray]:
    """Yield the composed frames of an animated WebP or PNG file, as `read_images` does. Raises UserError."""
    with _open_image(path) as image:
        _check_profile(path, path, image)
        for position in _frame_positions(path, image):
            image.seek(position)
            yield _rgb_of(path, image)


def animation_times(path: Path) -> list[int]:
    """Start of each frame in milliseconds, and the end of the last one: frame_total(path) + 1 values.

    Decodes all frames. A duration of 0, or none, counts as 100 ms. Raises UserError.
    """
    ends = [0.0]
    with _open_image(path) as image:
        for position in _frame_positions(path, image):
            image.seek(position)
            image.load()
            ends.append(ends[-1] + (image.info.get("duration") or _DEFAULT_MS))
    return [round(end) for end in ends]


def _frame_positions(path: Path, image: Image) -> range:
    """Arguments of Image.seek for all frames. Raises UserError for a TIFF file of several pages.

    Excludes the default image of an APNG, which is for viewers without animation, and the previews and depth maps that
    phones and cameras append to a JPEG (MPO).
    """
    total = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format == "TIFF" and total > 1:
        raise UserError(f"{path} is a TIFF file of {total} pages, where one picture is read: save each page as a file")
    return range(int(getattr(image, "default_image", False)), total)


def _rgb_of(path: Path, image: Image) -> np.ndarray:
    """(H, W, 3) uint8 of the frame at the current position."""
    from PIL import Image, ImageOps

    if _has_16_bits(path, image):
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        image.load()  # Pillow checks that the file is intact, which FFmpeg does not
        image = Image.fromarray(_round_16_bits(path))
        image.getexif()[_EXIF_ORIENTATION] = orientation
    image = ImageOps.exif_transpose(image)
    # The mode does not show a transparent colour or palette entry; `has_transparency_data` does.
    transparent = image.has_transparency_data
    pixels = np.array(image.convert("RGBA" if transparent else "RGB"))
    if transparent and pixels[..., 3].min() < 255:
        raise UserError(
            f"{path} has transparent pixels, which a video frame cannot have: flatten it onto an opaque background "
            "and save it without alpha"
        )
    return pixels[..., :3]


def _round_16_bits(path: Path) -> np.ndarray:
    """(H, W, 4) uint8, rounded: v / 257 maps 65535 to 255. Decoded by FFmpeg, as Pillow cuts colours to 8 bits."""
    import av

    try:
        with path.open("rb") as file, av.open(file) as container:
            [frame] = container.decode(video=0)
            deep = frame.to_ndarray(format="rgba64le")
    except av.error.FFmpegError as error:
        raise OSError(str(error)) from error
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _has_16_bits(path: Path, image: Image) -> bool:
    """Whether FFmpeg must decode the samples. Raises UserError for samples that neither library decodes exactly."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    with path.open("rb") as file:
        head = file.read(25)
    deep = max(tags.get(_TIFF_BITS, (1,))) == 16 or (head.startswith(_PNG_SIGNATURE) and head[24:] == b"\x10")
    # FFmpeg decodes signed or float samples, tiles and CMYK of 16 bits to wrong values without an error, and of an
    # animated PNG only the first frame.
    misread = max(tags.get(_TIFF_FORMAT, (1,))) > 1 or _TIFF_TILE in tags or image.mode == "CMYK"
    if deep and (misread or getattr(image, "is_animated", False)) or not deep and image.mode[0] in "IF":
        raise UserError(f"{path} has samples of more than 8 bits that cannot be rounded: save it with 8 bits")
    return deep


def _check_profile(source: Path, path: Path, image: Image) -> None:
    """Warn, once for each source, about a colour profile that is neither grey nor sRGB."""
    if name := _profile_name(image.info.get("icc_profile") or b""):
        message = (
            f"{path} has {name}: values are read as stored, not converted to sRGB; convert the images to sRGB first if "
            "their colours should match other videos"
        )
        _warn_once(source, "profile", message)


@functools.lru_cache(maxsize=8)
def _profile_name(profile: bytes) -> str:
    """The description in an ICC profile; '' if the profile is sRGB, grey or missing."""
    from PIL import ImageCms

    if not profile or profile[16:20] == b"GRAY":
        return ""
    try:
        name = " ".join(ImageCms.getProfileDescription(io.BytesIO(profile)).split())
    except (ImportError, ImageCms.PyCMSError):  # Pillow built without ImageCms, or a broken profile
        return "a colour profile that cannot be read"
    return "" if "srgb" in name.casefold() else f"the colour profile {name!r}"


@contextmanager
def _open_image(path: Path) -> Iterator[Image]:
    """Open an image, and convert errors of Pillow, here or in the block, to UserError."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except (UserError, MemoryError):
        raise
    except Exception as error:  # readers raise SyntaxError, KeyError, struct.error and more for broken files
        cause = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as an image ({cause}): replace it with an intact file, such as a PNG of 8 bits"
        ) from error


_warned: set[tuple[Path, str]] = set()


def _warn_once(source: Path, subject: str, message: str) -> None:
    """A command opens its source several times, maybe in segments: log only the first warning about a subject."""
    if (source, subject) not in _warned:
        _warned.add((source, subject))
        _log.warning("%s", message)
