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
from hnerv.model.decoder import ACTIVATIONS, RgbHead, UpStage, stage_widths, upsampling_taps

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


@given(st.sampled_from([1, 12, 40]), st.sampled_from([2, 8, 16]), st.integers(60, 160))
def test_widths_are_multiples_that_together_follow_the_chain(lower, multiple, above):
    """The rounding of one stage is made up for by the next, as far as the least width allows."""
    config = replace(Config().model, width_multiple=multiple, lower_width=lower)
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
def test_the_site_is_the_output_of_its_stage(make, site, scale):
    decoder = make(dec_strides=(2, 3, 1), enc_strides=(2, 3, 1), rgb_stride=2, clip_site=site, times=(2, 2)).decoder
    codes = torch.randn(2, decoder.stem.in_channels, 2, 3)
    x = decoder.act(decoder.stem(codes))
    outputs = [x := stage(x) for stage in decoder.stages]
    features = decoder(codes)
    assert torch.equal(features.site, outputs[site - 1]) and torch.equal(features.last, outputs[-1])
    assert decoder.site_scale == scale
