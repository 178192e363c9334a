"""A patch decoded alone is the patch of the decoded frame; the heads, their ranges and their gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from hnerv.geometry import Window, halo_windows

TIMES = torch.tensor([0.0, 1.5, 4.0])

GEOMETRIES = {
    "aligned": {"grid": "2x4", "dec_strides": (5, 4, 2), "ks": "0_1_5", "times": (2, 4)},
    "patches smaller than cells": {"grid": "4x8", "dec_strides": (5, 4, 2), "ks": "0_1_5", "times": (2, 4)},
    "patches across cells": {"grid": "3x3", "dec_strides": (3, 2, 2), "ks": "0_3_3", "times": (2, 2)},
    "across, odd": {"grid": "3x2", "dec_strides": (2, 5, 3), "ks": "0_3_5", "times": (1, 2)},
    "several cells a patch": {"grid": "2x2", "dec_strides": (2, 2), "ks": "0_3_3", "times": (6, 5)},
    "whole frame": {"grid": "1x1", "dec_strides": (2, 3), "ks": "0_1_5", "times": (3, 2)},
    "no upsampling": {"grid": "2x3", "dec_strides": (1, 1, 1), "ks": "0_3_3", "times": (5, 4)},
    "CLIP early": {"grid": "2x2", "dec_strides": (2, 2, 2), "ks": "0_3_3", "times": (2, 2), "clip_site": 1},
    "CLIP last": {"grid": "2x2", "dec_strides": (2, 2, 2), "ks": "0_3_3", "times": (2, 2), "clip_site": 3},
    "CLIP in parts": {
        "grid": "2x3",
        "dec_strides": (2, 3),
        "ks": "0_3_3",
        "times": (2, 1),
        "clip_site": 1,
        "clip_pool": 2,
    },
}
SHAPES = [pytest.param(shape, id=name) for name, shape in GEOMETRIES.items()]


def of_embedding(name: str, shape: dict) -> dict:
    return {"enc_strides": (*shape["dec_strides"], shape.get("rgb_stride", 1)), **shape, "embedding": name}


def frames_of(model, count: int = len(TIMES)) -> torch.Tensor:
    return torch.rand(count, 3, model.scene.height, model.scene.width, generator=torch.Generator().manual_seed(3))


def worst(model, frames=None) -> float:
    """Largest difference between a patch of `forward` and of `decode_patch`, both heads, all patches."""
    with torch.no_grad():
        whole = model(TIMES, frames)
        patches = model.scene.grid.split(whole.rgb)
        largest = 0.0
        for patch in range(model.scene.grid.patches):
            alone = model.decode_patch(TIMES, patch, frames)
            assert alone.rgb.shape == (len(TIMES), 3, *model.scene.grid.patch_size)
            assert alone.clip.shape == (len(TIMES), model.scene.clip_dim)
            largest = max(
                largest,
                (alone.rgb - patches[:, patch]).abs().max().item(),
                (alone.clip - whole.clip[:, patch]).abs().max().item(),
            )
    return largest


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("embedding", ["grid", "encoder"])
@pytest.mark.parametrize("rgb_stride", [1, 2])
def test_a_patch_alone_is_the_patch_of_the_frame(make, embedding, shape, rgb_stride):
    for bilinear in (True, False):
        for act in ("sin", "gelu"):
            fields = of_embedding(embedding, {**shape, "rgb_stride": rgb_stride})
            assert worst(make(**fields, bilinear_init=bilinear, act=act)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_so_it_is_where_the_encoder_reads_the_frame(make, shape):
    model = make(**of_embedding("encoder", {**shape, "rgb_stride": 2}))
    assert worst(model, frames_of(model)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rgb_stride", [1, 2])
def test_pe_decodes_every_patch_alone_anyway(make, shape, rgb_stride):
    """To rounding, for a convolution may order its sums by the size of the batch."""
    model = make(**of_embedding("pe", {**shape, "times": (1, 1), "rgb_stride": rgb_stride}))
    assert model.embedding.canvases == model.scene.grid.patches
    assert worst(model) < 1e-6


def plan(model, patch: int) -> list[Window]:
    target = Window(*model.canvas.origin_of(patch), *model.canvas.patch_size)
    reaches = [stage.reach for stage in model.decoder.stages] + [model.rgb_head.reach]
    canvas = model.embedding(TIMES[:1]).shape[-2:]
    return halo_windows(target, tuple(canvas), reaches)


POISONED = {"grid": "2x4", "dec_strides": (3, 2), "times": (6, 10), "rgb_stride": 2}
KERNELS = ["0_1_1", "0_1_3", "0_3_3", "0_3_5"]


@pytest.mark.parametrize("ks", KERNELS)
def test_a_patch_does_not_read_outside_its_windows(make, ks):
    model = make(**of_embedding("grid", POISONED), ks=ks)
    for patch in range(model.scene.grid.patches):
        clean = model.decode_patch(TIMES, patch)
        window = plan(model, patch)[0]

        def poison(module, args, codes, window=window):
            spoilt = torch.full_like(codes, torch.nan)
            window.cut(spoilt).copy_(window.cut(codes))
            assert spoilt.isnan().any()
            return spoilt

        with model.embedding.register_forward_hook(poison):
            alone = model.decode_patch(TIMES, patch)
        assert torch.equal(alone.rgb, clean.rgb) and torch.equal(alone.clip, clean.clip)


@pytest.mark.parametrize("ks", KERNELS)
def test_a_frame_does_not_read_outside_the_windows_either(make, ks):
    """The gradient of a patch of the whole decode, at the embedding, is 0 outside of the patch's first window."""
    model = make(**of_embedding("grid", POISONED), ks=ks)
    seen = {}

    def keep(module, args, codes):
        seen["codes"] = codes
        codes.retain_grad()

    model.embedding.register_forward_hook(keep)
    for patch in range(model.scene.grid.patches):
        target = Window(*model.canvas.origin_of(patch), *model.canvas.patch_size)
        target.cut(model(TIMES).rgb).sum().backward()
        gradient = seen["codes"].grad
        plan(model, patch)[0].cut(gradient).zero_()
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_the_clip_head_reads_exactly_its_patch(make, embedding):
    """Features of another patch, changed at the site, change that patch's embedding and no other."""
    shape = {"grid": "2x3", "dec_strides": (2, 2, 2), "enc_strides": (2, 2, 2), "clip_site": 2, "times": (1, 1)}
    model = make(embedding=embedding, **shape)
    grid = model.scene.grid
    clean = model(TIMES).clip.detach()
    assert clean.shape == (len(TIMES), grid.patches, 7)
    for patch in range(grid.patches):

        def spoil(module, args, features, patch=patch):
            """Adds 1 to the features of one patch, on whole canvases or on one canvas a patch."""
            features = features.clone()
            if model.embedding.canvases > 1:
                features.unflatten(0, (len(TIMES), grid.patches))[:, patch] += 1
            else:
                height, width = features.shape[-2] // grid.rows, features.shape[-1] // grid.cols
                row, col = grid.coords_of(patch)
                Window(row * height, col * width, height, width).cut(features).add_(1)
            return features

        with model.decoder.stages[1].register_forward_hook(spoil), torch.no_grad():
            changed = (model(TIMES).clip - clean).abs().amax(dim=(0, 2)) > 1e-7
        assert changed.nonzero().flatten().tolist() == [patch]


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_the_clip_head_is_not_computed_when_it_is_not_asked_for(make, embedding):
    model = make(embedding=embedding)
    calls = []
    model.clip_head.register_forward_hook(lambda *args: calls.append(args))
    quiet = model(TIMES, clip=False)
    assert quiet.clip is None and not calls
    loud = model(TIMES)
    assert torch.equal(loud.rgb, quiet.rgb) and loud.clip is not None and len(calls) == 1
    quiet.rgb.sum().backward()
    assert all(p.grad is None for p in model.clip_head.parameters())


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_without_targets_there_is_no_clip_head(make, embedding):
    model = make(embedding=embedding, scene={"clip_dim": 0})
    assert model.clip_head is None
    assert model(TIMES).clip is None and model.decode_patch(TIMES, 0).clip is None


@pytest.mark.parametrize("act", ["sin", "gelu"])
@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
@pytest.mark.parametrize("scale", [1, 30])
def test_ranges(make, embedding, act, scale):
    model = make(embedding=embedding, act=act, rgb_stride=2, enc_strides=(2, 2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    rgb, clip = model(TIMES)
    assert rgb.shape == (len(TIMES), 3, model.scene.height, model.scene.width)
    assert rgb.min() >= 0 and rgb.max() <= 1 and rgb.dtype == torch.float32
    assert torch.allclose(clip.norm(dim=-1), torch.ones(len(TIMES), model.scene.grid.patches), atol=1e-5)


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("act", ["sin", "gelu"])
@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_gradients_are_finite_under_bf16(make, embedding, act, bilinear):
    model = make(embedding=embedding, act=act, bilinear_init=bilinear).train()
    frames = frames_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        rgb, clip = model(TIMES, frames)
    assert rgb.dtype == clip.dtype == torch.float32
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert torch.allclose(clip.norm(dim=-1), torch.ones(()), atol=1e-5)
    ((rgb - frames).square().mean() + (1 - clip[..., 0]).mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_bf16_is_near_fp32(make, embedding):
    model = make(embedding=embedding, act="sin")
    exact = model(TIMES)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(TIMES)
    assert (rough.rgb - exact.rgb).abs().max() < 0.02
    assert (rough.clip * exact.clip).sum(-1).min() > 0.99


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_frames_of_a_batch_do_not_mix(make, embedding):
    model = make(embedding=embedding)
    together = model(TIMES)
    for i in range(len(TIMES)):
        alone = model(TIMES[i : i + 1])
        assert torch.allclose(alone.rgb[0], together.rgb[i], atol=1e-6)
        assert torch.allclose(alone.clip[0], together.clip[i], atol=1e-6)


@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_a_model_is_its_state(make, embedding, tmp_path):
    model, other = make(embedding=embedding), make(embedding=embedding)
    with torch.no_grad():
        for tensor in (*other.parameters(), *(b for n, b in other.named_buffers() if n.endswith("codes"))):
            tensor.add_(0.1)
    assert not torch.equal(model(TIMES).rgb, other(TIMES).rgb)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    assert torch.equal(model(TIMES).rgb, other(TIMES).rgb) and torch.equal(model(TIMES).clip, other(TIMES).clip)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
@torch.no_grad()
def test_embed_is_the_clip_of_forward_and_runs_no_stage_behind_its_site(make, embedding, shape):
    times = {"times": (1, 1)} if embedding == "pe" else {}
    model = make(**of_embedding(embedding, {**shape, **times}))
    expected = model(TIMES).clip
    assert torch.equal(model.embed(TIMES), expected)
    model.keep_for_embed()
    assert len(model.decoder.stages) == model.decoder.site and model.rgb_head is None
    assert torch.equal(model.embed(TIMES), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("embedding", ["grid", "pe"])
@torch.no_grad()
def test_times_that_are_embedded_only_stand_behind_those_that_are_drawn(make, embedding, shape):
    times = {"times": (1, 1)} if embedding == "pe" else {}
    model = make(**of_embedding(embedding, {**shape, **times}))
    near = TIMES[1:] / 2
    both, drawn = model(TIMES, embedded=near), model(TIMES)
    assert torch.allclose(both.rgb, drawn.rgb, atol=1e-6)
    assert torch.allclose(both.clip, torch.cat([drawn.clip, model.embed(near)]), atol=1e-6)


def places(model) -> list[Window]:
    """Windows of a patch's size: at the corners of the frame and at odd places between."""
    scene, (height, width) = model.scene, model.scene.grid.patch_size
    tops = {0, (scene.height - height) // 2, min(1, scene.height - height), scene.height - height}
    lefts = {0, (scene.width - width) // 3, scene.width - width}
    return [Window(top, left, height, width) for top in sorted(tops) for left in sorted(lefts)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("embedding", ["grid", "encoder"])
@torch.no_grad()
def test_a_window_anywhere_is_that_region_of_the_frame(make, embedding, shape):
    model = make(**of_embedding(embedding, {**shape, "rgb_stride": 2}))
    whole = model(TIMES).rgb
    for window in places(model):
        rgb = model.decode_window(TIMES, window)
        assert rgb.shape == (len(TIMES), 3, window.height, window.width)
        assert (rgb - window.cut(whole)).abs().max() < 1e-5


@torch.no_grad()
def test_a_window_of_an_encoded_frame(make):
    model = make(**of_embedding("encoder", {**GEOMETRIES["aligned"], "rgb_stride": 2}))
    frames = frames_of(model)
    whole = model(TIMES, frames).rgb
    for window in places(model):
        assert (model.decode_window(TIMES, window, frames) - window.cut(whole)).abs().max() < 1e-5


@torch.no_grad()
def test_pe_is_asked_at_the_coordinates_of_the_window(make):
    model = make(**of_embedding("pe", {**GEOMETRIES["aligned"], "times": (1, 1)}))
    grid = model.scene.grid
    height, width = grid.patch_size
    for patch in range(grid.patches):
        trained = model.decode_window(TIMES, Window(*grid.origin_of(patch), height, width))
        assert (trained - model.decode_patch(TIMES, patch).rgb).abs().max() < 1e-6
    between = model.decode_window(TIMES, Window(height // 2, width // 2, height, width))
    model.embedding.yx[0] = torch.tensor([1.0 / grid.rows, 1.0 / grid.cols])
    assert (between - model.decode_patch(TIMES, 0).rgb).abs().max() < 1e-6
    assert (between - grid.split(model(TIMES).rgb)[:, 1]).abs().max() > 1e-3


def test_the_clip_head_sees_the_means_of_the_parts_of_a_patch(make):
    model = make(grid="2x3", dec_strides=(2, 3), clip_site=1, clip_pool=2, times=(2, 1), ks="0_3_3")
    maps = torch.randn(4, 5, 8, 12, generator=torch.Generator().manual_seed(0))
    means = model.clip_head.means(maps, model.canvas)
    assert means.shape == (4, 6, 5 * 4)
    for patch, channel, part in itertools.product(range(6), range(5), range(4)):
        top, left = patch // 3 * 4 + part // 2 * 2, patch % 3 * 4 + part % 2 * 2
        by_hand = maps[:, channel, top : top + 2, left : left + 2].mean((1, 2))
        assert torch.allclose(means[:, patch, 4 * channel + part], by_hand, atol=1e-6)
