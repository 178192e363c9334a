"""Pictures of an evaluation: what is drawn where, from the frames and numbers that were measured."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hnerv.evaluation import evaluate, log_pictures, log_projector
from hnerv.evaluation.pictures import (
    SEAM_TOP,
    comparison,
    decoded_frames,
    evenly,
    patch_maps,
    seam_jumps,
    seams,
    split_labels,
)
from hnerv.geometry import PatchGrid
from hnerv.tracking import NullLogger, tags
from hnerv.viz.colour import MARK, MISSING, map_colours
from hnerv.viz.image import ERROR_TOP


class Album(NullLogger):
    """Keeps what it is shown."""

    shows = True

    def __init__(self):
        self.pictures, self.points = {}, []

    def image(self, tag, picture, step):
        self.pictures[tag] = (picture, step)

    def projector(self, points):
        self.points.append(points)


@pytest.fixture(scope="module")
def noise():
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)


def test_every_tag_is_drawn_small(world):
    here = world()
    album = Album()
    log_pictures(album, here.model, here.store, evaluate(here.model, here.store), 7)
    assert set(album.pictures) == {name for name, tag in tags().items() if tag.kind == "image"}
    for tag, (picture, step) in album.pictures.items():
        opened = Image.open(io.BytesIO(picture.data))
        assert step == 7 and opened.size == (picture.width, picture.height)
        assert opened.format == ("GIF" if tag.endswith("reconstruction") else "PNG")
        assert picture.width <= 1000 and picture.height <= 400
    animation = Image.open(io.BytesIO(album.pictures["Eval/Images/reconstruction"][0].data))
    assert animation.n_frames > 1 and animation.info["loop"] == 0


def test_without_unseen_frames_or_targets(world):
    here, album = world(targets=False, val=()), Album()
    report = evaluate(here.model, here.store)
    log_pictures(album, here.model, here.store, report, 1)
    log_projector(album, here.model, here.store, report)
    expected = {n for n, tag in tags().items() if tag.kind == "image" and "val_" not in n and "clip_sim" not in n}
    assert set(album.pictures) == expected and not album.points


@pytest.mark.parametrize(("embedding", "unseen"), [("grid", ""), ("encoder", ""), ("encoder", "encode"), ("pe", "")])
def test_frames_are_those_that_were_measured(world, embedding, unseen):
    here = world(embedding)
    report = evaluate(here.model, here.store, unseen)
    measured, labels = {}, split_labels(report)
    for split in (report.train, report.val):
        measured |= dict(zip(split.positions.tolist(), zip(split.psnr_frame, split.clip.sim, strict=True), strict=True))
    frames = list(decoded_frames(here.model, here.store, {p: labels[p] for p in (7, 0, 3, 6)}, clip=True))
    assert [frame.position for frame in frames] == ([0, 6, 7, 3] if unseen else [7, 0, 3, 6])
    for position, truth, rgb, clip in frames:
        assert (truth == here.frames[position].permute(1, 2, 0).numpy()).all()
        mse = (np.subtract(truth, rgb, dtype=float) ** 2).mean() / 255**2
        assert -10 * np.log10(mse) == pytest.approx(measured[position][0].item(), abs=1e-3)
        assert torch.allclose((clip * here.embeddings[position]).sum(-1), measured[position][1], atol=1e-5)


def test_drawing_leaves_the_model_as_it_was(world, monkeypatch):
    here = world("encoder")
    report = evaluate(here.model, here.store)
    before = {key: value.clone() for key, value in here.model.state_dict().items()}
    state, training = torch.get_rng_state(), here.model.training
    for logger in (Album(), NullLogger()):
        log_pictures(logger, here.model, here.store, report, 1)
        log_projector(logger, here.model, here.store, report)
        monkeypatch.setattr("hnerv.evaluation.pictures.decoded_frames", None)  # nothing is decoded for a NullLogger
    assert all(torch.equal(before[key], value) for key, value in here.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and here.model.training == training


@given(st.integers(1, 60), st.integers(2, 60))
def test_evenly(count, most):
    chosen = evenly(list(range(count)), most)
    assert len(chosen) == min(count, most) and chosen[0] == 0 and chosen[-1] == count - 1
    assert len({b - a for a, b in pairwise(chosen)}) <= 2


def test_a_comparison_shows_both_frames_and_the_error(noise):
    truth, rgb = noise
    picture = comparison(truth, rgb, "caption")
    error = map_colours(np.abs(truth.astype(float) - rgb).mean(2) / 255 / ERROR_TOP)
    windows = [picture[top : top + 96] for top in range(picture.shape[0] - 95)]
    for i, expected in enumerate((truth, rgb, error)):
        grown, left = np.repeat(np.repeat(expected, 3, 0), 3, 1), i * (192 + 6)
        assert any((window[:, left : left + 192] == grown).all() for window in windows), i
    dark = comparison(truth, truth, "c")
    assert (dark[60, 396:] == map_colours(np.zeros(192))).all()


def test_jumps_are_differences_of_the_error(noise):
    truth, rgb = noise.astype(float)
    down, across = seam_jumps(*noise)
    assert down.shape == (31, 64) and across.shape == (32, 63)
    assert down[4, 9] == pytest.approx(np.abs((rgb - truth)[5, 9] - (rgb - truth)[4, 9]).mean(), rel=1e-5)
    assert across[4, 9] == pytest.approx(np.abs((rgb - truth)[4, 10] - (rgb - truth)[4, 9]).mean(), rel=1e-5)


def test_a_seam_is_seen_and_an_edge_of_the_scene_is_not():
    """An offset of one patch makes a seam; an edge that truth and reconstruction share makes none."""
    grid = PatchGrid(64, 192, 1, 2)
    truth = np.full((64, 192, 3), 100, np.uint8)
    truth[:, 96:] = 180
    rgb = truth.copy()
    draw = np.random.default_rng(0)
    rgb += draw.integers(0, 3, rgb.shape, dtype=np.uint8)
    band = (slice(-50, -30), slice(93, 99))
    faint = seams(truth, rgb, grid, "f")[band]
    rgb[:, 96:] += 40
    strong = seams(truth, rgb, grid, "f")[band]
    assert (strong == map_colours(np.ones(1))).all() and not (faint == map_colours(np.ones(1))).all(-1).any()
    assert SEAM_TOP > 1


def test_maps_are_means_over_frames_and_mark_unseen_ones(world):
    here = world()
    report = evaluate(here.model, here.store)
    maps = patch_maps(report, 2, 4)
    assert set(maps) == {f"{q}_{form}" for q in ("psnr", "clip_sim") for form in ("patches", "timeline")}
    means = report.train.psnr.mean(0)
    best = (means == means.max()).nonzero().item()
    low = min(split.psnr.mean(0).min().item() for _, split in report.splits())
    high = max(split.psnr.mean(0).max().item() for _, split in report.splits())
    expected = map_colours(np.array([(means[best].item() - low) / (high - low)]))[0]
    row, column = divmod(best, 4)
    picture = maps["psnr_patches"]
    assert np.abs(picture[:, column * 48 + 2].astype(int) - expected).sum(1).min() <= 3
    timeline = maps["psnr_timeline"]
    marked = (timeline == np.array(MARK)).all(-1)
    assert marked.any(0).nonzero()[0].tolist() == [*range(180, 240), *range(420, 480)]  # frames 3 and 7 of 8, 60 wide


def test_frames_that_no_split_holds_are_grey(world):
    here = world(val=(7,))
    timeline = patch_maps(evaluate(here.model, here.store), 2, 4)["psnr_timeline"]
    grey = (timeline == np.array(MISSING)).all(-1)
    assert (grey.sum(0) > 40).nonzero()[0].tolist() == list(range(180, 240))


def test_points_are_the_predictions_and_targets_with_their_patches(world):
    here = world()
    report = evaluate(here.model, here.store)
    album = Album()
    log_projector(album, here.model, here.store, report)
    (points,) = album.points
    count = 8 * 8
    assert points.vectors.shape == (2 * count, 6) and points.thumbnails.shape == (2 * count, 16, 16, 3)
    assert points.columns["kind"] == ["predicted"] * count + ["true"] * count
    assert points.columns["frame"][:10] == [0] * 8 + [1] * 2 and points.columns["patch"][:10] == [*range(8), 0, 1]
    assert points.columns["split"][3 * 8] == "val" and points.columns["split"][count] == "train"
    assert np.allclose(points.vectors[count:], here.embeddings.flatten(0, 1).numpy())
    frame, patch = 5, 6
    row = count + frame * 8 + patch
    expected = here.frames[frame][:, 16:, 32:48].permute(1, 2, 0).numpy()
    assert (points.thumbnails[row] == expected).all()
    sims = (points.vectors[:count] * points.vectors[count:]).sum(1).reshape(8, 8)
    assert np.allclose(sims[report.train.positions], report.train.clip.sim.numpy(), atol=1e-5)
