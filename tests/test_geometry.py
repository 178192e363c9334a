"""The patch grid against brute-force loops, crops against hand tables, halo windows against the gradients of a net."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hnerv.errors import UserError
from hnerv.geometry import PatchGrid, Reach, Window, halo_windows, parse_grid, parse_size, plan_crop

GRIDS = [(1, 1), (2, 4), (4, 8), (3, 3), (1, 5), (7, 2)]


def said(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


LARGEST = "pass a smaller one, or --crop '' for the largest that fits"


@pytest.mark.parametrize(("text", "size"), [("640x1280", (640, 1280)), ("1x1", (1, 1)), ("2x40", (2, 40))])
def test_sizes_are_rows_first(text, size):
    assert parse_size(text, "--crop") == size


@pytest.mark.parametrize(
    "text", ["", "640", "640x", "x640", "0x4", "4x0", "-2x4", "2.5x4", "2X4", "2x4x3", "2 x 4", "2x4\n"]
)
def test_what_is_no_size_is_named_with_its_flag(text):
    assert said(parse_size, text, "--crop") == f"--crop {text!r} must be two integers HEIGHTxWIDTH, as in 640x1280"
    assert said(parse_grid, text) == f"--grid {text!r} must be two integers ROWSxCOLUMNS, as in 2x4"


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
@pytest.mark.parametrize("cell", [(1, 1), (3, 2)])
def test_split_is_a_loop_over_patches_and_merge_its_inverse(grid, lead, cell):
    rows, cols = grid
    sides = PatchGrid(rows * cell[0], cols * cell[1], rows, cols)
    frames = torch.arange(math.prod(lead) * 3 * sides.height * sides.width).reshape(*lead, 3, sides.height, sides.width)
    patches = sides.split(frames)
    h, w = sides.patch_size
    assert patches.shape == (*lead, sides.patches, 3, h, w)
    for number in range(sides.patches):
        top, left = sides.origin_of(number)
        assert torch.equal(patches[..., number, :, :, :], frames[..., top : top + h, left : left + w])
    assert torch.equal(sides.merge(patches), frames)
    assert torch.equal(sides.split(sides.merge(patches)), patches)


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_split_works_at_every_scale(scale):
    grid = PatchGrid(20, 40, 2, 4)
    maps = torch.rand(2, 7, 4 * scale, 8 * scale)
    assert grid.split(maps).shape == (2, 8, 7, 2 * scale, 2 * scale)
    assert torch.equal(grid.merge(grid.split(maps)), maps)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_means_are_those_of_the_patches(grid, lead):
    sides = PatchGrid(grid[0] * 3, grid[1] * 2, *grid)
    maps = torch.rand(*lead, 5, sides.height, sides.width)
    expected = sides.split(maps).mean((-3, -2, -1))
    assert expected.shape == (*lead, sides.patches)
    assert torch.allclose(sides.means(maps), expected, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_patches_are_numbered_row_by_row(grid):
    sides = PatchGrid(grid[0] * 6, grid[1] * 4, *grid)
    places = [(row, col) for row in range(grid[0]) for col in range(grid[1])]
    assert sides.patches == len(places)
    for number, (row, col) in enumerate(places):
        assert sides.coords_of(number) == (row, col)
        assert sides.index_of(row, col) == number
        assert sides.origin_of(number) == (row * 6, col * 4)


def test_a_grid_that_does_not_divide_is_refused():
    expected = "a grid of 3x4 does not divide frames of 640x1280: change --grid or --crop"
    assert said(PatchGrid, 640, 1280, 3, 4) == expected
    assert "a grid of 2x3 does not divide" in said(PatchGrid, 640, 1280, 2, 3)


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


@pytest.mark.parametrize("source", [(64, 64), (65, 97), (479, 641), (1080, 1920)])
@pytest.mark.parametrize("resize", ["", "32x64", "48x32", "62x94"])
def test_crops_lie_inside_and_in_the_centre(source, resize):
    multiple = (1, 1) if resize == "62x94" else (16, 16)
    plan = plan_crop(source, "", resize, multiple)
    below, right = source[0] - plan.top - plan.height, source[1] - plan.left - plan.width
    assert min(plan.top, plan.left, below, right) >= 0
    assert below - plan.top in (0, 1) and right - plan.left in (0, 1)
    assert plan.out_height % multiple[0] == 0 and plan.out_width % multiple[1] == 0
    if resize:
        assert (plan.out_height, plan.out_width) == parse_size(resize, "")
        assert plan.height * plan.out_width == plan.width * plan.out_height
    else:
        assert source[0] - plan.height < multiple[0] and source[1] - plan.width < multiple[1]


@pytest.mark.parametrize(
    ("source", "crop", "resize", "multiple", "message"),
    [
        (
            (100, 640), "", "", (320, 320),
            "frames of 100x640 are smaller than 320x320, the least that patch grid and strides allow: pass "
            "--resize, or reduce --dec-strides or --grid",
        ),
        (
            (720, 1280), "648x1280", "", (320, 320),
            "--crop 648x1280 is not a multiple of 320x320, which patch grid and strides require: change --crop, "
            "--dec-strides or --grid",
        ),
        (
            (720, 1280), "", "160x330", (80, 80),
            "--resize 160x330 is not a multiple of 80x80, which patch grid and strides require: change --resize, "
            "--dec-strides or --grid",
        ),
        (
            (100, 100), "640x1280", "", (320, 320),
            "--crop 640x1280 does not fit into frames of 100x100: " + LARGEST,
        ),
        (
            (720, 1280), "100x1281", "160x320", (80, 80),
            "--crop 100x1281 does not fit into frames of 720x1280: " + LARGEST,
        ),
        ((9, 9), "9", "", (1, 1), "--crop '9' must be two integers HEIGHTxWIDTH, as in 640x1280"),
        ((9, 9), "", "9x", (1, 1), "--resize '9x' must be two integers HEIGHTxWIDTH, as in 640x1280"),
    ],
)  # fmt: skip
def test_crop_errors(source, crop, resize, multiple, message):
    assert said(plan_crop, source, crop, resize, multiple) == message


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
