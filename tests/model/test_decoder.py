"""Stages against torch's own operators; widths and kernels against the rules of HNeRV."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hnerv.model.decoder import ACTIVATIONS, RgbHead, UpStage, stage_widths


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
    decoder = make(ks=ks, dec_strides=(2, 1, 1, 1, 1), times=(2, 2), skip=False).decoder
    assert [stage.conv.kernel_size for stage in decoder.stages] == [(k, k) for k in kernels]
    assert [stage.reach.halo for stage in decoder.stages] == [k // 2 for k in kernels]
    assert [stage.reach.stride for stage in decoder.stages] == [2, 1, 1, 1, 1]


def test_a_skip_reads_one_neighbour():
    assert UpStage(3, 4, 1, 2, "sin", skip=True).reach.halo == 1
    assert UpStage(3, 4, 1, 2, "sin", skip=False).reach.halo == 0
    assert UpStage(3, 4, 5, 2, "sin", skip=True).reach.halo == 2


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_a_stage_is_convolution_shuffle_skip_activation(act, skip, stride):
    stage = UpStage(3, 4, 3, stride, act, skip)
    x = torch.randn(2, 3, 5, 6)
    y = F.pixel_shuffle(F.conv2d(x, stage.conv.weight, stage.conv.bias, padding=1), stride)
    if skip:
        thin = F.conv2d(x, stage.skip.weight, stage.skip.bias)
        y = y + F.interpolate(thin, size=(5 * stride, 6 * stride), mode="bilinear", align_corners=False)
    expected = torch.sin(y) if act == "sin" else F.gelu(y)
    assert torch.allclose(stage(x), expected, atol=1e-6)


def test_sin_of_bf16_is_rounded_once():
    x = torch.tensor([100.0, 1000.0]).bfloat16()
    expected = torch.sin(x.double()).to(torch.bfloat16)
    assert ACTIVATIONS["sin"](x).dtype == torch.bfloat16
    assert torch.equal(ACTIVATIONS["sin"](x), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_rgb_head_is_a_convolution_into_0_1(stride):
    head = RgbHead(4, stride)
    x = torch.randn(2, 4, 5, 6)
    y = F.pixel_shuffle(F.conv2d(x, head.conv.weight, head.conv.bias, padding=1), stride)
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
