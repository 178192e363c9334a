"""Raw video without a header (.yuv): its geometry from --raw-video, or from file names in the style of UVG and JVET."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from hnerv.data.video.container import InputSpec
from hnerv.data.video.probe import DEFAULT_FPS
from hnerv.errors import UserError
from hnerv.geometry import parse_size
from hnerv.timeline import exact_rate

SUFFIX = ".yuv"
FORM = "WIDTHxHEIGHT:PIX_FMT[:FPS], as in 1920x1080:yuv420p10le:120"
_SIZES = {"qcif": "176x144", "cif": "352x288", "4cif": "704x576", "720p": "1280x720", "1080p": "1920x1080"}
_WORD = re.compile(
    r"(?P<size>[1-9]\d{1,4}x[1-9]\d{1,4}|4?cif|qcif|720p|1080p)(?P<size_rate>\d{2,3})?"  # 1920x1080, 1080p50
    r"|(?P<rate>\d{1,3}(\.\d+)?)(fps|hz)"
    r"|(yuv|i|p)?4(?P<chroma>00|20|22|44)p?((?P<bits>8|9|1[0246])(le|b|bit)?)?"  # 420, yuv420p10le, i420
    r"|(?P<gray>gray|grey)(?P<gray_bits>1[0246]le)?"
    r"|(?P<depth>8|9|10|12|14|16)b(its?)?"
    r"|(?P<number>\d{2,3}(\.\d+)?)",
    re.ASCII,
)
"""One word of a file name."""
_UNSUPPORTED = re.compile(r"nv\d\d|yv12|p[02]1\d(le)?|v210|(uyv|yuy|yvy|yuv.|a?rgb|bgr|gbr)\w*|\w+\dp?\d+be|\d+bpp")
"""Words that name packed, semi-planar, RGB or big-endian formats."""
_FORMAT = re.compile(r"(yuv4(20|22|44)p|gray)((9|10|12|14|16)le)?")
"""Planar formats, with two bytes for each sample of more than 8 bits."""


def raw_spec(path: Path, raw_video: str) -> InputSpec:
    """FFmpeg's options to read a raw file. Raises UserError if its geometry is unknown or does not fit its size."""
    geometry = raw_video or geometry_from_name(path.name)
    if not geometry:
        raise UserError(f"{path} is raw video, and its name does not give its size: pass --raw-video {FORM}")
    size, pix_fmt, rate, frame_bytes = _parse_geometry(geometry)
    length = path.stat().st_size
    if not length or length % frame_bytes:
        raise UserError(
            f"{path} has {length} bytes, which is no multiple of the {frame_bytes} bytes of a {geometry} frame: pass "
            "its geometry with --raw-video, or copy it again"
        )
    return InputSpec(path, (("video_size", size), ("pixel_format", pix_fmt), ("framerate", rate)))


def geometry_from_name(name: str) -> str:
    """Beauty_1920x1080_120fps_420_8bit_YUV.yuv -> 1920x1080:yuv420p:120; '' if the name gives no size.

    Defaults are 8 bits and 4:2:0. JVET writes the rate as a bare number after the size: Cactus_1920x1080_50.yuv.
    """
    stem = re.sub(r"(?<=[0-9])[-_ ](?=bits?(?![a-z]))", "", name.lower().removesuffix(SUFFIX))  # 10-bit -> 10bit
    facts, after_size = {}, False
    for word in re.split(r"[^0-9a-z.]+", stem):
        match = _WORD.fullmatch(word)
        if not match and _UNSUPPORTED.fullmatch(word):
            return ""
        new = {key: text for key, text in match.groupdict().items() if text} if match else {}
        number = new.pop("number", "")
        if number and after_size:
            new["rate"] = number
        after_size = "size" in new
        facts = new | facts
    if "size" not in facts:
        return ""
    gray = "gray" in facts or facts.get("chroma") == "00"
    depth = facts.get("bits") or facts.get("gray_bits", "").removesuffix("le") or facts.get("depth", "8")
    pix_fmt = ("gray" if gray else f"yuv4{facts.get('chroma', '20')}p") + (f"{depth}le" if depth != "8" else "")
    rate = facts.get("rate", facts.get("size_rate", ""))
    return f"{_SIZES.get(facts['size'], facts['size'])}:{pix_fmt}{rate and f':{rate}'}"


def _parse_geometry(geometry: str) -> tuple[str, str, str, int]:
    """'96x64:yuv420p:25' -> FFmpeg's size, pixel format and rate, and the bytes of a frame. Raises UserError."""
    import av

    size, pix_fmt, rate = [*geometry.split(":", 2), "", ""][:3]
    width, height = parse_size(size, "--raw-video", FORM)
    if not _FORMAT.fullmatch(pix_fmt):
        formats = "yuv420p, yuv422p, yuv444p or gray, with 9le to 16le behind it for more than 8 bits"
        raise UserError(f"--raw-video {geometry!r} has the format {pix_fmt!r}: pass {formats}")
    try:
        fps = exact_rate(float(Fraction(rate))) if rate else DEFAULT_FPS
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--raw-video {geometry!r} must be {FORM}") from None
    planes = av.VideoFormat(pix_fmt, width, height).components
    frame_bytes = sum((plane.bits + 7) // 8 * plane.width * plane.height for plane in planes)
    return size, pix_fmt, str(fps), frame_bytes
