"""The width that a size allows, and the numbers that count as coded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hnerv.config import Config
from hnerv.errors import UserError
from hnerv.model import DualHeadHNeRV, Scene, build_model, coded_parameters
from hnerv.model.build import solve_width
from hnerv.model.decoder import DECODERS
from hnerv.model.embeddings import EMBEDDINGS
from hnerv.presets import PRESETS

TRAIN = tuple(i for i in range(132) if i % 10 < 9)
BUNNY = Scene(132, 640, 1280, 2, 4, 24.0, TRAIN, tuple(i for i in range(132) if i % 10 == 9), 512)
TIMES = torch.tensor([0.0, 1.5, 4.0])
SIZES = {f"{name} {size}": {"embedding": name, "modelsize": size} for name in EMBEDDINGS for size in (0.5, 3.0)}
SIZES["convnext"] = {"decoder": "convnext", "width_multiple": 4, "expansion": 1.5, "dec_depths": (3, 3, 2, 1, 1)}


def coded(config, scene, width: int) -> int:
    with torch.device("meta"):
        return sum(coded_parameters(DualHeadHNeRV(config, scene, width)).values())


@pytest.mark.parametrize("fields", [*PRESETS.values(), *SIZES.values()], ids=[*PRESETS, *SIZES])
@pytest.mark.parametrize("clip_dim", [0, 512])
def test_the_width_comes_closest_to_the_size_from_below(fields, clip_dim):
    config = Config().replaced(fields)
    crop = config.video.resize or config.video.crop
    height, width = map(int, crop.split("x")) if crop else (640, 1280)
    scene, limit = replace(BUNNY, height=height, width=width, clip_dim=clip_dim), round(config.model.modelsize * 1e6)
    solved = solve_width(config.model, scene)
    size = coded(config.model, scene, solved)
    above = [coded(config.model, scene, solved + i) for i in range(1, 2 * config.model.width_multiple)]
    assert size <= limit < above[-1] and not any(size < other <= limit for other in above)


def test_small_widths_one_by_one(small, scene_of):
    """Against a plain search upwards from 1, at sizes around each step."""
    config, scene = small(dec_width=0).model, scene_of(small())
    sizes = [coded(config, scene, width) for width in range(1, 9)]
    for size in sorted({s + d for s in sizes[:-1] for d in (-1, 0, 1)} - {sizes[0] - 1}):
        expected = max(width for width, s in enumerate(sizes, start=1) if s <= size)
        assert solve_width(replace(config, modelsize=size / 1e6), scene) == expected


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_size_that_is_too_small_names_the_size_needed(embedding):
    config = replace(Config().model, embedding=embedding, modelsize=0.01)
    with pytest.raises(UserError) as error:
        build_model(config, BUNNY)
    assert str(error.value) == (
        f"--modelsize 0.01 is below the {coded(config, BUNNY, 1) / 1e6:.3f} million parameters of the smallest such "
        "network: raise it, or lower --embed-dim, --grid-knots, --lower-width, --width-multiple, --clip-hidden, "
        "--dec-depths or --expansion"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_hidden": 1 << 62},
        {"clip_pool": 1 << 33},
        {"lower_width": 1 << 62},
        {"decoder": "convnext", "expansion": 1e30},
        {"decoder": "convnext", "expansion": 1e300},
    ],
    ids=str,
)
def test_a_model_beyond_all_numbers_is_one_line(changes):
    with pytest.raises(UserError, match="the model is too large for any machine"):
        build_model(replace(Config().model, dec_width=8, clip_site=1, **changes), BUNNY)


@pytest.mark.parametrize(("size", "published"), [(0.35, 32), (0.75, 48), (1.5, 68), (3.0, 97)])
def test_in_the_layout_of_hnerv_the_width_is_that_of_hnerv(size, published):
    """Within 1: HNeRV solves a quadratic and rounds, and may exceed the size; here no width does.

    Published widths: HNeRV (Chen et al. 2023), Bunny 640x1280, all 132 frames in training, strides 5 4 4 2 2.
    """
    strides = (5, 4, 4, 2, 2)
    layout = {"embedding": "encoder", "dec_strides": strides, "enc_strides": strides, "rgb_stride": 1, "ks": "0_1_5"}
    layout |= {"reduce": 1.2, "lower_width": 12, "act": "gelu", "embed_dim": 16, "modelsize": size}
    scene = replace(BUNNY, train=tuple(range(132)), val=(), clip_dim=0)
    assert published - solve_width(replace(Config().model, **layout), scene) in (0, 1)


@pytest.mark.parametrize("clip_dim", [0, 7])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_coded_numbers_are_those_that_decoding_needs(make, embedding, decoder, clip_dim):
    """Without the encoder a model decodes the same; the numbers left over make another model decode the same."""
    model, other = (make(embedding=embedding, decoder=decoder, scene={"clip_dim": clip_dim}) for _ in range(2))
    parts, expected = coded_parameters(model), model(TIMES)
    assert set(parts) == {"embedding", "decoder", "rgb_head"} | ({"clip_head"} if clip_dim else set())
    if embedding == "encoder":
        del model.embedding.encoder
    kept = model.state_dict()
    assert sum(tensor.numel() for tensor in kept.values()) == sum(parts.values()) and coded_parameters(model) == parts
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.normal_()
    assert not other.load_state_dict(kept, strict=False).unexpected_keys
    for decoding in (model, other):
        found = decoding(TIMES)
        assert torch.equal(found.rgb, expected.rgb) and (not clip_dim or torch.equal(found.clip, expected.clip))


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_coded_number_matters(make, decoder):
    """Every parameter gets a gradient from the decode: none is counted for nothing."""
    model = make(frames=5, scene={"train": (0, 1, 2, 3, 4), "val": ()}, decoder=decoder)
    rgb, clip = model(torch.arange(5.0))
    (rgb.sum() + clip[..., 0].sum()).backward()
    for name, parameter in model.named_parameters():
        flat = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]
        assert (flat.abs().amax(1) > 0).all(), name


def test_building_is_a_function_of_width_and_seed(make):
    assert make(dec_width=9, modelsize=0.0001).width == 9
    first, second, plain = (make(dec_width=0, modelsize=0.01, bilinear_init=on) for on in (True, True, False))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert coded_parameters(first) == coded_parameters(plain)
