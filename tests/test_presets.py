"""Every preset is a configuration that changes something, of the right types, and fits Bunny's frames."""

from __future__ import annotations

import pytest

from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.geometry import plan_crop
from hnerv.model import frame_multiple
from hnerv.presets import PRESETS, preset

BUNNY = (720, 1280)


def test_the_presets_of_the_readme_exist():
    assert list(PRESETS) == ["demo", "bunny-0.35m", "bunny-0.75m", "bunny-1.5m", "bunny-3m"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration(name):
    config = Config().replaced(preset(name))
    assert Config.from_dict(config.to_dict()) == config
    assert {key: config.flat()[key] for key in PRESETS[name]} == PRESETS[name]
    assert config.video.data == "bunny"


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "demo"])
def test_the_size_is_in_the_name(name):
    config = Config().replaced(preset(name))
    assert f"bunny-{config.model.modelsize:g}m" == name
    assert config.train.epochs == 300
    assert config.video.crop == "640x1280"


def test_the_demo_is_small():
    config = Config().replaced(preset("demo"))
    assert (config.video.resize, config.video.data_split) == ("160x320", "9_9_10")
    assert config.model.modelsize <= 0.6
    assert config.loss.pixel_loss_warmup_epochs < config.train.epochs


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_the_frames_of_bunny(name):
    config = Config().replaced(preset(name))
    plan = plan_crop(BUNNY, config.video.crop, config.video.resize, frame_multiple(config.video, config.model))
    assert plan[:4] == (40, 0, 640, 1280)


def test_an_unknown_preset_is_named_with_those_that_exist():
    with pytest.raises(UserError) as error:
        preset("bunny")
    assert str(error.value) == f"--preset 'bunny' does not exist: choose from {', '.join(PRESETS)}"
