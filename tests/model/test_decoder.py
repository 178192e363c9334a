"""Stages against torch's own operators; widths and kernels against the rules of HNeRV."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hnerv.config import Config
from hnerv.model.decoder import ACTIVATIONS, RgbHead, UpStage, stage_widths, upsampling_taps


@pytest.mark.parametrize(
    ("width", "reduce", "lower", "stages", "expected"),
    [
        (68, 1.2, 12, 5, [68, 57, 48, 40, 33, 28]),
        (32, 1.2, 12, 5, [32, 27, 22, 18, 15, 12]),
        (100, 2.0, 12, 5, [100, 50, 25, 12, 12, 12]),
        (5, 1.2, 12, 2, [5, 12, 12]),
        (10, 1.0, 1, 3, [10, 10, 10, 10]),
        (10, 0.5, 1, 2, [10, 20, 40]),
    ],
)
def test_width_table(small, make, width, reduce, lower, stages, expected):
    strides = (1,) * stages
    fields = {"dec_strides": strides, "reduce": reduce, "lower_width": lower, "clip_site": 1, "dec_width": width}
    assert stage_widths(width, small(**fields).model) == expected
    decoder = make(times=(4, 2), **fields).decoder
    assert [decoder.stem.out_channels, *(stage.conv.out_channels for stage in decoder.stages)] == expected


@pytest.mark.parametrize("width", [1, 7, 48, 97])
@pytest.mark.parametrize("reduce", [1.1, 1.2, 2.0])
def test_the_rule_of_widths(small, width, reduce):
    config = small(reduce=reduce, dec_strides=(2,) * 6).model
    widths = stage_widths(width, config)
    assert len(widths) == 7 and widths[0] == width
    for before, after in zip(widths, widths[1:], strict=False):
        assert after == max(round(before / reduce), config.lower_width)


@pytest.mark.parametrize(
    ("ks", "kernels"), [("0_1_5", [1, 3, 5, 5, 5]), ("0_3_3", [3] * 5), ("0_1_11", [1, 3, 5, 7, 9]), ("0_5_1", [1] * 5)]
)
def test_kernels(make, ks, kernels):
    decoder = make(ks=ks, dec_strides=(2, 1, 1, 1, 1), times=(2, 2)).decoder
    assert [stage.conv.kernel_size for stage in decoder.stages] == [(k, k) for k in kernels]
    assert [stage.reach.halo for stage in decoder.stages] == [k // 2 for k in kernels]
    assert [stage.reach.stride for stage in decoder.stages] == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (3, 1), (3, 5), (5, 2)])
def test_a_stage_reads_half_a_kernel_however_it_begins(kernel, stride, bilinear):
    stage = UpStage(3, 4, kernel, stride, "sin", bilinear)
    assert tuple(stage.reach) == (kernel // 2, stride)


@pytest.mark.parametrize("lower", [1, 12, 40])
@pytest.mark.parametrize("multiple", [1, 2, 8, 16])
def test_widths_are_multiples_that_together_follow_the_chain(multiple, lower):
    """The rounding of one stage is made up for by the next, as far as the least width allows."""
    config = replace(Config().model, width_multiple=multiple, lower_width=lower)
    for width in range(lower + 60, lower + 160):
        widths, chain = stage_widths(width, config), stage_widths(width, replace(config, width_multiple=1))
        assert all(channels % multiple == 0 for channels in widths) and min(widths[1:]) >= lower
        if multiple == 1:
            assert widths == chain
        elif min(chain[1:]) >= lower + multiple:
            assert abs(sum(widths) - sum(chain)) <= multiple / 2


def shuffled(x: torch.Tensor, stride: int) -> torch.Tensor:
    """torch's pixel shuffle of channels in the order (s, s, C')."""
    return F.pixel_shuffle(x.unflatten(1, (stride**2, -1)).transpose(1, 2).flatten(1, 2), stride)


@pytest.mark.parametrize("bilinear", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_stage_is_convolution_shuffle_activation(act, bilinear, stride, kernel):
    stage = UpStage(3, 4, kernel, stride, act, bilinear)
    x = torch.randn(2, 3, 5, 6)
    y = shuffled(F.conv2d(x, stage.conv.weight, stage.conv.bias, padding=kernel // 2), stride)
    expected = torch.sin(y) if act == "sin" else F.gelu(y)
    assert torch.allclose(stage(x), expected, atol=1e-6)


def interpolated(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """torch's own upsampling: bilinear, or nearest for kernels of 1."""
    if kernel == 1:
        return F.interpolate(x, scale_factor=stride, mode="nearest")
    return F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_taps_before_a_shuffle_upsample_as_torch_does(kernel, stride):
    """Away from the border; at the border as if the map were surrounded by zeros."""
    x = torch.randn(2, 1, 5, 6)
    taps = upsampling_taps(kernel, stride)
    assert taps.shape == (stride**2, kernel, kernel)
    ours = F.pixel_shuffle(F.conv2d(x, taps[:, None], padding=kernel // 2), stride)
    inner = ..., slice(stride, -stride), slice(stride, -stride)
    assert torch.allclose(ours[inner], interpolated(x, kernel, stride)[inner], atol=1e-6)
    assert torch.allclose(ours, interpolated(F.pad(x, [1] * 4), kernel, stride)[inner], atol=1e-6)
    if kernel == 1:
        assert torch.equal(ours, interpolated(x, kernel, stride))


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_taps_are_shares_and_mirror_images(kernel, stride):
    taps = upsampling_taps(kernel, stride)
    assert taps.min() >= 0 and torch.allclose(taps.sum((1, 2)), torch.ones(stride**2))
    phases = taps.unflatten(0, (stride, stride))
    assert torch.allclose(phases, phases.flip(0, 2)) and torch.allclose(phases, phases.flip(1, 3))
    assert torch.equal(phases, phases.transpose(0, 1).transpose(2, 3))


def seeded_pair(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[UpStage, UpStage]:
    """(plain, begun near a bilinear upsampling), of one seed."""
    pair = []
    for bilinear in (False, True):
        torch.manual_seed(3)
        pair.append(UpStage(inputs, outputs, kernel, stride, "sin", bilinear))
    return tuple(pair)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_stage_without_its_own_weights_upsamples_a_1x1_convolution(kernel, stride):
    """What the initialisation adds: one mix of the channels, the same for every pixel of a cell."""
    plain, begun = seeded_pair(6, 4, kernel, stride)
    assert torch.equal(plain.conv.bias, begun.conv.bias)
    added = begun.conv.weight.detach() - plain.conv.weight.detach()
    mix = added.sum((2, 3)).unflatten(0, (stride**2, 4))
    assert torch.allclose(mix, mix[:1].expand_as(mix), atol=1e-6)
    with torch.no_grad():
        begun.conv.weight.copy_(added)
        begun.conv.bias.zero_()
    x = torch.randn(2, 6, 5, 7)
    inner = ..., slice(stride, -stride), slice(stride, -stride)
    expected = torch.sin(interpolated(F.conv2d(x, mix[0, :, :, None, None]), kernel, stride))
    assert torch.allclose(begun(x)[inner], expected[inner], atol=1e-5)


def test_both_parts_of_the_weights_begin_as_torch_begins_a_convolution():
    """Of its own size: that of the stage, and a 1x1 one, uniform in +-1 / sqrt(inputs)."""
    inputs, outputs = 400, 30
    plain, begun = seeded_pair(inputs, outputs, 3, 2)
    torch.manual_seed(3)
    own = nn.Conv2d(inputs, outputs * 4, 3, padding=1)
    assert torch.equal(plain.conv.weight, own.weight) and torch.equal(plain.conv.bias, own.bias)
    mix = (begun.conv.weight - own.weight).sum((2, 3))[:outputs]
    bound = inputs**-0.5
    assert 0.99 * bound < mix.abs().max() < bound + 1e-5
    assert mix.std().item() == pytest.approx(bound / 3**0.5, rel=0.03) and mix.mean().abs() < 0.02 * bound


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_first_weights_are_a_leaf_that_learns(kernel):
    stage = UpStage(3, 4, kernel, 2, "sin", bilinear=True)
    assert [name for name, _ in stage.named_parameters()] == ["conv.weight", "conv.bias"]
    assert stage.conv.weight.is_leaf and stage.conv.weight.requires_grad
    stage(torch.randn(1, 3, 4, 4)).sum().backward()
    assert stage.conv.weight.grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("ks", ["0_1_5", "0_3_3"])
def test_neighbouring_pixels_start_out_alike_where_asked(make, ks):
    """Correlation of horizontal neighbours, over codes that are noise."""

    def likeness(bilinear: bool) -> float:
        fields = {"dec_strides": (2, 5), "enc_strides": (2, 5), "dec_width": 24, "times": (1, 1)}
        decoder = make(**fields, ks=ks, bilinear_init=bilinear).decoder
        with torch.no_grad():
            maps = decoder(torch.randn(4, decoder.stem.in_channels, 6, 8)).last
        maps = maps - maps.mean((0, 2, 3), keepdim=True)
        return ((maps[..., 1:] * maps[..., :-1]).mean() / maps.square().mean()).item()

    assert likeness(True) > likeness(False) + 0.15


def test_sin_of_bf16_is_rounded_once():
    x = torch.tensor([100.0, 1000.0]).bfloat16()
    expected = torch.sin(x.double()).to(torch.bfloat16)
    assert ACTIVATIONS["sin"](x).dtype == torch.bfloat16
    assert torch.equal(ACTIVATIONS["sin"](x), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_rgb_head_is_a_convolution_into_0_1(stride):
    head = RgbHead(4, stride)
    x = torch.randn(2, 4, 5, 6)
    y = shuffled(F.conv2d(x, head.conv.weight, head.conv.bias, padding=1), stride)
    assert torch.allclose(head(x), torch.sigmoid(2 * y), atol=1e-6)
    assert tuple(head.reach) == (1, stride)


@pytest.mark.parametrize("site", [1, 2, 3])
def test_the_site_is_the_output_of_its_stage(make, site):
    decoder = make(dec_strides=(2, 3, 1), enc_strides=(2, 3, 1), rgb_stride=2, clip_site=site, times=(2, 2)).decoder
    codes = torch.randn(2, decoder.stem.in_channels, 2, 3)
    x = decoder.act(decoder.stem(codes))
    outputs = [x := stage(x) for stage in decoder.stages]
    features = decoder(codes)
    assert torch.equal(features.site, outputs[site - 1]) and torch.equal(features.last, outputs[-1])
    assert decoder.site_scale == {1: 6, 2: 2, 3: 2}[site]
