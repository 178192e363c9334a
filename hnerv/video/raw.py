"""Raw video without a header (.yuv): its geometry from --raw-video, or from a file name as UVG and JVET have them."""

from __future__ import annotations

import re
from pathlib import Path

from hnerv.errors import UserError
from hnerv.geometry import parse_size
from hnerv.timeline import exact_rate
from hnerv.video.probing import DEFAULT_FPS, Medium

SUFFIX = ".yuv"
FORM = "WIDTHxHEIGHT:PIX_FMT[:FPS], as in 1920x1080:yuv420p10le:120"
_SIZES = {"qcif": "176x144", "cif": "352x288", "4cif": "704x576", "720p": "1280x720", "1080p": "1920x1080"}
_WORD = re.compile(
    r"(?P<size>[1-9]\d{1,4}x[1-9]\d{1,4}|4?q?cif|720p|1080p)(?P<behind>\d{2,3})?"
    r"|(?P<rate>\d{1,3}(\.\d+)?)(fps|hz)|4(?P<chroma>00|20|22|44)p?|(?P<depth>8|10|12|14|16)b(its?)?"
    r"|(?P<pix_fmt>(yuv4(20|22|44)p|gray)(1[0246]le)?)|(?P<number>\d{2,3}(\.\d+)?)",
    re.ASCII,
)
"""A word of a name, as far as it says something."""


def raw_medium(path: Path, raw_video: str) -> Medium:
    """How FFmpeg is to read a raw file. Raises UserError where that is not known, or the file does not fit it."""
    geometry = raw_video or geometry_of(path.name)
    if not geometry:
        raise UserError(f"{path} is raw video, and its name does not give its size: pass --raw-video {FORM}")
    size, pix_fmt, rate, frame = _parsed(geometry)
    length = path.stat().st_size
    if not length or length % frame:
        raise UserError(
            f"{path} has {length} bytes, which is no multiple of the {frame} bytes of a {geometry} frame: pass its "
            "geometry with --raw-video, or copy it again"
        )
    options = {"video_size": size, "pixel_format": pix_fmt, "framerate": rate}
    return Medium(path, tuple(options.items()))


def geometry_of(name: str) -> str:
    """Beauty_1920x1080_120fps_420_8bit_YUV.yuv -> 1920x1080:yuv420p:120; '' where a name gives no size.

    Without other words 8 bits, 4:2:0. JVET writes the rate as a bare number behind the size: Cactus_1920x1080_50.yuv.
    """
    found, behind_size = {}, False
    for word in re.split(r"[^0-9a-z.]+", name.lower().removesuffix(SUFFIX)):
        match = _WORD.fullmatch(word)
        facts = {key: text for key, text in match.groupdict().items() if text} if match else {}
        number = facts.pop("number", "")
        if number and behind_size:
            facts["rate"] = number
        behind_size = "size" in facts
        found = facts | found
    if "size" not in found:
        return ""
    size, chroma, depth = found["size"], found.get("chroma", "20"), found.get("depth", "8")
    pix_fmt = ("gray" if chroma == "00" else f"yuv4{chroma}p") + (f"{depth}le" if depth != "8" else "")
    rate = found.get("rate", found.get("behind", ""))
    return f"{_SIZES.get(size, size)}:{found.get('pix_fmt', pix_fmt)}{rate and f':{rate}'}"


def _parsed(geometry: str) -> tuple[str, str, str, int]:
    """'96x64:yuv420p:25' -> size, pixel format, rate as FFmpeg takes them, bytes of a frame. Raises UserError."""
    import av

    size, pix_fmt, rate = [*geometry.split(":", 2), "", ""][:3]
    width, height = parse_size(size, "--raw-video", FORM)
    try:
        planes = av.VideoFormat(pix_fmt, width, height).components
        fraction = exact_rate(float(rate)) if rate else DEFAULT_FPS
    except ValueError as error:
        raise UserError(f"--raw-video {geometry!r} ({error}) must be {FORM}") from error
    frame = sum((part.bits + 7) // 8 * part.width * part.height for part in planes)
    return size, pix_fmt, str(fraction), frame
