"""The patch grid against brute-force loops, crops against hand tables, halo windows against the gradients of a net."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hnerv.errors import UserError
from hnerv.geometry import PatchGrid, Reach, Window, halo_windows, parse_grid, parse_size, plan_crop


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


CHANGE = "--dec-strides or --grid"
LARGEST = "pass a smaller one, or --crop '' for the largest that fits"


@pytest.mark.parametrize(("text", "size"), [("640x1280", (640, 1280)), ("1x1", (1, 1)), ("2x40", (2, 40))])
def test_sizes_are_rows_first(text, size):
    assert parse_size(text, "--crop") == parse_grid(text) == size


@pytest.mark.parametrize("text", ["", "640", "640x", "x640", "0x4", "-2x4", "2.5x4", "2X4", "2x4x3", "2 x 4", "2x4\n"])
def test_other_texts_are_refused_with_their_flag(text):
    assert error_of(parse_size, text, "--crop") == f"--crop {text!r} must be two integers HEIGHTxWIDTH, as in 640x1280"
    assert error_of(parse_grid, text) == f"--grid {text!r} must be two integers ROWSxCOLUMNS, as in 2x4"


sides = st.integers(1, 5)


@given(sides, sides, sides, sides, st.sampled_from([(), (2,), (2, 3)]), st.integers(1, 3))
def test_the_grid_is_a_loop_over_patches(rows, cols, h, w, lead, scale):
    grid = PatchGrid(rows * h, cols * w, rows, cols)
    frames = torch.rand(*lead, 3, grid.height * scale, grid.width * scale)
    patches = grid.split(frames)
    assert patches.shape == (*lead, grid.patches, 3, h * scale, w * scale) and grid.patch_size == (h, w)
    for number in range(grid.patches):
        row, col = grid.coords_of(number)
        assert grid.index_of(row, col) == number == row * cols + col and grid.origin_of(number) == (row * h, col * w)
        expected = Window(row * h, col * w, h, w).scaled(scale).cut(frames)
        assert torch.equal(patches[..., number, :, :, :], expected)
    assert torch.equal(grid.merge(patches), frames)
    assert torch.allclose(grid.means(frames), patches.mean((-3, -2, -1)), atol=1e-6)


def test_a_grid_that_does_not_divide_is_refused():
    expected = "a grid of 3x4 does not divide frames of 640x1280: change --grid or --crop"
    assert error_of(PatchGrid, 640, 1280, 3, 4) == expected
    assert "a grid of 2x3 does not divide" in error_of(PatchGrid, 640, 1280, 2, 3)


@pytest.mark.parametrize(
    ("source", "crop", "resize", "multiple", "plan"),
    [
        ((720, 1280), "", "", (320, 320), (40, 0, 640, 1280, 640, 1280)),
        ((720, 1280), "", "", (1, 1), (0, 0, 720, 1280, 720, 1280)),
        ((721, 1283), "", "", (4, 4), (0, 1, 720, 1280, 720, 1280)),
        ((720, 1280), "640x1280", "", (320, 320), (40, 0, 640, 1280, 640, 1280)),
        ((720, 1280), "640x1280", "160x320", (80, 80), (40, 0, 640, 1280, 160, 320)),
        ((720, 1280), "", "160x320", (80, 80), (40, 0, 640, 1280, 160, 320)),
        ((720, 1280), "", "180x320", (20, 20), (0, 0, 720, 1280, 180, 320)),
        ((720, 1280), "", "320x320", (80, 80), (0, 280, 720, 720, 320, 320)),
        ((100, 300), "90x200", "320x320", (80, 80), (5, 50, 90, 200, 320, 320)),
        ((10, 30), "", "160x320", (80, 80), (0, 5, 10, 20, 160, 320)),
        ((10, 30), "", "31x37", (1, 1), (0, 9, 10, 11, 31, 37)),
    ],
)
def test_crop_table(source, crop, resize, multiple, plan):
    assert tuple(plan_crop(source, crop, resize, multiple)) == plan


@given(st.integers(64, 1200), st.integers(64, 2000), st.sampled_from(["", "32x64", "48x32", "62x94"]))
def test_crops_lie_inside_and_in_the_centre(height, width, resize):
    multiple = (1, 1) if resize == "62x94" else (16, 16)
    plan = plan_crop((height, width), "", resize, multiple)
    below, right = height - plan.top - plan.height, width - plan.left - plan.width
    assert min(plan.top, plan.left) >= 0 and below - plan.top in (0, 1) and right - plan.left in (0, 1)
    assert plan.out_height % multiple[0] == 0 and plan.out_width % multiple[1] == 0
    if resize:
        assert (plan.out_height, plan.out_width) == parse_size(resize, "")
        assert plan.height * plan.out_width == plan.width * plan.out_height
    else:
        assert height - plan.height < multiple[0] and width - plan.width < multiple[1]


REQUIRED = "which patch grid and strides require: change"
SMALLER = "the least that patch grid and strides allow: pass --resize, or reduce --dec-strides or --grid"


@pytest.mark.parametrize(
    ("source", "crop", "resize", "multiple", "message"),
    [
        ((100, 640), "", "", 320, f"frames of 100x640 are smaller than 320x320, {SMALLER}"),
        (
            (720, 1280),
            "648x1280",
            "",
            320,
            f"--crop 648x1280 is not a multiple of 320x320, {REQUIRED} --crop, {CHANGE}",
        ),
        ((9, 9), "", "160x330", 80, f"--resize 160x330 is not a multiple of 80x80, {REQUIRED} --resize, {CHANGE}"),
        ((100, 100), "640x1280", "", 320, f"--crop 640x1280 does not fit into frames of 100x100: {LARGEST}"),
        ((720, 1280), "100x1281", "160x320", 80, f"--crop 100x1281 does not fit into frames of 720x1280: {LARGEST}"),
        ((9, 9), "9", "", 1, "--crop '9' must be two integers HEIGHTxWIDTH, as in 640x1280"),
        ((9, 9), "", "9x", 1, "--resize '9x' must be two integers HEIGHTxWIDTH, as in 640x1280"),
    ],
)
def test_crop_errors(source, crop, resize, multiple, message):
    assert error_of(plan_crop, source, crop, resize, (multiple, multiple)) == message


def test_a_window_cuts_moves_and_grows_like_slices():
    x = torch.arange(2 * 12 * 20).reshape(2, 12, 20)
    outer, inner = Window(2, 3, 8, 12), Window(4, 6, 3, 5)
    assert torch.equal(inner.cut(x), x[:, 4:7, 6:11])
    assert torch.equal(inner.within(outer).cut(outer.cut(x)), inner.cut(x))
    grown = x.repeat_interleave(3, -2).repeat_interleave(3, -1)
    assert torch.equal(inner.scaled(3).cut(grown), inner.cut(x).repeat_interleave(3, -2).repeat_interleave(3, -1))


def footprints(target: Window, canvas: tuple[int, int], stages: list[Reach]) -> list[Window]:
    """What a pixel-shuffle decoder with positive weights reads of each stage's input: where gradients are not 0."""
    maps = [torch.ones(1, 1, *canvas, requires_grad=True)]
    for halo, stride in stages:
        conv = nn.Conv2d(1, stride**2, 2 * halo + 1, padding=halo)
        nn.init.constant_(conv.weight, 0.1)
        maps.append(nn.functional.pixel_shuffle(conv(maps[-1]), stride))
    gradients = torch.autograd.grad(target.cut(maps[-1]).sum(), maps)
    return [box(gradient[0, 0] != 0) for gradient in gradients]


def box(mask: torch.Tensor) -> Window:
    rows, cols = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    assert mask.sum() == len(rows) * len(cols)
    return Window(rows[0], cols[0], len(rows), len(cols))


@pytest.mark.parametrize(
    ("canvas", "grid", "stages"),
    [
        ((2, 4), (2, 4), [(0, 5), (1, 2), (2, 2), (1, 1)]),
        ((2, 4), (4, 8), [(1, 2), (1, 2), (1, 1)]),
        ((2, 2), (3, 3), [(1, 3), (1, 2), (1, 1)]),
        ((3, 3), (3, 3), [(0, 2), (2, 2)]),
        ((4, 6), (2, 2), [(1, 1), (2, 2), (1, 3)]),
        ((1, 1), (4, 4), [(1, 2), (1, 2), (1, 2)]),
        ((5, 5), (1, 1), [(3, 2)]),
        ((6, 6), (12, 12), [(0, 2), (0, 2)]),
    ],
)
def test_halo_windows_are_what_a_convolution_stack_reads(canvas, grid, stages):
    """Not a cell too few (the pixels would differ) and not one too many (the arithmetic would be wasted)."""
    stages = [Reach(*stage) for stage in stages]
    scale = math.prod(stage.stride for stage in stages)
    sides = PatchGrid(canvas[0] * scale, canvas[1] * scale, *grid)
    for number in range(sides.patches):
        target = Window(*sides.origin_of(number), *sides.patch_size)
        windows = halo_windows(target, canvas, stages)
        assert windows[-1] == target
        assert windows == footprints(target, canvas, stages)
