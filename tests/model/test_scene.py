"""Every frame size that `frame_multiple` accepts builds and runs; scenes go to JSON and back."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.model import Scene, build_model, frame_multiple, joined_scene
from hnerv.timeline import Timeline

TIMED = Scene(3, 40, 80, 2, 4, 20.0, (0, 2), (1,), 0, Timeline(Fraction(1, 1000), (0, 40, 250)))
SCENE = Scene(5, 40, 80, 2, 4, 23.976, (0, 2, 4), (1, 3), 512)


@pytest.mark.parametrize("scene", [SCENE, TIMED, Scene(1, 1, 1, 1, 1, 1.0, (0,), (), 0)])
def test_a_scene_goes_to_json_and_back(scene):
    assert Scene.from_dict(scene.to_dict()) == scene == Scene.from_dict(json.loads(json.dumps(scene.to_dict())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": None}, "is damaged"),
        ({"times": 7}, "is damaged"),
        ({"times": {"tick": [1, 1000], "first": 0, "steps": [[40, 1]]}}, "is damaged"),
        ({"rows": 0}, "is damaged \\(invalid sizes\\)"),
        ({"frames": 1 << 25}, "is damaged \\(invalid sizes\\)"),
        ({"clip_dim": -1}, "is damaged \\(invalid sizes\\)"),
        ({"fps": math.inf}, "is damaged \\(invalid frame rate\\)"),
        ({"val": [1, 1]}, "is damaged \\(invalid val frames\\)"),
        ({"train": [3]}, "is damaged \\(invalid train frames\\)"),
        ({"train": []}, "is damaged \\(no training frames\\)"),
        ({"depth": 1}, "does not fit this version: \\['depth'\\]"),
    ],
)
def test_damaged_scenes_are_refused(changes, message):
    with pytest.raises(UserError, match=f"the scene of this checkpoint {message}"):
        Scene.from_dict(TIMED.to_dict() | changes)


def test_the_times_of_parts_in_one():
    """Those that only restate the rate are left out; a part without times follows the one before at its rate."""
    start, later = (replace(TIMED, times=Timeline(Fraction(1, 1000), part)) for part in ((0, 40, 80), (90, 900, 901)))
    assert joined_scene([start, later]).times.stamps == (0, 40, 80, 90, 900, 901)
    assert joined_scene([start, replace(later, times=None)]).times.stamps == (0, 40, 80, 150, 200, 250)
    other = joined_scene([start, replace(later, times=Timeline(Fraction(1, 90), (9, 18, 45)))]).times
    assert (other.tick, other.stamps) == (Fraction(1, 9000), (0, 360, 720, 900, 1800, 4500))
    parts = [replace(TIMED, times=None), replace(TIMED, times=Timeline(Fraction(1, 20), (3, 4, 5)))]
    assert joined_scene(parts).times is None and joined_scene(parts).clock.seconds(4) == 0.2
    late = [replace(TIMED, times=Timeline(Fraction(1, 20), part)) for part in ((3, 4, 5), (6, 7, 8))]
    assert joined_scene(late).clock.seconds(4) == 0.35


@pytest.mark.parametrize("times", [(1, 1), (2, 3)])
@pytest.mark.parametrize("strides", [((2, 2), 1, 2), ((3, 2), 2, 1), ((1, 5), 1, 1)], ids=str)
@pytest.mark.parametrize("grid", ["1x1", "2x4", "3x3", "7x2"])
@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_a_size_that_is_accepted_builds_and_runs(small, scene_of, embedding, grid, strides, times):
    dec_strides, rgb_stride, site = strides
    fields = {"dec_strides": dec_strides, "rgb_stride": rgb_stride, "clip_site": site, "dec_width": 6}
    config = small(embedding=embedding, grid=grid, enc_strides=(*dec_strides, rgb_stride), **fields)
    scene = scene_of(config, times, frames=3)
    model, where = build_model(config.model, scene), torch.tensor([0.5])
    with torch.no_grad():
        full, frames = model(where), torch.rand(1, 3, scene.height, scene.width)
        assert model(where, frames).rgb.shape == frames.shape == full.rgb.shape
        for patch in {0, scene.grid.patches - 1}:
            alone = model.decode_patch(where, patch)
            assert (alone.rgb - scene.grid.split(full.rgb)[:, patch]).abs().max() < 1e-5
            assert (alone.clip - full.clip[:, patch]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("fields", "multiple"),
    [
        ({"grid": "2x4", "embedding": "grid", "dec_strides": (5, 4, 4, 2, 2)}, (320, 320)),
        ({"grid": "2x4", "embedding": "encoder", "dec_strides": (5, 4, 4, 2, 2)}, (320, 320)),
        ({"grid": "2x4", "embedding": "pe", "dec_strides": (5, 4, 4, 2, 2)}, (640, 1280)),
        ({"grid": "3x3", "embedding": "grid", "dec_strides": (5, 4, 4, 2, 2)}, (960, 960)),
        ({"grid": "4x8", "embedding": "grid", "dec_strides": (2, 5, 2), "rgb_stride": 2, "clip_site": 1}, (80, 160)),
        ({"grid": "3x7", "embedding": "pe", "dec_strides": (2, 2), "rgb_stride": 1}, (12, 28)),
        ({"grid": "2x4", "dec_strides": (2, 5), "rgb_stride": 4, "clip_site": 1, "clip_pool": 2}, (80, 160)),
        ({"grid": "3x7", "embedding": "pe", "dec_strides": (3, 2), "clip_site": 1, "clip_pool": 5}, (90, 210)),
    ],
)
def test_multiple_table(fields, multiple):
    config = Config().replaced(fields)
    assert frame_multiple(config.video, config.model) == multiple


def test_a_multiple_is_the_least_that_holds_patches_cells_and_sites(small):
    """Against the three divisibility rules, tried one number after the other."""
    for grid, dec_strides, site in itertools.product([2, 5], [(2, 3), (4, 1, 2)], [1, 2]):
        config = small(grid=f"{grid}x1", dec_strides=dec_strides, clip_site=site)
        cell, total = math.prod(config.model.strides[site:]) * config.model.clip_pool, math.prod(config.model.strides)
        fits = (n for n in itertools.count(1) if n % grid == 0 and n % total == 0 and n // grid % cell == 0)
        assert frame_multiple(config.video, config.model)[0] == next(fits)


def test_an_encoder_that_does_not_undo_the_decoder_is_refused():
    config = Config().replaced({"embedding": "encoder", "dec_strides": (2, 5), "rgb_stride": 2, "enc_strides": (2, 5)})
    with pytest.raises(UserError) as error:
        frame_multiple(config.video, config.model)
    assert str(error.value) == (
        "the encoder downsamples frames by 10, but the decoder upsamples by 20: make the product of --enc-strides "
        "equal to that of --dec-strides and --rgb-stride"
    )
