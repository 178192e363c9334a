"""The width that a size allows, and what is counted as coded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, Scene, build_model, coded_parameters
from hnerv.model.build import solve_width
from hnerv.presets import PRESETS

TRAIN = tuple(i for i in range(132) if i % 10 < 9)
BUNNY = Scene(132, 640, 1280, 2, 4, 24.0, TRAIN, tuple(i for i in range(132) if i % 10 == 9), 512)
TIMES = torch.tensor([0.0, 1.5, 4.0])


def coded(config, scene, width: int) -> int:
    with torch.device("meta"):
        return sum(coded_parameters(DualHeadHNeRV(config, scene, width)).values())


def check_width(config, scene) -> None:
    limit = round(config.modelsize * 1e6)
    width = solve_width(config, scene)
    assert coded(config, scene, width) <= limit
    above = [coded(config, scene, width + i) for i in range(1, 2 * config.width_multiple)]
    assert not any(coded(config, scene, width) < size <= limit for size in above) and limit < above[-1]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("clip_dim", [0, 512])
def test_a_preset_comes_closest_to_its_size_from_below(name, clip_dim):
    config = Config().replaced(PRESETS[name])
    height, width = map(int, (config.video.resize or config.video.crop).split("x"))
    check_width(config.model, replace(BUNNY, height=height, width=width, clip_dim=clip_dim))


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
@pytest.mark.parametrize("changes", [{"modelsize": 0.5}, {"modelsize": 3.0, "ks": "0_3_3"}])
def test_every_embedding_has_the_largest_width_within_its_size(embedding, changes):
    check_width(replace(Config().model, embedding=embedding, **changes), BUNNY)


def test_small_widths_one_by_one(small, scene_of):
    """Against a plain search upwards from 1, at sizes around each step."""
    config = small(dec_width=0).model
    scene = scene_of(small())
    sizes = [coded(config, scene, width) for width in range(1, 15)]
    assert sizes == sorted(set(sizes))
    for size in sorted({s + d for s in sizes[:-1] for d in (-1, 0, 1)} - {sizes[0] - 1}):
        expected = max(width for width, s in enumerate(sizes, start=1) if s <= size)
        assert solve_width(replace(config, modelsize=size / 1e6), scene) == expected


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_a_size_that_is_too_small_says_what_is_needed(embedding):
    config = replace(Config().model, embedding=embedding, modelsize=0.01)
    needed = coded(config, BUNNY, 1) / 1e6
    with pytest.raises(UserError) as error:
        build_model(config, BUNNY)
    assert str(error.value) == (
        f"--modelsize 0.01 is below the {needed:.3f} million parameters that the embedding and heads alone need: raise "
        "it, or lower --embed-dim, --lower-width, --width-multiple or --clip-hidden"
    )


@pytest.mark.parametrize("changes", [{"clip_hidden": 1 << 62}, {"clip_pool": 1 << 33}, {"lower_width": 1 << 62}])
def test_a_model_beyond_all_numbers_is_one_line(changes):
    config = replace(Config().model, dec_width=8, clip_site=1, **changes)
    with pytest.raises(UserError, match="the model is too large for any machine"):
        build_model(config, BUNNY)


def test_a_width_given_is_taken(make):
    assert make(dec_width=9, modelsize=0.0001).width == 9


@pytest.mark.parametrize(("size", "published"), [(0.35, 32), (0.75, 48), (1.5, 68), (3.0, 97)])
def test_in_the_layout_of_hnerv_the_width_is_that_of_hnerv(size, published):
    """Within 1: HNeRV solves a quadratic and rounds, and may go over the size; here no width goes over.

    Published widths: HNeRV (Chen et al. 2023), Bunny 640x1280, all 132 frames in training, strides 5 4 4 2 2.
    """
    config = replace(
        Config().model, embedding="encoder", dec_strides=(5, 4, 4, 2, 2), enc_strides=(5, 4, 4, 2, 2), ks="0_1_5",
        reduce=1.2, lower_width=12, act="gelu", rgb_stride=1, embed_dim=16, modelsize=size,
    )  # fmt: skip
    scene = replace(BUNNY, train=tuple(range(132)), val=(), clip_dim=0)
    assert published - solve_width(config, scene) in (0, 1)


@pytest.mark.parametrize("clip_dim", [0, 7])
@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_what_is_coded_is_what_decoding_needs(make, embedding, clip_dim):
    """Without the encoder and its weights the model decodes the same; what is left are the numbers counted."""
    model = make(embedding=embedding, scene={"clip_dim": clip_dim})
    parts, expected = coded_parameters(model), model(TIMES)
    assert set(parts) == {"embedding", "decoder", "rgb_head"} | ({"clip_head"} if clip_dim else set())
    if embedding == "encoder":
        del model.embedding.encoder
    assert torch.equal(model(TIMES).rgb, expected.rgb)
    assert not clip_dim or torch.equal(model(TIMES).clip, expected.clip)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == sum(parts.values())
    assert coded_parameters(model) == parts


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_the_coded_numbers_alone_make_the_model(make, embedding):
    model, other = make(embedding=embedding), make(embedding=embedding)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.normal_()
    kept = {key: value for key, value in model.state_dict().items() if ".encoder." not in key}
    assert sum(value.numel() for value in kept.values()) == sum(coded_parameters(model).values())
    assert not other.load_state_dict(kept, strict=False).unexpected_keys
    assert torch.equal(other(TIMES).rgb, model(TIMES).rgb) and torch.equal(other(TIMES).clip, model(TIMES).clip)


def test_every_coded_number_matters(make):
    """Every parameter gets a gradient from the decode: none is counted for nothing."""
    model = make(frames=5, scene={"train": (0, 1, 2, 3, 4), "val": ()})
    rgb, clip = model(torch.arange(5.0))
    (rgb.sum() + clip[..., 0].sum()).backward()
    for name, parameter in model.named_parameters():
        flat = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]
        assert (flat.abs().amax(1) > 0).all(), name


def test_a_bilinear_beginning_costs_no_number(make):
    sizes = [coded_parameters(make(bilinear_init=bilinear)) for bilinear in (True, False)]
    assert sizes[0] == sizes[1]


def test_building_is_a_function_of_the_seed(make):
    first, second = make(dec_width=0, modelsize=0.01), make(dec_width=0, modelsize=0.01)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
