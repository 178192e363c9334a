"""Raw video: pixels by FFmpeg's scale filter, and geometries from the names of public test sequences."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from hnerv.data.video import frame_count, load_video
from hnerv.data.video.raw import geometry_from_name
from hnerv.errors import UserError

FORMATS = [f"yuv{chroma}p{depth}" for chroma in (420, 422, 444) for depth in ("", "10le")] + ["gray", "gray10le"]


def raw_frames(pix_fmt: str, width: int, height: int, count: int) -> tuple[bytes, list[np.ndarray]]:
    """Random planes: the bytes of a raw file, and its frames in RGB by FFmpeg's scale filter."""
    draw, data, frames, graph = np.random.default_rng(0), b"", [], av.filter.Graph()
    links = (
        graph.add("buffer", f"video_size={width}x{height}:pix_fmt={pix_fmt}:time_base=1/1:pixel_aspect=1/1"),
        graph.add("scale", f"flags=bilinear{'+full_chroma_int' if pix_fmt.endswith('10le') else ''}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    )
    graph.link_nodes(*links).configure()
    dtype, top = ("<u2", 1024) if pix_fmt.endswith("10le") else ("u1", 256)
    for _ in range(count):
        frame = av.VideoFrame(width, height, pix_fmt)
        for plane in frame.planes:
            values = draw.integers(0, top, (plane.height, plane.width)).astype(dtype)
            padded = np.zeros((plane.height, plane.line_size // values.itemsize), dtype)
            padded[:, : plane.width] = values
            plane.update(padded.tobytes())
            data += values.tobytes()
        graph.push(frame)
        frames.append(graph.pull().to_ndarray())
    return data, frames


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize(("named", "size"), [(True, (96, 64)), (False, (50, 34))])
def test_raw_video(pix_fmt: str, named: bool, size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    data, expected = raw_frames(pix_fmt, width, height, 3)
    chroma, depth = pix_fmt.removeprefix("yuv")[:3], 10 if pix_fmt.endswith("10le") else 8
    chroma = chroma if chroma.isdigit() else "400"
    path = tmp_path / (f"Beauty_{width}x{height}_120fps_{chroma}_{depth}bit_YUV.yuv" if named else "beauty.raw")
    path.write_bytes(data)
    geometry = "" if named else f"{width}x{height}:{pix_fmt}:120"
    video = load_video(str(path), raw_video=geometry)
    assert (video.fps, video.times, frame_count(str(path), raw_video=geometry)) == (120, None, 3)
    assert np.array_equal(video.frames.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert load_video(str(path), raw_video=geometry, fps=60).fps == 60
    assert load_video(str(path), raw_video=geometry, frames="1:2").frames.equal(video.frames[1:2])


def test_raw_video_without_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "akiyo_qcif.yuv"
    path.write_bytes(bytes(176 * 144 * 3 // 2))
    assert load_video(str(path)).fps == 24 and load_video(str(path), fps=30).fps == 30


@pytest.mark.parametrize(
    ("name", "geometry", "message"),
    [
        ("beauty.yuv", "", "its name does not give its size: pass --raw-video"),
        ("a_96x66.yuv", "", "no multiple of the 9504 bytes of a 96x66:yuv420p frame: pass its geometry with --raw-vid"),
        ("a.yuv", "96x64:yuv420p10le", "no multiple of the 18432 bytes"),
        ("a.yuv", "96x64:yuv421p", "--raw-video '96x64:yuv421p'"),
        ("a.yuv", "96x64", "--raw-video '96x64'"),
        ("a.yuv", "96:yuv420p", "--raw-video '96'"),
        ("a.yuv", "96x64:yuv420p:fast", "--raw-video '96x64:yuv420p:fast'"),
        ("a.yuv", "96x64:yuv420p:0", "--raw-video '96x64:yuv420p:0'"),
        ("a.yuv", "0x64:yuv420p", "--raw-video '0x64'"),
        (".", "96x64:yuv420p", "--raw-video is for a file"),
        ("bunny", "96x64:yuv420p", "bunny' is not a file, a folder or one of the clips"),
    ],
)
def test_raw_video_refused(name: str, geometry: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".yuv":
        path.write_bytes(bytes(96 * 64 * 3 // 2 * 3))
    with pytest.raises(UserError) as caught:
        load_video("bunny" if name == "bunny" else str(path), raw_video=geometry)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_renamed_raw_video(tmp_path: Path, monkeypatch, train, flags, evaluate, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    planes = np.random.default_rng(0).integers(0, 256, 12 * 32 * 64 * 3 // 2, dtype=np.uint8)
    (tmp_path / "noise_64x32_50fps.yuv").write_bytes(planes.tobytes())
    stopped = [*flags(data="noise_64x32_50fps.yuv", epochs=2), "--max-minutes", "1e-9"]
    assert train(tmp_path, stopped) == 124
    (tmp_path / "noise_64x32_50fps.yuv").rename("renamed.yuv")
    resume = flags(data="renamed.yuv", epochs=2)
    assert train(tmp_path, resume) == 2 and "pass --raw-video" in capsys.readouterr().err
    assert train(tmp_path, [*resume, "--raw-video", "64x32:yuv420p:50"]) == 0
    (tmp_path / "renamed.yuv").rename("again.yuv")
    assert evaluate(tmp_path / "run", "--data", "again.yuv") == 0, capsys.readouterr().err


GEOMETRIES = {
    # UVG
    "Beauty_1920x1080_120fps_420_8bit_YUV": "1920x1080:yuv420p:120",
    "Beauty_3840x2160_120fps_420_10bit_YUV": "3840x2160:yuv420p10le:120",
    # JVET common test conditions
    "BasketballDrive_1920x1080_50": "1920x1080:yuv420p:50",
    "Cactus_1920x1080_50fps_10bit_420": "1920x1080:yuv420p10le:50",
    "FoodMarket4_3840x2160_60fps_10bit_420": "3840x2160:yuv420p10le:60",
    "CatRobot_3840x2160_60fps_10bit_420_jvet": "3840x2160:yuv420p10le:60",
    "BQMall_832x480_60": "832x480:yuv420p:60",
    "ArenaOfValor_1920x1080_60_8bit_420": "1920x1080:yuv420p:60",
    # Xiph, VQEG and others
    "akiyo_cif": "352x288:yuv420p",
    "akiyo_4cif_30": "704x576:yuv420p:30",
    "carphone_qcif": "176x144:yuv420p",
    "mobile_calendar_720p": "1280x720:yuv420p",
    "crowd_run_1080p50": "1920x1080:yuv420p:50",
    "ducks_take_off_1080p_50fps": "1920x1080:yuv420p:50",
    "foreman_352x288_30fps_8b_420": "352x288:yuv420p:30",
    "foreman_352x288_29.97fps": "352x288:yuv420p:29.97",
    "x_1920x1080_yuv444p10le": "1920x1080:yuv444p10le",
    "x_1920x1080_yuv422p": "1920x1080:yuv422p",
    "x_1920x1080_60_422_10b": "1920x1080:yuv422p10le:60",
    "x_1920x1080_400_10bit": "1920x1080:gray10le",
    "x_1920x1080_444_8bit": "1920x1080:yuv444p",
    "foreman_352x288_420": "352x288:yuv420p",
    "foreman_352x288_420_30": "352x288:yuv420p",
    "Traffic_2560x1600_30_crop": "2560x1600:yuv420p:30",
    "Beauty_8bit_1920x1080_120fps": "1920x1080:yuv420p:120",
    # Spellings
    "a_96x64_yuv420p10": "96x64:yuv420p10le",
    "a_96x64_10-bit_420": "96x64:yuv420p10le",
    "a_96x64_yuv444_8bit": "96x64:yuv444p",
    "a_96x64_yuv422_10bit_25fps": "96x64:yuv422p10le:25",
    "a_96x64_P422": "96x64:yuv422p",
    "a_96x64_420p10": "96x64:yuv420p10le",
    "a_96x64_i420": "96x64:yuv420p",
    # No size, or another format
    **dict.fromkeys(["beauty", "take_2", "video_1920", "a_4qcif", "a_96x64_yuv420p10be", "a_96x64_16bpp"], ""),
    **dict.fromkeys(
        [f"a_96x64_{word}" for word in ("nv12", "yv12", "uyvy", "yuyv422", "p010", "p010le", "v210", "rgb24")], ""
    ),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_from_name(name: str) -> None:
    assert geometry_from_name(f"{name}.yuv") == GEOMETRIES[name]
