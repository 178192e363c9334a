"""Raw video without a header (.yuv): its geometry from --raw-video, or from a file name as UVG and JVET have them."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from hnerv.errors import UserError
from hnerv.geometry import parse_size
from hnerv.timeline import exact_rate
from hnerv.data.video.probing import DEFAULT_FPS, Medium

SUFFIX = ".yuv"
FORM = "WIDTHxHEIGHT:PIX_FMT[:FPS], as in 1920x1080:yuv420p10le:120"
_SIZES = {"qcif": "176x144", "cif": "352x288", "4cif": "704x576", "720p": "1280x720", "1080p": "1920x1080"}
_WORD = re.compile(
    r"(?P<size>[1-9]\d{1,4}x[1-9]\d{1,4}|4?cif|qcif|720p|1080p)(?P<behind>\d{2,3})?"
    r"|(?P<rate>\d{1,3}(\.\d+)?)(fps|hz)"
    r"|(yuv|i|p)?4(?P<chroma>00|20|22|44)p?((?P<bits>8|9|1[0246])(le|b|bit)?)?|(?P<grey>gray|grey)(?P<deep>1[0246]le)?"
    r"|(?P<depth>8|9|10|12|14|16)b(its?)?|(?P<number>\d{2,3}(\.\d+)?)",
    re.ASCII,
)
"""One recognised word of a file name."""
_OTHER = re.compile(r"nv\d\d|yv12|p[02]1\d(le)?|v210|(uyv|yuy|yvy|yuv.|a?rgb|bgr|gbr)\w*|\w+\dp?\d+be|\d+bpp")
"""Words that name another format."""
_FORMAT = re.compile(r"(yuv4(20|22|44)p|gray)((9|10|12|14|16)le)?")
"""Planar, in which a sample of more than 8 bits takes two bytes."""


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
    stem = re.sub(r"(?<=[0-9])[-_ ](?=bits?(?![a-z]))", "", name.lower().removesuffix(SUFFIX))
    for word in re.split(r"[^0-9a-z.]+", stem):
        match = _WORD.fullmatch(word)
        if not match and _OTHER.fullmatch(word):
            return ""
        facts = {key: text for key, text in match.groupdict().items() if text} if match else {}
        number = facts.pop("number", "")
        if number and behind_size:
            facts["rate"] = number
        behind_size = "size" in facts
        found = facts | found
    if "size" not in found:
        return ""
    grey = "grey" in found or found.get("chroma") == "00"
    depth = found.get("bits") or found.get("deep", "").removesuffix("le") or found.get("depth", "8")
    pix_fmt = ("gray" if grey else f"yuv4{found.get('chroma', '20')}p") + (f"{depth}le" if depth != "8" else "")
    rate = found.get("rate", found.get("behind", ""))
    return f"{_SIZES.get(found['size'], found['size'])}:{pix_fmt}{rate and f':{rate}'}"


def _parsed(geometry: str) -> tuple[str, str, str, int]:
    """'96x64:yuv420p:25' -> size, pixel format, rate as FFmpeg takes them, bytes of a frame. Raises UserError."""
    import av

    size, pix_fmt, rate = [*geometry.split(":", 2), "", ""][:3]
    width, height = parse_size(size, "--raw-video", FORM)
    if not _FORMAT.fullmatch(pix_fmt):
        formats = "yuv420p, yuv422p, yuv444p or gray, with 9le to 16le behind it for more than 8 bits"
        raise UserError(f"--raw-video {geometry!r} has the format {pix_fmt!r}: pass {formats}")
    try:
        fraction = exact_rate(float(Fraction(rate))) if rate else DEFAULT_FPS
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--raw-video {geometry!r} must be {FORM}") from None
    planes = av.VideoFormat(pix_fmt, width, height).components
    frame = sum((part.bits + 7) // 8 * part.width * part.height for part in planes)
    return size, pix_fmt, str(fraction), frame
