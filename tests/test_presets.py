"""Every preset is a configuration that changes something, of the right types, and fits the frames of its clip."""

from __future__ import annotations

import pytest
import torch

from hnerv.config import Config
from hnerv.data.store import FrameStore, load_material
from hnerv.data.video import data_split
from hnerv.errors import UserError
from hnerv.geometry import plan_crop
from hnerv.losses import pixel_loss
from hnerv.model import Scene, build_model, coded_parameters, frame_multiple
from hnerv.presets import PRESETS, preset

BUNNY = (720, 1280)


def test_the_presets_of_the_readme_exist():
    plain, fast = ([f"bunny-{size}{speed}" for size in ("0.35m", "0.75m", "1.5m", "3m")] for speed in ("", "-fast"))
    assert list(PRESETS) == ["demo", "demo-small", "demo-codec", *plain, "bunny-1.5m-codec", *fast, "uvg", "uvg-codec"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration(name):
    config = Config().replaced(preset(name))
    assert Config.from_dict(config.to_dict()) == config
    assert {key: config.flat()[key] for key in PRESETS[name]} == PRESETS[name]
    uvg = "Beauty_1920x1080_120fps_420_8bit_YUV.yuv"
    assert config.video.data == (uvg if name.startswith("uvg") else "bunny")


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
    assert (config.loss.rate_weight > 0) == name.endswith("-codec")
    assert (config.video.data_split == "1_1_1") == (name.endswith("-codec") or name == "uvg")


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


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("uvg")])
def test_a_preset_fits_the_frames_of_bunny(name):
    config = Config().replaced(preset(name))
    plan = plan_crop(BUNNY, config.video.crop, config.video.resize, frame_multiple(config.video, config.model))
    assert plan[:4] == (40, 0, 640, 1280)


@pytest.mark.parametrize("name", ["uvg", "uvg-codec"])
@pytest.mark.parametrize(("crop", "top"), [("1080x1920", 0), ("960x1920", 60)])
def test_uvg_is_the_clip_of_the_literature(name, crop, top):
    """1080x1920, or the crop of HNeRV; 3M parameters for 600 frames, in patches of a quarter of the width."""
    config = Config().replaced(preset(name) | {"crop": crop})
    plan = plan_crop((1080, 1920), crop, config.video.resize, frame_multiple(config.video, config.model))
    height, width = map(int, crop.split("x"))
    assert plan == (top, 0, height, width, height, width)
    train, val = (tuple(part.tolist()) for part in data_split(600, config.video.data_split, None))
    scene = Scene(600, height, width, 2, 4, 120.0, train, val, 0)
    parts = coded_parameters(build_model(config.model, scene))
    assert not val and 2.9e6 < sum(parts.values()) <= 3e6
    assert config.train.epochs == 300


def test_uvg_trains_on_a_raw_file(tmp_path, monkeypatch):
    """A step on two 1080p frames under the name that UVG gives its files, with the smallest network."""
    path = tmp_path / preset("uvg")["data"]
    path.write_bytes(bytes(range(256)) * (3 * 1920 * 1080 * 3 // 2 // 256))
    monkeypatch.chdir(tmp_path)
    small = {"clip_weights": "none", "modelsize": 0.03, "lower_width": 4, "dec_depths": (1,), "grid_knots": 2}
    config = Config().replaced(preset("uvg") | small | {"frames": "0:2", "precision": "fp32"})
    material = load_material(config, torch.device("cpu"))
    scene = material.scene
    assert (scene.frames, scene.height, scene.width, scene.fps, scene.train) == (2, 1080, 1920, 120, (0, 1))
    store, model = FrameStore(material, torch.device("cpu")), build_model(config.model, scene)
    target = store.gather(torch.tensor([0.0]), torch.tensor([0]), 1, False).frames
    pixel_loss(config.loss.pixel_loss, model(torch.tensor([0.0])).rgb, target).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_an_unknown_preset_is_named_with_those_that_exist():
    with pytest.raises(UserError) as error:
        preset("bunny")
    assert str(error.value) == f"--preset 'bunny' does not exist: choose from {', '.join(PRESETS)}"
