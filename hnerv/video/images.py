"""A folder of PNG and JPEG files as frames."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnerv.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
_EXIF_ORIENTATION = 0x0112
_PNG, _CHUNK = b"\x89PNG\r\n\x1a\n", struct.Struct(">I4s")
_MAY_TURN = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
"""Chunks in which Pillow looks for an orientation."""
_MOST_PIXELS = 1 << 26
"""What is larger is left to Pillow to refuse."""


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key that puts f2 before f10; equal numbers, as in f1 and f01, go by their spelling."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], path.name


def list_images(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder in natural order, hidden ones left out. UserError when there are none."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not found:
        raise UserError(f"{folder} has no PNG or JPEG files: pass a folder of images or the path of a video to --data")
    return sorted(found, key=natural_key)


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
    """Yield each image as (H, W, 3) uint8 RGB, upright by its EXIF tag.

    Grey and palette become RGB, 16 bits are rounded to 8. Raises UserError for transparent pixels and broken files.
    """
    for path in paths:
        yield _read_image(path)


def _read_image(path: Path) -> np.ndarray:
    from PIL import ImageOps

    with _opened(path) as image:
        image.load()
        if _is_16_bit_png(path):
            pixels = _pixels_of_16_bits(path)
        else:
            image = ImageOps.exif_transpose(image)
            # A transparent colour or palette entry is in `info`, where no mode shows it.
            transparent = image.has_transparency_data
            pixels = np.array(image.convert("RGBA" if transparent else "RGB"))
    if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
        raise UserError(
            f"{path} has transparent pixels, which a video frame cannot have: flatten it onto an opaque background "
            "and save it without alpha"
        )
    return pixels[..., :3]


def _pixels_of_16_bits(path: Path) -> np.ndarray:
    """Pillow cuts colours of 16 bits to their high byte; FFmpeg hands out all bits, which are rounded here."""
    import av

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        deep = frame.to_ndarray(format="rgba64le")
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _is_16_bit_png(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(25)
    return head.startswith(_PNG) and len(head) == 25 and head[24] == 16


def _size_of(path: Path) -> tuple[int, int]:
    return _size_of_plain_png(path) or _size_by_pillow(path)


def _size_of_plain_png(path: Path) -> tuple[int, int] | None:
    """(H, W) of a PNG file that is whole in its chunks and says nothing of its orientation; None for all others.

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


def _size_by_pillow(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open an image; what Pillow raises on a broken one, here or inside the block, becomes a UserError."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        cause = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as PNG or JPEG ({cause}): replace it with an intact file") from error
