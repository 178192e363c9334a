"""Every preset is a configuration that changes something, of the right types, and fits Bunny's frames."""

from __future__ import annotations

import pytest

from hnerv.config import Config
from hnerv.data.video import data_split
from hnerv.errors import UserError
from hnerv.geometry import plan_crop
from hnerv.model import Scene, build_model, coded_parameters, frame_multiple
from hnerv.presets import PRESETS, preset

BUNNY = (720, 1280)


def test_the_presets_of_the_readme_exist():
    plain, fast = ([f"bunny-{size}{speed}" for size in ("0.35m", "0.75m", "1.5m", "3m")] for speed in ("", "-fast"))
    assert list(PRESETS) == ["demo", "demo-small", "demo-codec", *plain, "bunny-1.5m-codec", *fast]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration(name):
    config = Config().replaced(preset(name))
    assert Config.from_dict(config.to_dict()) == config
    assert {key: config.flat()[key] for key in PRESETS[name]} == PRESETS[name]
    assert config.video.data == "bunny"


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("bunny")])
def test_the_size_is_in_the_name(name):
    config = Config().replaced(preset(name))
    assert f"bunny-{config.model.modelsize:g}m" == name.removesuffix("-fast").removesuffix("-codec")
    assert config.model.decoder == ("hnerv" if name.endswith("-fast") else "convnext")
    assert config.train.epochs == 300
    assert config.video.crop == "640x1280"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_for_small_files_code_all_frames(name):
    config = Config().replaced(preset(name))
    assert (config.loss.rate_weight > 0) == name.endswith("-codec") == (config.video.data_split == "1_1_1")


def test_the_demo_is_small():
    config = Config().replaced(preset("demo"))
    assert (config.video.resize, config.video.data_split) == ("160x320", "9_9_10")
    assert config.model.modelsize <= 0.6
    assert config.loss.pixel_loss_warmup_epochs < config.train.epochs


def test_demo_small_fits_a_quarter_of_a_million():
    """With a CLIP head of at most 10,000 numbers."""
    config = Config().replaced(preset("demo-small"))
    height, width = map(int, config.video.resize.split("x"))
    train, val = (tuple(part.tolist()) for part in data_split(132, config.video.data_split, None))
    scene = Scene(132, height, width, 2, 4, 24.0, train, val, 512)
    parts = coded_parameters(build_model(config.model, scene))
    assert 0 < parts["clip_head"] <= 10_000 and sum(parts.values()) <= 250_000


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_the_frames_of_bunny(name):
    config = Config().replaced(preset(name))
    plan = plan_crop(BUNNY, config.video.crop, config.video.resize, frame_multiple(config.video, config.model))
    assert plan[:4] == (40, 0, 640, 1280)


def test_an_unknown_preset_is_named_with_those_that_exist():
    with pytest.raises(UserError) as error:
        preset("bunny")
    assert str(error.value) == f"--preset 'bunny' does not exist: choose from {', '.join(PRESETS)}"
