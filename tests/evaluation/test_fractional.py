"""Patches at half-grid positions: where they are, their PSNR, and the output of eval.py."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from hnerv.errors import UserError
from hnerv.evaluation import evaluate as evaluated
from hnerv.evaluation.fractional import check_half_grid, fractional_table, half_grid, measure_fractional
from hnerv.geometry import PatchGrid, Window
from hnerv.model.predict import predict, round8


def test_the_positions_of_a_small_grid():
    assert half_grid(PatchGrid(20, 32, 2, 2)) == {
        "horizontal": [Window(0, 8, 10, 16), Window(10, 8, 10, 16)],
        "vertical": [Window(5, 0, 10, 16), Window(5, 16, 10, 16)],
        "corner": [Window(5, 8, 10, 16)],
    }
    assert half_grid(PatchGrid(10, 15, 2, 3))["corner"] == [Window(2, 2, 5, 5), Window(2, 7, 5, 5)]


@pytest.mark.parametrize(("rows", "cols"), [(2, 4), (1, 3), (3, 1), (4, 4)])
def test_positions_are_inside_the_frame_and_each_kind_is_complete(rows, cols):
    grid = PatchGrid(12 * rows, 14 * cols, rows, cols)
    found = half_grid(grid)
    assert {kind: len(windows) for kind, windows in found.items()} == {
        "horizontal": rows * (cols - 1),
        "vertical": (rows - 1) * cols,
        "corner": (rows - 1) * (cols - 1),
    }
    for window in (w for windows in found.values() for w in windows):
        assert 0 <= window.top <= grid.height - 12 and 0 <= window.left <= grid.width - 14
        assert (window.height, window.width) == (12, 14)


def test_one_patch_has_none():
    check_half_grid(PatchGrid(8, 8, 1, 2))
    with pytest.raises(UserError, match="the grid is 1x1"):
        check_half_grid(PatchGrid(8, 8, 1, 1))


def psnr_of(rgb: torch.Tensor, frame: torch.Tensor, window: Window) -> float:
    error = (window.cut(rgb).double() - window.cut(frame).double()).square().mean()
    return float(-10 * error.log10())


@pytest.mark.parametrize("embedding", ["grid", "encoder"])
@torch.no_grad()
def test_feature_maps_of_full_frames_give_windows_of_full_frames(world, embedding):
    here = world(embedding)
    report = evaluated(here.model, here.store)
    found = measure_fractional(here.model, here.store, report)
    assert list(found) == ["train", "val"]
    for name, split in report.splits():
        rgb = {n: round8(predict(here.model, torch.tensor([float(n)])).rgb[0]) for n in split.positions.tolist()}
        expected = {"trained": pytest.approx(split.psnr.mean().item(), abs=1e-4)}
        for kind, windows in half_grid(here.scene.grid).items():
            values = [psnr_of(rgb[n], here.frames[n] / 255, window) for n in rgb for window in windows]
            expected[kind] = pytest.approx(sum(values) / len(values), abs=1e-3)
        assert found[name] == expected


@torch.no_grad()
def test_pe_decodes_windows_that_are_no_part_of_its_frames(world):
    here = world("pe")
    found = measure_fractional(here.model, here.store, evaluated(here.model, here.store))
    windows, values = half_grid(here.scene.grid)["corner"], []
    for n in here.scene.val:
        for window in windows:
            rgb = round8(here.model.decode_window(torch.tensor([float(n)]), window))[0]
            values.append(psnr_of(rgb, window.cut(here.frames[n] / 255), Window(0, 0, 16, 16)))
    assert found["val"]["corner"] == pytest.approx(sum(values) / len(values), abs=1e-3) and len(values) == 6
    cut = round8(predict(here.model, torch.tensor([3.0])).rgb[0])
    between = round8(here.model.decode_window(torch.tensor([3.0]), windows[0]))[0]
    assert not torch.allclose(windows[0].cut(cut), between, atol=0.01)


def test_encoded_unseen_frames_are_encoded_here_as_well(world):
    here = world("encoder")
    plain = measure_fractional(here.model, here.store, evaluated(here.model, here.store))
    seen = measure_fractional(here.model, here.store, evaluated(here.model, here.store, "encode"))
    assert seen["train"] == plain["train"] and seen["val"]["corner"] != plain["val"]["corner"]


def test_the_table():
    values = {"train": {"trained": 30.0, "horizontal": 29.5}, "val": {"trained": 28.0, "horizontal": 28.25}}
    assert fractional_table(values, PatchGrid(8, 16, 1, 2)).splitlines() == [
        "patch PSNR, dB                                  training              unseen",
        "  trained positions (2)                           30.000              28.000",
        "  horizontal positions (1)                29.500 (-0.50)      28.250 (+0.25)",
        "  vertical positions (0)                               -                   -",
        "  corner positions (0)                                 -                   -",
    ]


def test_eval_prints_and_writes_it(finished, tmp_path, evaluate, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    assert evaluate(run, "--positions", "fractional", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["fractional"]) == {"train", "val"}
    assert set(found["fractional"]["val"]) == {"trained", "horizontal", "vertical", "corner"}
    assert found["fractional"]["train"]["trained"] == pytest.approx(found["Eval/Frame/train_psnr"], abs=1e-6)
    assert json.loads((run / "eval" / "summary.json").read_text()) == found
    assert evaluate(run, "--positions", "fractional") == 0
    out = capsys.readouterr().out
    assert "corner positions (3)" in out and f"{found['fractional']['val']['corner']:.3f}" in out
    assert evaluate(run) == 0
    assert "fractional" not in json.loads((run / "eval" / "summary.json").read_text())
    assert "corner" not in capsys.readouterr().out


def test_one_patch_is_refused_before_anything_is_written(tmp_path, train, flags, evaluate, capsys):
    assert train(tmp_path, flags(grid="1x1", clip_targets=None, clip_weights="none", epochs=1)) == 0
    assert evaluate(tmp_path / "run", "--positions", "fractional") == 2
    assert "the grid is 1x1" in capsys.readouterr().err and not (tmp_path / "run" / "eval").exists()
