"""Frames, slices and patches: the same pixels whatever else is decoded, from no more sections than needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from hnerv.codec import Bitstream, play, play_patch
from hnerv.codec import file as file_module
from hnerv.codec.container import read_section
from hnerv.model.predict import predict


@pytest.fixture(scope="module")
def whole(coded) -> Callable[[str], np.ndarray]:
    """whole(name) -> every frame (N, H, W, 3) uint8."""
    made: dict[str, np.ndarray] = {}

    def build(name: str) -> np.ndarray:
        if name not in made:
            stream = Bitstream(coded(name))
            made[name] = np.stack(list(play(stream.model(), range(stream.scene.frames))))
        return made[name]

    return build


@pytest.mark.parametrize("name", ["grid", "encoder", "pe", "long"])
def test_what_plays_is_what_an_evaluation_rounds(coded, whole, name):
    stream = Bitstream(coded(name))
    model, pictures = stream.model(), whole(name)
    assert pictures.shape == (stream.scene.frames, 32, 64, 3) and pictures.dtype == np.uint8
    positions = torch.randperm(stream.scene.frames, generator=torch.Generator().manual_seed(0))
    for where in positions.split(4):
        rgb = predict(model, where.float()).rgb
        by_hand = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        assert np.array_equal(by_hand.numpy(), pictures[where])


@pytest.mark.parametrize(
    "frames", [range(3, 9), range(7, 8), range(10, 1, -3), range(11, -1, -1), range(0, 12, 5), range(11, 12)], ids=str
)
@pytest.mark.parametrize("name", ["grid", "encoder", "pe", "long"])
def test_a_slice_of_frames_is_cut_from_the_whole(coded, whole, name, frames):
    span = range(min(frames), max(frames) + 1)
    model = Bitstream(coded(name)).model(("rgb_head",), span)
    assert np.array_equal(np.stack(list(play(model, frames))), whole(name)[list(frames)])


@pytest.mark.parametrize("frame", range(40))
def test_any_frame_alone_reads_only_its_stretches(coded, whole, monkeypatch, frame):
    """40, 20 and 10 knots: in stretches of 16, a frame needs one or two of each level."""
    read = []
    monkeypatch.setattr(file_module, "read_section", lambda c, name: read.append(name) or read_section(c, name))
    stream = Bitstream(coded("long"))
    model = stream.model(("rgb_head",), range(frame, frame + 1))
    assert np.array_equal(next(play(model, range(frame, frame + 1))), whole("long")[frame])
    assert "clip_head" not in read and "rgb_head" in read
    for level, knots in enumerate((40, 20, 10)):
        place = frame * (knots - 1) / 39
        needed = {int(place) // 16, min(int(place + 0.999999), knots - 1) // 16}
        found = {int(name.split("[")[1].split(":")[0]) // 16 for name in read if f"levels.{level}[" in name}
        assert needed <= found and len(found) <= 2 and (knots > 16 or found == {0})
        if place % 16 < 14 and place % 16 > 1:
            assert found == needed


@pytest.mark.parametrize("name", ["grid", "encoder", "pe", "long"])
def test_patches_are_cut_from_the_frames(coded, whole, name):
    stream = Bitstream(coded(name))
    model, grid = stream.model(("rgb_head",)), stream.scene.grid
    frames = range(stream.scene.frames)
    for patch in range(grid.patches):
        (top, left), (height, width) = grid.origin_of(patch), grid.patch_size
        found = np.stack(list(play_patch(model, frames, patch))).astype(int)
        cut = whole(name)[:, top : top + height, left : left + width]
        # a convolution over fewer pixels may add up in another order, and a pixel round the other way
        assert np.abs(found - cut).max() <= 1 and (found != cut).mean() < 1e-3


def test_memory_does_not_grow_with_the_video(coded):
    """Frames come four at a time: the first is there when no more have been computed."""
    stream = Bitstream(coded("long"))
    model = stream.model()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    pictures = play(model, range(40))
    for count in range(1, 13):
        next(pictures)
        assert len(calls) == -(-count // 4)
