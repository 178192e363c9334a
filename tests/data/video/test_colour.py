"""Colours, chroma siting, fields, orientation, pixel shape and transparency, by the equations of the standards."""

from __future__ import annotations

import functools
import logging
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from hnerv.data.video import load_video
from hnerv.data.video.colour import to_rgb, to_yuv420
from hnerv.data.video.probe import Orientation
from hnerv.errors import UserError

X265 = "log-level=none:pools=none:frame-threads=1"
TOP_FIRST = {"x264-params": "tff=1"}


def tagged(primaries: int, transfer: int, matrix: int, range_: int) -> Callable:
    def setup(stream: av.video.stream.VideoStream) -> None:
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = primaries, transfer, matrix
        context.color_range = range_

    return setup


def shaped(wide: int, high: int) -> Callable:
    def setup(stream: av.video.stream.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(wide, high)

    return setup


# Fields


@pytest.fixture(scope="session")
def raw_dv(tmp_path_factory, scene) -> Callable:
    """raw_dv(size, pix_fmt, rate) -> a DV file of 2 frames, which is its frames one after the other."""

    @functools.cache
    def build(size: tuple[int, int], pix_fmt: str, rate: Fraction) -> Path:
        encoder = av.CodecContext.create("dvvideo", "w")
        (encoder.height, encoder.width), encoder.pix_fmt = size, pix_fmt
        encoder.time_base, encoder.framerate = 1 / rate, rate
        data = b""
        for k, pixels in enumerate(scene(2, *size)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = k, 1 / rate
            data += b"".join(bytes(packet) for packet in encoder.encode(frame))
        path = tmp_path_factory.mktemp("dv") / "tape.dv"
        path.write_bytes(data)
        return path

    return build


PAL, NTSC = ((576, 720), "yuv420p", Fraction(25)), ((480, 720), "yuv411p", Fraction(30000, 1001))


@pytest.mark.parametrize("norm", [PAL, NTSC], ids=["PAL", "NTSC"])
def test_raw_dv(norm: tuple, raw_dv, ffmpeg_frames) -> None:
    path = raw_dv(*norm)
    video = load_video(str(path))
    assert video.frames.equal(ffmpeg_frames(path))
    assert (len(video.frames), video.fps, video.times) == (2, pytest.approx(float(norm[2])), None)


FIELDS: dict[str, dict] = {
    "h264.mp4": {"options": TOP_FIRST},
    "h264.ts": {"options": TOP_FIRST},
    "h264-10.mkv": {"options": TOP_FIRST, "pix_fmt": "yuv420p10le"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "tape.dv": {},
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_are_converted_one_by_one(name: str, encode, raw_dv, ffmpeg_frames, monkeypatch) -> None:
    """Chroma rows of 4:2:0 belong to one field each; converted as a progressive frame, they mix two moments."""
    path = raw_dv(*PAL) if name == "tape.dv" else encode(name, **FIELDS[name], interlaced=True)
    by_field, progressive = ffmpeg_frames(path, interlaced=1), ffmpeg_frames(path, interlaced=0)
    assert not by_field.equal(progressive)
    for reader in ("", "decord"):
        monkeypatch.setenv("HNERV_READER", reader)
        video = load_video(str(path))
        assert video.reader == "pyav" and video.frames.equal(by_field)


# Colours

MASTERED = (
    "hdr10=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
)


@pytest.mark.parametrize(
    ("name", "transfer", "word", "settings"),
    [
        ("hdr10.mp4", 16, "PQ", {"codec": "libx265", "options": {"x265-params": f"{X265}:{MASTERED}"}}),
        ("hdr10.mkv", 16, "PQ", {"codec": "libsvtav1", "options": {"svtav1-params": "lp=1"}}),
        ("hlg.mp4", 18, "HLG", {"codec": "libx265", "options": {"x265-params": X265}}),
        ("hlg.mov", 18, "HLG", {"options": {}}),
        ("sdr.mp4", 1, "", {"codec": "libx264"}),
    ],
)
def test_tags_are_read_and_hdr_is_reported_once(name, transfer, word, settings, encode, ffmpeg_frames, caplog) -> None:
    path = encode(name, **settings, pix_fmt="yuv420p10le", setup=tagged(9, transfer, 9, 1))
    with caplog.at_level(logging.WARNING):
        videos = [load_video(str(path)) for _ in range(2)]
    assert videos[0].display == (9, transfer, 9, 1, 1, 1) and videos[0].frames.equal(ffmpeg_frames(path))
    assert [name in line and word in line and "\n" not in line for line in caplog.messages] == [True] * bool(word)


CHROMA = {"left": 0, "center": 1, "topleft": 2, "top": 3, "bottomleft": 4, "bottom": 5}


@pytest.mark.parametrize("chroma", CHROMA)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_chroma_siting(pix_fmt: str, chroma: str, encode, ffmpeg_frames) -> None:
    """BT.2020 sites it at the top left. FFmpeg's fast conversion of 8 bits repeats each value, wherever it is."""
    path = encode("sited.mkv", pix_fmt=pix_fmt, options={"x264-params": f"chromaloc={CHROMA[chroma]}"})
    expected = ffmpeg_frames(path, chroma=chroma)
    if pix_fmt == "yuv420p10le" and chroma != "left":
        assert not expected.equal(ffmpeg_frames(path))
    assert load_video(str(path)).frames.equal(expected)


def flat_frames(path: Path, pix_fmt: str, values: np.ndarray, setup: Callable = lambda stream: None) -> np.ndarray:
    """Write and load frames of 16x16: values (N, planes) for one colour each, or (N, 1, rows) -> (N, 3, H, W) float."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, pix_fmt
        setup(stream)
        for k, planes in enumerate(values):
            frame = av.VideoFrame(16, 16, pix_fmt)
            for plane, value in zip(frame.planes, planes, strict=True):
                row = np.zeros((plane.height, plane.line_size // 2), "<u2")
                row[:] = np.reshape(value, (-1, 1))
                plane.update(row.tobytes())
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return load_video(str(path)).frames.numpy().astype(float)


ROUNDING = 0.05
"""Levels by which fixed-point tables may round differently from exact arithmetic."""
WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Of red and blue in luma, by the matrix of H.273."""


def test_grey_of_10_bits_keeps_its_high_bits(tmp_path: Path) -> None:
    """All 1024 values, 16 rows a frame. FFmpeg takes full range of 10 bits as 4 times that of 8."""
    ramp = np.arange(1024).reshape(64, 1, 16)
    frames = flat_frames(tmp_path / "ramp.mkv", "gray10le", ramp)
    assert np.ptp(frames, axis=(1, 3)).max() == 0
    assert np.abs(frames[:, 0, :, 0] - np.minimum(ramp[:, 0] / 4, 255)).max() <= 0.5 + ROUNDING
    assert np.abs(frames[:, 0, :, 0] - ramp[:, 0] * 255 / 1023).max() <= 1.25


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("range_", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_matrices_of_10_bits(matrix: int, range_: int, pix_fmt: str, tmp_path: Path) -> None:
    """By the equations of H.273: R = Y + 2 (1 - Kr) Cr, B = Y + 2 (1 - Kb) Cb, and Y = Kr R + Kg G + Kb B.

    Scaled to 8 bits by 1/4 before, in full range too, as FFmpeg does.
    """
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.integers(64, 941, (40, 1)), draw.integers(412, 612, (40, 2))], 1)
    frames = flat_frames(tmp_path / "flat.mkv", pix_fmt, values, tagged(1, 1, matrix, range_))
    assert np.ptp(frames, axis=(2, 3)).max() == 0
    luma = (values[:, 0] / 4 - 16) / 219 if range_ == 1 else values[:, 0] / 4 / 255
    cb, cr = (values[:, 1:].T / 4 - 128) / (224 if range_ == 1 else 255)
    kr, kb = WEIGHTS[matrix]
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    exact = 255 * np.clip(np.stack([red, green, blue], 1), 0, 1)
    assert np.abs(frames[:, :, 0, 0] - exact).max() <= 0.5 + ROUNDING


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("10-bit.mp4", {"pix_fmt": "yuv420p10le", "options": {"crf": "4"}}),
        ("odd.mkv", {"codec": "ffv1", "size": (63, 97)}),
        ("444.mp4", {"pix_fmt": "yuv444p", "options": {"crf": "4"}}),
        ("420.mp4", {"options": {"crf": "4"}}),
    ],
)
def test_pixels_are_close_to_the_source(name: str, settings: dict, encode, scene) -> None:
    """A wrong matrix, range or chroma siting would be off by 10 levels or more in the mean."""
    video = load_video(str(encode(name, **settings)))
    source = np.stack(scene(12, *video.frames.shape[2:]))
    assert np.abs(video.frames.permute(0, 2, 3, 1).numpy().astype(int) - source).mean() < 4


def test_conversion_to_420_and_back(smooth) -> None:
    """BT.601 in limited range, rounded to integers, gives about 52 dB; less means that the two ways differ."""
    mse = np.mean([((to_rgb(to_yuv420(frame)) / 255 - frame / 255) ** 2).mean() for frame in smooth])
    assert -10 * np.log10(mse) > 48
    for colour, weight in (((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114)):
        frame = to_yuv420(np.full((16, 16, 3), colour, np.uint8))
        assert np.frombuffer(frame.planes[0], np.uint8)[0] == pytest.approx(16 + 219 * weight, abs=1)


# Orientation and shape of a pixel


@pytest.mark.parametrize("rotation", [90, 180, -90])
@pytest.mark.parametrize(("name", "pix_fmt"), [("a.mp4", "yuv420p"), ("a.mov", "yuv444p10le"), ("a.mkv", "yuv420p")])
def test_phone_videos_are_upright(rotation: int, name: str, pix_fmt: str, encode, ffmpeg_frames) -> None:
    """The angle of PyAV is counter-clockwise, as that of torch.rot90."""
    path = encode(name, rotation=rotation, pix_fmt=pix_fmt)
    assert load_video(str(path)).frames.equal(torch.rot90(ffmpeg_frames(path), rotation // 90, (2, 3)))


def test_mirrored_video(encode, ffmpeg_frames, tmp_path: Path) -> None:
    """The header of a half turn, x' = -x and y' = -y, edited to x' = -x and y' = y."""
    half_turn, mirror = (struct.pack(">5i", -65536, 0, 0, 0, d) for d in (-65536, 65536))
    data, path = encode("a.mp4", rotation=180).read_bytes(), tmp_path / "selfie.mp4"
    assert data.count(half_turn) == 1
    path.write_bytes(data.replace(half_turn, mirror))
    assert load_video(str(path)).frames.equal(ffmpeg_frames(path).flip(3))


def test_orientations_are_rotations_or_mirror_images() -> None:
    frame = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    for number in range(8):
        transpose, flip_rows, flip_cols = (bool(number & bit) for bit in (1, 2, 4))
        upright = Orientation(transpose, flip_rows, flip_cols).upright(frame)
        rotated = any(np.array_equal(upright, np.rot90(frame, k)) for k in range(4))
        assert upright.flags.c_contiguous and rotated is not (transpose ^ flip_rows ^ flip_cols)


@pytest.mark.parametrize(
    ("rotation", "resize", "expected"),
    [
        (None, "", (2, 1)),
        (90, "", (1, 2)),
        (-90, "", (1, 2)),
        (180, "", (2, 1)),
        (None, "64x48", (4, 1)),  # 96 columns become 48, each twice as wide
        (None, "32x96", (1, 1)),  # 64 rows become 32
        (None, "32x48", (2, 1)),
        (90, "96x32", (1, 1)),  # 96x64 upright: 64 columns become 32
    ],
)
def test_pixel_aspect(rotation: int | None, resize: str, expected: tuple[int, int], encode) -> None:
    path = encode("sar.mp4", rotation=rotation, setup=shaped(2, 1))
    crop = ("96x64" if rotation == 90 else "64x96") if resize else ""
    display = load_video(str(path), resize=resize, crop=crop).display
    assert (display.wide, display.high) == expected


def test_extreme_pixel_aspect(encode) -> None:
    display = load_video(str(encode("a.mp4", setup=shaped(1, 200))), crop="64x96", resize="2x96").display
    assert display.wide > 0 and display.high > 0


# Transparency

OPAQUE = np.full((64, 96), 255, np.uint8)
HALF = np.where(np.arange(96) < 48, 0, OPAQUE).astype(np.uint8)


def with_alpha(path: Path, codec: str, pix_fmt: str, alpha: np.ndarray, scene) -> Path:
    """8 frames of 64x96 with this alpha (64, 96)."""
    options = {"cpu-used": "8", "deadline": "realtime", "lag-in-frames": "0", "auto-alt-ref": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options if codec.startswith("libvpx") else {})
        stream.height, stream.width, stream.pix_fmt = 64, 96, pix_fmt
        for k, pixels in enumerate(scene(8, 64, 96)):
            frame = av.VideoFrame.from_ndarray(np.dstack([pixels, alpha]), format="rgba").reformat(format=pix_fmt)
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def advised_frames(path: Path, advice: str) -> list[np.ndarray]:
    """Run the command that a message advises, as PyAV can: its decoder, and its -vf chain."""
    words = advice.split("ffmpeg ")[1].split()
    name = words[words.index("-c:v") + 1] if "-c:v" in words[: words.index("-i")] else None
    assert words[words.index("-i") + 1] == path.name
    chain = words[words.index("-vf") + 1]
    frames, graph = [], None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = av.CodecContext.create(name, "r") if name else stream.codec_context
        for packet in container.demux(stream):
            for frame in decoder.decode(packet if packet.size else None):
                if graph is None:
                    graph = av.filter.Graph()
                    buffer = graph.add("buffer", f"video_size=96x64:pix_fmt={frame.format.name}:time_base=1/25")
                    filters = [step.split("=", 1) for step in chain.split(",")]
                    links = [buffer, *(graph.add(*step) for step in filters), graph.add("buffersink")]
                    graph.link_nodes(*links).configure()
                graph.push(frame)
                frames.append(graph.pull().to_ndarray(format="rgb24"))
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.webm", "libvpx-vp9", "yuva420p"), ("a8.webm", "libvpx", "yuva420p"), ("a.mkv", "ffv1", "bgra")],
)
def test_transparent_pixels_are_refused(name: str, codec: str, pix_fmt: str, tmp_path: Path, scene) -> None:
    """And the command in the message puts them on black."""
    path = with_alpha(tmp_path / name, codec, pix_fmt, HALF, scene)
    with pytest.raises(UserError, match="has transparency \\(alpha\\), which a video frame cannot have: ") as caught:
        load_video(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    fixed = advised_frames(path, str(caught.value))
    assert len(fixed) == 8
    for frame, pixels in zip(fixed, scene(8, 64, 96), strict=True):
        assert frame[:, :40].max() <= 12
        assert np.abs(frame[:, 56:].astype(int) - pixels[:, 56:]).mean() < 12


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "ffv1", "bgra"), ("a.mov", "png", "rgba")])
def test_opaque_alpha_is_read(name: str, codec: str, pix_fmt: str, tmp_path: Path, scene) -> None:
    video = load_video(str(with_alpha(tmp_path / name, codec, pix_fmt, OPAQUE, scene)))
    assert np.array_equal(video.frames.permute(0, 2, 3, 1).numpy(), np.stack(scene(8, 64, 96)))
    one = OPAQUE.copy()
    one[63, 95] = 254
    with pytest.raises(UserError, match="has transparency"):
        load_video(str(with_alpha(tmp_path / name, codec, pix_fmt, one, scene)))


@pytest.mark.parametrize("metadata", [{}, {"alpha_mode": "1"}])
def test_alpha_of_a_remuxed_file_is_seen(metadata: dict, remux, tmp_path: Path, scene) -> None:
    """FFmpeg copies the alpha of each packet, but may drop, or spell ALPHA_MODE, the tag that its decoder relies on."""
    path = with_alpha(tmp_path / "a.webm", "libvpx-vp9", "yuva420p", HALF, scene)
    copy = remux(path, tmp_path / "copy.webm", **metadata)
    with av.open(str(copy)) as container:
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        [frame, *_] = [frame for packet in container.demux(video=0) for frame in decoder.decode(packet)]
        assert frame.to_ndarray(format="rgba")[..., 3].min() < 255
    with pytest.raises(UserError, match="has transparency"):
        load_video(str(copy))
