"""eval.py in YUV: PSNR against the decoded planes of the source by numpy, VMAF by a stand-in."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from hnerv.data.video.colour import Display
from hnerv.data.video.planes import to_planes
from hnerv.runs.models import open_run


@pytest.fixture
def run(yuv_run, tmp_path) -> Path:
    return Path(shutil.copytree(yuv_run, tmp_path / "run"))


def planes_of_source(path: Path) -> list[list[np.ndarray]]:
    """Y, U, V of each frame, by PyAV's own array."""
    with av.open(str(path)) as container:
        arrays = [frame.to_ndarray().astype(float) for frame in container.decode(video=0)]
    height, width = arrays[0].shape[0] * 2 // 3, arrays[0].shape[1]
    return [[a[:height], *(part.reshape(height // 2, width // 2) for part in np.split(a[height:], 2))] for a in arrays]


def rows_of(run: Path) -> dict[int, dict[str, str]]:
    with (run / "eval" / "per_frame.csv").open(newline="") as file:
        return {int(row["frame"]): row for row in csv.DictReader(file)}


def expected_psnr(run: Path, clip: Path, positions: list[int]) -> dict[int, np.ndarray]:
    """{position: PSNR of Y, U, V}."""
    model, source, found = open_run(run, torch.device("cpu")).model.eval(), planes_of_source(clip), {}
    for position in positions:
        with torch.no_grad():
            rgb = (model(torch.tensor([float(position)])).rgb.clamp(0, 1) * 255).round() / 255
        (decoded,) = to_planes(rgb, Display(matrix=1))
        mse = [((a.numpy() - b) ** 2).mean() for a, b in zip(decoded, source[position], strict=True)]
        found[position] = 10 * np.log10(255**2 / np.array(mse))
    return found


def test_psnr_against_the_planes_of_the_source(run, yuv_clip, evaluate, capsys, lines_of):
    assert not any("yuv" in key for line in lines_of(run) for key in line), "training does not measure it"
    assert evaluate(run, "--json") == 0
    summary, rows = json.loads(capsys.readouterr().out), rows_of(run)
    expected = expected_psnr(run, yuv_clip, list(rows))
    for position, planes in expected.items():
        assert float(rows[position]["psnr_y"]) == pytest.approx(planes[0], abs=0.01)
        assert float(rows[position]["psnr_yuv"]) == pytest.approx(planes @ [6, 1, 1] / 8, abs=0.01)
    for split in ("train", "val"):
        for column in ("psnr_y", "psnr_yuv", "ms_ssim_db"):
            of_frames = [float(row[column]) for row in rows.values() if row["split"] == split]
            assert summary[f"Eval/Frame/{split}_{column}"] == pytest.approx(np.mean(of_frames), abs=2e-6)
    assert "no_psnr_yuv" not in summary
    assert all(
        float(row["ms_ssim_db"]) == pytest.approx(-10 * np.log10(1 - float(row["ms_ssim"])), abs=1e-3)
        for row in rows.values()
    )
    assert evaluate(run) == 0
    text = capsys.readouterr().out
    assert "PSNR of YUV, weighted 6:1:1, dB" in text and "was not measured" not in text


def test_segments_and_a_file_are_measured_too(tmp_path, yuv_clip, train, flags, hnerv_main, evaluate, capsys):
    words = [*flags(data=yuv_clip, data_split="2_3_4", epochs=2), "--segment-frames", "4"]
    assert train(tmp_path, words) == 0
    assert hnerv_main("encode", tmp_path / "run", "-o", tmp_path / "clip.hnerv") == 0
    assert "PSNR of YUV" in capsys.readouterr().out
    for path, folder in ((tmp_path / "run", "run"), (tmp_path / "clip.hnerv", "clip_eval")):
        assert evaluate(path, "--data", yuv_clip, "--clip-targets", "none", "--json") == 0
        summary, rows = json.loads(capsys.readouterr().out), rows_of(tmp_path / folder)
        values = [float(row["psnr_yuv"]) for row in rows.values() if row["split"] == "train"]
        assert summary["Eval/Frame/train_psnr_yuv"] == pytest.approx(np.mean(values), abs=2e-6)
        assert len(rows) == 9


@pytest.mark.parametrize(
    ("changes", "why"),
    [({}, "the source is not YUV video"), ({"data": "clip", "resize": "16x32"}, "the frames are resized")],
)
def test_without_planes_the_reason_is_printed(tmp_path, yuv_clip, train, flags, evaluate, capsys, changes, why):
    changes = changes | ({"data": yuv_clip} if changes else {})
    extra = {"clip_targets": None, "clip_weights": "none"} if changes else {}
    assert train(tmp_path, flags(epochs=1, **changes, **extra)) == 0
    capsys.readouterr()
    assert evaluate(tmp_path / "run") == 0
    assert f"PSNR in YUV was not measured: {why}.\n" in capsys.readouterr().out
    assert "psnr_yuv" not in rows_of(tmp_path / "run")[0]
    assert json.loads((tmp_path / "run" / "eval" / "summary.json").read_text())["no_psnr_yuv"] == why


@pytest.mark.parametrize("source", ["yuv_run", "finished"])
def test_vmaf_is_that_of_the_frames_of_both_splits(source, request, tmp_path, evaluate, capsys, vmaf_stand_in):
    """The stand-in gives 100 less the mean difference of levels. Images are converted like the decoded frames."""
    run = Path(shutil.copytree(request.getfixturevalue(source), tmp_path / "run"))
    vmaf_stand_in()
    assert evaluate(run, "--vmaf") == 0
    assert "\nVMAF " in capsys.readouterr().out
    opened, rows = open_run(run, torch.device("cpu")), rows_of(run)
    for position, row in rows.items():
        with torch.no_grad():
            rgb = (opened.model.eval()(torch.tensor([float(position)])).rgb.clamp(0, 1) * 255).round() / 255
        display = opened.planes.display
        (decoded,) = to_planes(rgb, display)
        planes = opened.planes
        where = torch.tensor([position])
        (true,) = to_planes(opened.store.frames(where), display) if planes.why else planes.read([position])
        levels = [torch.cat([plane.flatten() for plane in one]).double() for one in (decoded, true)]
        assert float(row["vmaf"]) == pytest.approx(100 - float((levels[0] - levels[1]).abs().mean()), abs=1e-3)


def test_without_ffmpeg_there_is_a_sentence_and_no_vmaf(run, evaluate, capsys, caplog, monkeypatch, vmaf_stand_in):
    vmaf_stand_in(filters="psnr")
    assert evaluate(run, "--vmaf", "--json") == 0
    (line,) = [record.getMessage() for record in caplog.records if "VMAF" in record.getMessage()]
    assert line.endswith("lacks: install a build with libvmaf; VMAF is left out")
    assert not [key for key in json.loads(capsys.readouterr().out) if "vmaf" in key]
