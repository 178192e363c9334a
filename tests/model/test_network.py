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
    "patches across cells": {"grid": "3x2", "dec_strides": (2, 5, 3), "ks": "0_3_5", "times": (1, 2)},
    "several cells a patch": {"grid": "2x2", "dec_strides": (2, 2), "ks": "0_3_3", "times": (6, 5)},
    "whole frame": {"grid": "1x1", "dec_strides": (2, 3), "ks": "0_1_5", "times": (3, 2)},
    "no upsampling": {"grid": "2x3", "dec_strides": (1, 1, 1), "ks": "0_3_3", "times": (5, 4)},
    "CLIP early": {"grid": "2x2", "dec_strides": (2, 2, 2), "ks": "0_3_3", "times": (2, 2), "clip_site": 1},
    "CLIP last": {"grid": "2x2", "dec_strides": (2, 2, 2), "times": (2, 2), "clip_site": 3, "act": "gelu"},
    "CLIP in parts": {"grid": "2x3", "dec_strides": (2, 3), "times": (2, 1), "clip_site": 1, "clip_pool": 2},
}
shapes = pytest.mark.parametrize("shape", GEOMETRIES.values(), ids=GEOMETRIES)
embeddings = pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
decoders = pytest.mark.parametrize("decoder", ["hnerv", "convnext"])


def of_embedding(name: str, shape: dict) -> dict:
    """Fields of a configuration; `pe` draws each patch alone: the smallest frame is enough."""
    fields = {"enc_strides": (*shape["dec_strides"], shape.get("rgb_stride", 1)), "ks": "0_3_3", **shape}
    return fields | {"embedding": name} | ({"times": (1, 1)} if name == "pe" else {})


def frames_of(model) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(len(TIMES), 3, model.scene.height, model.scene.width, generator=draw)


@shapes
@embeddings
@decoders
@pytest.mark.parametrize("rgb_stride", [1, 2])
@torch.no_grad()
def test_a_patch_alone_is_the_patch_of_the_frame(make, embedding, decoder, shape, rgb_stride):
    """And so is a window of a patch's size anywhere, where the model draws full frames."""
    model = make(**of_embedding(embedding, {**shape, "rgb_stride": rgb_stride}), decoder=decoder)
    grid = model.scene.grid
    for frames in (None, frames_of(model)) if embedding == "encoder" else (None,):
        full = model(TIMES, frames)
        for patch, expected in enumerate(grid.split(full.rgb).unbind(1)):
            alone = model.decode_patch(TIMES, patch, frames)
            assert alone.rgb.shape == expected.shape and (alone.rgb - expected).abs().max() < 1e-5
            assert (alone.clip - full.clip[:, patch]).abs().max() < 1e-5
        for window in windows_of(grid) if embedding != "pe" else ():
            assert (model.decode_window(TIMES, window, frames) - window.cut(full.rgb)).abs().max() < 1e-5


def windows_of(grid) -> list[Window]:
    """Windows of a patch's size: at the corners of the frame and at odd positions between."""
    down, right = (side - part for side, part in zip((grid.height, grid.width), grid.patch_size, strict=True))
    corners = itertools.product(sorted({0, min(1, down), down // 2, down}), sorted({0, right // 3, right}))
    return [Window(*corner, *grid.patch_size) for corner in corners]


@pytest.mark.parametrize("ks", ["0_1_1", "0_1_3", "0_3_3", "0_3_5"])
@decoders
@torch.no_grad()
def test_a_patch_does_not_read_outside_its_windows(make, decoder, ks):
    shape = {"grid": "2x4", "dec_strides": (3, 2), "times": (6, 10), "rgb_stride": 2, "ks": ks, "decoder": decoder}
    model = make(**of_embedding("grid", shape))
    reaches = [stage.reach for stage in model.decoder.stages] + [model.rgb_head.reach]
    for patch in range(model.scene.grid.patches):
        clean = model.decode_patch(TIMES, patch)
        target = Window(*model.canvas.origin_of(patch), *model.canvas.patch_size)
        window = halo_windows(target, tuple(model.embedding(TIMES[:1]).shape[-2:]), reaches)[0]

        def poison(module, args, codes, window=window):
            spoilt = torch.full_like(codes, torch.nan)
            window.cut(spoilt).copy_(window.cut(codes))
            assert spoilt.isnan().any()
            return spoilt

        with model.embedding.register_forward_hook(poison):
            alone = model.decode_patch(TIMES, patch)
        assert torch.equal(alone.rgb, clean.rgb) and torch.equal(alone.clip, clean.clip)


@embeddings
@decoders
def test_the_clip_head_reads_exactly_its_patch(make, embedding, decoder):
    """Features of another patch, changed at the site, change that patch's embedding and no other."""
    shape = {"grid": "2x3", "dec_strides": (2, 2, 2), "enc_strides": (2, 2, 2), "clip_site": 2, "times": (1, 1)}
    model = make(embedding=embedding, decoder=decoder, **shape)
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


@embeddings
def test_the_clip_head_runs_only_on_request(make, embedding):
    model, calls = make(embedding=embedding), []
    model.clip_head.register_forward_hook(lambda *args: calls.append(args))
    quiet = model(TIMES, clip=False)
    assert quiet.clip is None and not calls
    loud = model(TIMES)
    assert torch.equal(loud.rgb, quiet.rgb) and loud.clip is not None and len(calls) == 1
    quiet.rgb.sum().backward()
    assert all(p.grad is None for p in model.clip_head.parameters())
    bare = make(embedding=embedding, scene={"clip_dim": 0})
    assert bare.clip_head is None and bare(TIMES).clip is None and bare.decode_patch(TIMES, 0).clip is None


@pytest.mark.parametrize("act", ["sin", "gelu"])
@embeddings
@decoders
@pytest.mark.parametrize(("scale", "bf16"), [(1, False), (1, True), (30, True)])
def test_ranges_and_gradients(make, embedding, decoder, act, scale, bf16):
    model = make(embedding=embedding, decoder=decoder, act=act, rgb_stride=2, enc_strides=(2, 2, 2)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    frames = frames_of(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        rgb, clip = model(TIMES, frames)
    assert rgb.shape == frames.shape and rgb.min() >= 0 and rgb.max() <= 1 and rgb.dtype == clip.dtype == torch.float32
    assert torch.allclose(clip.norm(dim=-1), torch.ones(len(TIMES), model.scene.grid.patches), atol=1e-5)
    ((rgb - frames).square().mean() + (1 - clip[..., 0]).mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and (scale > 1 or parameter.grad.abs().max() > 0), name


@embeddings
@decoders
@torch.no_grad()
def test_bf16_is_near_fp32(make, embedding, decoder):
    model = make(embedding=embedding, decoder=decoder, act="sin")
    exact = model(TIMES)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(TIMES)
    assert (rough.rgb - exact.rgb).abs().max() < 0.02 and (rough.clip * exact.clip).sum(-1).min() > 0.99


@shapes
@embeddings
@decoders
@torch.no_grad()
def test_times_that_are_only_embedded(make, embedding, decoder, shape):
    """Alone, without the later stages, and after those that are drawn."""
    model = make(**of_embedding(embedding, shape), decoder=decoder)
    drawn, near = model(TIMES), TIMES[1:] / 2
    if embedding != "encoder":
        both = model(TIMES, embedded=near)
        assert torch.allclose(both.rgb, drawn.rgb, atol=1e-6)
        assert torch.allclose(both.clip, torch.cat([drawn.clip, model.embed(near)]), atol=1e-6)
    assert torch.equal(model.embed(TIMES), drawn.clip)
    model.keep_for_embed()
    assert len(model.decoder.stages) == model.decoder.site and model.rgb_head is None
    assert torch.equal(model.embed(TIMES), drawn.clip)


@torch.no_grad()
def test_a_window_of_pe_is_a_patch_at_its_coordinates(make):
    model = make(**of_embedding("pe", GEOMETRIES["aligned"]))
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
