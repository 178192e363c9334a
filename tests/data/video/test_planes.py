"""Planes of a source: PSNR is that of FFmpeg's filter, matrix and range are those that swscale codes with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import av
import numpy as np
import pytest
import torch
from av.filter import Graph
from av.video.frame import VideoFrame

from hnerv.data.video import CLIPS, load_video
from hnerv.data.video.colour import FULL, LIMITED, Display, to_coded
from hnerv.data.video.planes import LUMA_WEIGHTS, Planes, frame_of, plane_pairs, planes_of, reader_rgb, to_planes
from hnerv.errors import UserError
from hnerv.metrics import plane_psnr, psnr_yuv


def recoded(frames: list[VideoFrame], crf: int) -> Iterator[VideoFrame]:
    """Through x264, as a distortion."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "ultrafast"})
        stream.height, stream.width = frames[0].height, frames[0].width
        for number, frame in enumerate(frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(io.BytesIO(file.getvalue())) as container:
        yield from container.decode(video=0)


def psnr_of_ffmpeg(pairs: list[tuple[Planes, Planes]]) -> np.ndarray:
    """PSNR of Y, U, V of each pair (N, 3) by FFmpeg's filter psnr."""
    graph, (height, width) = Graph(), pairs[0][0].y.shape
    options = f"video_size={width}x{height}:pix_fmt=yuv420p:time_base=1/25:pixel_aspect=1/1"
    inputs = [graph.add("buffer", options) for _ in range(2)]
    measure, end = graph.add("psnr"), graph.add("buffersink")
    for number, entry in enumerate(inputs):
        entry.link_to(measure, 0, number)
    measure.link_to(end)
    graph.configure()
    rows = []
    for number, pair in enumerate(pairs):
        for entry, planes in zip(inputs, pair, strict=True):
            frame = frame_of(planes)
            frame.pts = number
            entry.push(frame)
        found = graph.pull().metadata
        rows.append([float(found[f"lavfi.psnr.psnr.{plane}"]) for plane in "yuv"])
    return np.array(rows)


@pytest.mark.skipif(not hasattr(av.VideoFrame, "metadata"), reason="this PyAV does not give the values of filters")
@pytest.mark.parametrize("clip", sorted(CLIPS))
@pytest.mark.parametrize("crf", [30, 45])
def test_psnr_is_that_of_ffmpeg(clip, crf):
    source = [*load_video(clip, frames="4:10:2").planes.read(range(3))]
    decoded = map(planes_of, recoded([frame_of(planes) for planes in source], crf))
    pairs = [*zip(decoded, source, strict=True)]
    found = torch.stack([plane_psnr(*pair) for pair in pairs])
    expected = psnr_of_ffmpeg(pairs)
    assert np.abs(found.numpy() - expected).max() < 0.01
    weighted = (6 * expected[:, 0] + expected[:, 1] + expected[:, 2]) / 8
    assert psnr_yuv(found).tolist() == pytest.approx(weighted, abs=0.01) and weighted.max() < 48


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [2, *LUMA_WEIGHTS])
def test_colours_become_the_levels_that_swscale_gives(matrix, range_):
    """An area of one colour has no loss of chroma; 2 stands for untagged."""
    display = Display(matrix=matrix, range=range_)
    for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 37)):
        rgb = np.full((16, 32, 3), colour, np.uint8)
        (found,) = to_planes(torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255, display)
        for plane, expected in zip(found, planes_of(to_coded(rgb, "yuv420p", display)), strict=True):
            assert plane.shape == expected.shape
            assert (plane.int() - expected.int()).abs().max() <= 1


def tags_of(matrix: int, range_: int) -> Callable:
    def setup(stream: av.video.stream.VideoStream) -> None:
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, range_

    return setup


@pytest.mark.parametrize(("matrix", "range_"), [(2, 0), (1, LIMITED), (1, FULL), (6, LIMITED), (7, FULL), (9, LIMITED)])
def test_planes_are_the_decoded_ones_and_rgb_is_near_them(encode, matrix, range_):
    """`reader_rgb` of the planes is the RGB of the reader, so the conversion back has the right matrix and range."""
    path = encode("planes.mp4", size=(64, 96), setup=tags_of(matrix, range_))
    with av.open(str(path)) as container:
        expected = [planes_of(frame) for frame in container.decode(video=0)]
    video = load_video(str(path), frames="1::3", crop="60x88")
    found = [*video.planes.read(range(len(video.frames)))]
    assert len(found) == 4
    for number, planes in enumerate(found):
        whole = expected[1 + 3 * number]
        assert planes.y.equal(whole.y[2:62, 4:92])
        assert planes.u.equal(whole.u[1:31, 2:46]) and planes.v.equal(whole.v[1:31, 2:46])
        rgb = reader_rgb(frame_of(planes), video.planes.display)
        assert torch.from_numpy(rgb).permute(2, 0, 1).equal(video.frames[number])
    rgb = video.frames / 255
    bound = torch.stack([plane_psnr(*pair) for pair in plane_pairs(rgb, rgb, iter(found), video.planes.display)])
    # What is left is the reader's rounding: it makes RGB about one level too dark.
    assert bound.min() > 38


def test_frames_are_read_in_any_selection(encode):
    video = load_video(str(encode("planes.mp4")))
    frames = [*video.planes.read(range(12))]
    assert all(
        a.y.equal(b.y) for a, b in zip(video.planes.read([2, 3, 9]), (frames[k] for k in (2, 3, 9)), strict=True)
    )
    assert [*video.planes.read([])] == []


@pytest.mark.parametrize(
    ("options", "loading", "why"),
    [
        ({}, {"resize": "32x48"}, "the frames are resized"),
        ({}, {"crop": "62x96"}, "odd row or column"),
        ({}, {"frames": "8:2:-1"}, "reverse order"),
        ({"pix_fmt": "yuv420p10le"}, {}, "the source is yuv420p10le, not 8-bit 4:2:0"),
        ({"pix_fmt": "yuv444p"}, {}, "the source is yuv444p"),
        ({"rotation": 90}, {}, "rotated"),
        ({"interlaced": True, "options": {"x264-params": "tff=1"}}, {}, "interlaced"),
    ],
)
def test_without_planes_there_is_a_reason(encode, options, loading, why):
    assert why in load_video(str(encode("planes.mp4", **options)), **loading).planes.why


def test_images_have_no_planes(film):
    assert load_video(str(film)).planes.why == "the source is not YUV video"


def test_a_source_that_is_cut_after_training_is_refused(encode, tmp_path):
    path = tmp_path / "planes.mkv"
    path.write_bytes(encode("planes.mkv", count=40).read_bytes())
    planes = load_video(str(path)).planes
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="has changed, it ends before frame"):
        [*planes.read(range(40))]
