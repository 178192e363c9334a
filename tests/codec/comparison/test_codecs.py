"""Each row of CODECS on a tiny clip; PSNR recomputed with numpy from streams that FFmpeg's demuxers accept."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import torch

from hnerv.codec.comparison import codecs as module
from hnerv.codec.comparison.codecs import (
    CODECS,
    VideoCodec,
    check_codecs,
    conversion_quality,
    measure_codec,
    parse_codecs,
)
from hnerv.data.video.colour import to_rgb
from hnerv.data.video.planes import NO_PLANES
from hnerv.errors import UserError

FAST = {"x264": "ultrafast", "x265": "ultrafast", "svt-av1": "12"}
FORMATS = {"x264": "h264", "x265": "hevc", "svt-av1": "obu"}


@pytest.fixture(params=CODECS)
def codec(request) -> VideoCodec:
    return VideoCodec(request.param, FAST[request.param])


@pytest.fixture
def coded(monkeypatch) -> list[bytes]:
    """The streams that `measure_codec` makes, as bytes."""
    streams = []
    inner = module._encode

    def keep(*args):
        packets = inner(*args)
        streams.append(b"".join(map(bytes, packets)))
        return packets

    monkeypatch.setattr(module, "_encode", keep)
    return streams


def test_bytes_and_psnr_are_those_of_a_stream_that_plays_alone(codec, clip_frames, coded):
    """A demuxer finds all frames in exactly the bytes that are counted, and numpy computes the same PSNR from them."""
    point = measure_codec(codec, clip_frames, 24.0, codec.setup.ladder[3])
    assert point.bytes == len(coded[0])
    with av.open(io.BytesIO(coded[0]), format=FORMATS[codec.name]) as container:
        found = np.stack([to_rgb(frame) for frame in container.decode(video=0)]).astype(float)
    source = clip_frames.permute(0, 2, 3, 1).numpy()
    assert found.shape == source.shape
    mse = ((found - source) ** 2).mean((1, 2, 3)) / 255**2
    assert point.psnr_frame == pytest.approx((-10 * np.log10(mse)).mean(), abs=1e-3)
    assert 0 < point.ms_ssim < 1 and point.encode_seconds > 0 and point.decode_seconds > 0


def test_more_crf_is_fewer_bytes_and_less_psnr(codec, clip_frames):
    points = [measure_codec(codec, clip_frames, 24.0, crf) for crf in codec.setup.ladder[::2]]
    sizes, psnrs = [point.bytes for point in points], [point.psnr_frame for point in points]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert psnrs == sorted(psnrs, reverse=True)
    assert psnrs[0] - psnrs[-1] > 8
    assert psnrs[0] < conversion_quality(clip_frames, NO_PLANES).psnr_frame + 0.5


def test_the_same_bytes_every_time_and_not_a_word(codec, clip_frames, capfd):
    sizes = {measure_codec(codec, clip_frames, 23.976, codec.setup.ladder[4]).bytes for _ in range(2)}
    assert len(sizes) == 1
    assert tuple(capfd.readouterr()) == ("", "")


def test_one_key_frame_and_no_signature(codec, clip_frames, coded):
    """x264 and x265 would else write hundreds of bytes of their settings into the stream."""
    measure_codec(codec, clip_frames[:1].expand(300, -1, -1, -1), 24.0, codec.setup.ladder[-1])
    assert b"x26" not in coded[0] and b"http" not in coded[0]
    with av.open(io.BytesIO(coded[0]), format=FORMATS[codec.name]) as container:
        assert sum(frame.key_frame for frame in container.decode(video=0)) == 1


def test_the_defaults_are_real_presets(codec):
    assert codec.setup.preset in codec.setup.presets
    assert codec.setup.encoder in av.codec.codecs_available and codec.setup.decoder in av.codec.codecs_available
    assert len(codec.setup.ladder) >= 6 and list(codec.setup.ladder) == sorted(set(codec.setup.ladder))


def test_codecs_are_parsed():
    assert parse_codecs("x264, svt-av1:4,x264:veryslow") == [
        VideoCodec("x264", "medium"),
        VideoCodec("svt-av1", "4"),
        VideoCodec("x264", "veryslow"),
    ]
    assert parse_codecs("x265")[0].label == "x265 medium"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x266", "x264, x265, svt-av1"),
        ("", "is not a known codec"),
        ("x264,", "is not a known codec"),
        ("x264:4", "unknown preset of x264: choose one of ultrafast"),
        ("svt-av1:medium", "unknown preset of svt-av1: choose one of 0, 1"),
        ("x264,x264:medium", "lists the same codec and preset twice"),
    ],
)
def test_unknown_codecs_are_refused(text, match):
    with pytest.raises(UserError, match=match):
        parse_codecs(text)


def test_odd_sizes_and_a_missing_encoder_are_refused(monkeypatch):
    codecs = parse_codecs("x264")
    with pytest.raises(UserError, match="even frame sizes, not 63x96"):
        check_codecs(codecs, (63, 96))
    monkeypatch.setattr("av.codec.codecs_available", set())
    with pytest.raises(UserError, match="no encoder for x264"):
        check_codecs(codecs, (64, 96))


def test_the_conversion_alone_is_measured(clip_frames):
    """Grey passes 4:2:0 but for the steps of limited range; colours that alternate by pixel do not."""
    grey = clip_frames[:, :1].expand(-1, 3, -1, -1)
    chequers = torch.zeros_like(clip_frames)
    chequers[..., 0, ::2, ::2] = 255
    chequers[:, 2, 1::2, 1::2] = 255
    assert conversion_quality(grey, NO_PLANES).psnr_frame > 50
    assert conversion_quality(chequers, NO_PLANES).psnr_frame < 20


NEARLY_LOSSLESS = {
    "x264": ({"qp": "0"}, 1e-9),
    "x265": ({"x265-params": "log-level=none:info=0:pools=none:frame-threads=1:lossless=1"}, 1e-9),
    "svt-av1": ({"svtav1-params": "tune=1:lp=1:crf=1"}, 0.1),  # its lossless streams of small frames are broken
}


def test_lossless_coding_reaches_the_psnr_of_the_conversion(codec, clip_frames, monkeypatch):
    """So no step but the coding itself costs a codec quality, such as another position of the chroma samples."""
    options, gap = NEARLY_LOSSLESS[codec.name]
    monkeypatch.setitem(CODECS, codec.name, codec.setup._replace(options=options))
    speckles = (
        torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(2)) * 80
    )  # of colours that 4:2:0 cannot hold
    frames = (clip_frames[:2] * 0.6 + speckles).round().byte()
    bound = conversion_quality(frames, NO_PLANES).psnr_frame
    assert measure_codec(codec, frames, 24.0, 0).psnr_frame == pytest.approx(bound, abs=gap)
