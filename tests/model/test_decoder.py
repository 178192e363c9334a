"""Stages against torch's own operators; widths and kernels against the rules of HNeRV."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hnerv.config import Config
from hnerv.geometry import Window, halo_windows
from hnerv.model.convnext import BilinearUpsampling, ConvNeXtBlock, ConvNeXtStage
from hnerv.model.decoder import ACTIVATIONS, DECODERS, RgbHead, UpStage, stage_widths, upsampling_taps

kernels = pytest.mark.parametrize("kernel", [1, 3, 5])
strides = pytest.mark.parametrize("stride", [1, 2, 3, 5])


@pytest.mark.parametrize(
    ("width", "reduce", "lower", "stages", "expected"),
    [
        (68, 1.2, 12, 5, [68, 57, 48, 40, 33, 28]),
        (32, 1.2, 12, 5, [32, 27, 22, 18, 15, 12]),
        (100, 2.0, 12, 5, [100, 50, 25, 12, 12, 12]),
        (5, 1.2, 12, 2, [5, 12, 12]),
        (10, 0.5, 1, 2, [10, 20, 40]),
    ],
)
def test_width_table(make, width, reduce, lower, stages, expected):
    fields = {"dec_strides": (1,) * stages, "reduce": reduce, "lower_width": lower, "clip_site": 1}
    decoder = make(times=(4, 2), dec_width=width, **fields).decoder
    assert [decoder.stem.out_channels, *(stage.conv.out_channels for stage in decoder.stages)] == expected


@pytest.mark.parametrize(
    ("multiple", "expansion", "channels", "hidden"),
    [
        (1, 2.0, [50, 25, 12, 12], [100, 50, 24, 24]),
        (1, 0.5, [50, 25, 12, 12], [25, 12, 6, 6]),
        (1, 1e-9, [50, 25, 12, 12], [1, 1, 1, 1]),
        (8, 1.5, [48, 16, 16, 16], [72, 24, 24, 24]),
        (8, 0.1, [48, 16, 16, 16], [8, 8, 8, 8]),
    ],
)
def test_widths_of_convnext(make, multiple, expansion, channels, hidden):
    """No stem: --dec-width is the first stage. Hidden channels are multiples too, and at least one of them."""
    fields = {"dec_strides": (2, 1, 1, 1), "dec_depths": (3, 1, 2, 1), "ks": "0_1_5", "reduce": 2, "lower_width": 12}
    fields |= {"width_multiple": multiple, "expansion": expansion, "dec_width": 50}
    decoder = make(times=(2, 2), decoder="convnext", **fields).decoder
    assert decoder.widths == [5, *channels] and not list(decoder.stem.parameters())
    assert [stage.mix.in_channels for stage in decoder.stages] == decoder.widths[:-1]
    assert [stage.mix.out_channels for stage in decoder.stages] == channels
    assert [len(stage.blocks) for stage in decoder.stages] == [3, 1, 2, 1]
    for stage, size, width in zip(decoder.stages, (1, 3, 5, 5), hidden, strict=True):
        for block in stage.blocks:
            assert block.depthwise.kernel_size == (size, size) and block.grow.out_features == width


@given(st.sampled_from([*DECODERS]), st.sampled_from([1, 12, 40]), st.sampled_from([2, 8, 16]), st.integers(60, 160))
def test_widths_are_multiples_that_together_follow_the_chain(decoder, lower, multiple, above):
    """The rounding of one stage is made up for by the next, as far as the least width allows."""
    config = replace(Config().model, decoder=decoder, width_multiple=multiple, lower_width=lower, embed_dim=16 * 5)
    widths = stage_widths(lower + above, config)
    chain = stage_widths(lower + above, replace(config, width_multiple=1))
    assert all(channels % multiple == 0 for channels in widths) and min(widths[1:]) >= lower
    assert min(chain[1:]) < lower + multiple or abs(sum(widths) - sum(chain)) <= multiple / 2


@pytest.mark.parametrize(
    ("ks", "sizes"), [("0_1_5", [1, 3, 5, 5, 5]), ("0_3_3", [3] * 5), ("0_1_11", [1, 3, 5, 7, 9]), ("0_5_1", [1] * 5)]
)
def test_kernels(make, ks, sizes):
    decoder = make(ks=ks, dec_strides=(2, 1, 1, 1, 1), times=(2, 2)).decoder
    assert [stage.conv.kernel_size for stage in decoder.stages] == [(k, k) for k in sizes]
    assert [tuple(stage.reach) for stage in decoder.stages] == [
        (k // 2, 2 if i == 0 else 1) for i, k in enumerate(sizes)
    ]


def shuffled(conv: nn.Conv2d, x: torch.Tensor, stride: int) -> torch.Tensor:
    """torch's convolution and pixel shuffle, of channels in the order (s, s, C')."""
    y = F.conv2d(x, conv.weight, conv.bias, padding=conv.padding)
    return F.pixel_shuffle(y.unflatten(1, (stride**2, -1)).transpose(1, 2).flatten(1, 2), stride)


@pytest.mark.parametrize("act", ACTIVATIONS)
@strides
@kernels
def test_a_stage_is_convolution_shuffle_activation(act, stride, kernel):
    stage, x = UpStage(3, 4, kernel, stride, act, True), torch.randn(2, 3, 5, 6)
    y = shuffled(stage.conv, x, stride)
    assert torch.allclose(stage(x), torch.sin(y) if act == "sin" else F.gelu(y), atol=1e-6)


@strides
def test_the_rgb_head_is_a_convolution_into_0_1(stride):
    head, x = RgbHead(4, stride), torch.randn(2, 4, 5, 6)
    assert torch.allclose(head(x), (1 + torch.tanh(shuffled(head.conv, x, stride))) / 2, atol=1e-6)
    assert tuple(head.reach) == (1, stride)


def interpolated(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """torch's own upsampling: bilinear, or nearest for kernels of 1."""
    mode = {"mode": "nearest"} if kernel == 1 else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(x, scale_factor=stride, **mode)


@strides
@kernels
def test_taps_before_a_shuffle_upsample_as_torch_does(kernel, stride):
    """Away from the border; at the border as if the map were surrounded by zeros."""
    x, taps = torch.randn(2, 1, 5, 6), upsampling_taps(kernel, stride)
    assert taps.shape == (stride**2, kernel, kernel)
    ours = F.pixel_shuffle(F.conv2d(x, taps[:, None], padding=kernel // 2), stride)
    inner = ..., slice(stride, -stride), slice(stride, -stride)
    assert torch.allclose(ours[inner], interpolated(x, kernel, stride)[inner], atol=1e-6)
    assert torch.allclose(ours, interpolated(F.pad(x, [1] * 4), kernel, stride)[inner], atol=1e-6)


def seeded(inputs: int, outputs: int, kernel: int, stride: int, bilinear: bool) -> nn.Conv2d:
    torch.manual_seed(3)
    return UpStage(inputs, outputs, kernel, stride, "sin", bilinear).conv


@strides
@kernels
def test_the_initialisation_adds_an_upsampled_1x1_convolution(kernel, stride):
    """One mix of the channels, the same for every pixel of a cell, uniform in +-1 / sqrt(inputs) as torch's own."""
    plain, initial = (seeded(400, 4, kernel, stride, bilinear) for bilinear in (False, True))
    torch.manual_seed(3)
    own = nn.Conv2d(400, 4 * stride**2, kernel, padding=kernel // 2)
    assert torch.equal(plain.weight, own.weight) and torch.equal(plain.bias, own.bias)
    assert torch.equal(plain.bias, initial.bias) and initial.weight.is_leaf
    added = initial.weight.detach() - plain.weight.detach()
    mix = added.sum((2, 3)).unflatten(0, (stride**2, 4))
    assert torch.allclose(mix, mix[:1].expand_as(mix), atol=1e-6)
    assert 0.99 / 20 < mix.abs().max() < 1 / 20 + 1e-5 and mix.std().item() == pytest.approx(3**-0.5 / 20, rel=0.1)
    with torch.no_grad():
        initial.weight.copy_(added)
        initial.bias.zero_()
    x = torch.randn(2, 400, 5, 7)
    inner = ..., slice(stride, -stride), slice(stride, -stride)
    expected = interpolated(F.conv2d(x, mix[0, :, :, None, None]), kernel, stride)
    assert torch.allclose(initial(x)[inner], expected[inner], atol=1e-5)


@pytest.mark.parametrize(("site", "scale"), [(1, 6), (2, 2), (3, 2)])
@pytest.mark.parametrize("name", DECODERS)
def test_the_site_is_the_output_of_its_stage(make, name, site, scale):
    fields = {"dec_strides": (2, 3, 1), "enc_strides": (2, 3, 1), "rgb_stride": 2, "clip_site": site}
    decoder = make(times=(2, 2), decoder=name, **fields).decoder
    codes = torch.randn(2, 5, 2, 3)
    x = decoder.stem(codes)
    outputs = [x := stage(x) for stage in decoder.stages]
    features = decoder(codes)
    assert torch.equal(features.site, outputs[site - 1]) and torch.equal(features.last, outputs[-1])
    assert decoder.site_scale == scale


@pytest.mark.parametrize("act", ACTIVATIONS)
@kernels
def test_a_convnext_block_by_other_operators(act, kernel):
    """A layer norm over the channels of each pixel, and linear layers as 1x1 convolutions."""
    block, x = ConvNeXtBlock(6, kernel, 10, act), torch.randn(2, 6, 5, 7)
    y = F.conv2d(x, block.depthwise.weight, padding=kernel // 2, groups=6)
    y = nn.LayerNorm(6, elementwise_affine=False)(y.movedim(1, -1)).movedim(-1, 1)
    y = F.conv2d(y, block.grow.weight[:, :, None, None])
    y = F.conv2d(torch.sin(y) if act == "sin" else F.gelu(y), block.shrink.weight[:, :, None, None])
    assert torch.allclose(block(x), x + y, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@strides
def test_a_convnext_stage_upsamples_before_or_after_it_mixes_channels(stride, layout):
    stage, x = ConvNeXtStage(3, 4, 3, stride, 2, 8, "sin"), torch.randn(2, 3, 5, 6).to(memory_format=layout)
    larger = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    assert torch.allclose(stage(x), stage.blocks(F.conv2d(larger, stage.mix.weight, stage.mix.bias)), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (7, 5)], ids=str)
@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_upsampling_and_its_gradient_are_those_of_torch(stride, size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    ours, theirs = BilinearUpsampling.apply(x, stride), F.interpolate(x, scale_factor=stride, mode="bilinear")
    assert torch.equal(ours, theirs)
    gradient = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = BilinearUpsampling.apply(x.bfloat16(), stride)
    (found,) = torch.autograd.grad(rough, x, gradient.bfloat16())
    assert rough.dtype == torch.bfloat16 and (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("depth", [1, 2, 3])
@kernels
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@torch.no_grad()
def test_the_halo_of_convnext_is_the_least_that_makes_a_window_right(stride, kernel, depth):
    """Against windows of every size around three cells in the middle of a map."""
    stage = ConvNeXtStage(2, 3, kernel, stride, depth, 4, "gelu").double()
    x, target = torch.randn(1, 2, 19, 19, dtype=torch.float64), Window(8, 8, 3, 3)
    full = target.scaled(stride).cut(stage(x))

    def error(halo: int) -> float:
        window = Window(8 - halo, 8 - halo, 3 + 2 * halo, 3 + 2 * halo)
        alone = target.within(window).scaled(stride).cut(stage(window.cut(x)))
        return (alone - full).abs().max().item()

    assert stage.reach.halo == next(halo for halo in range(9) if error(halo) < 1e-12)
    planned, _ = halo_windows(target.scaled(stride), (19, 19), [stage.reach])
    assert planned.top == 8 - stage.reach.halo
