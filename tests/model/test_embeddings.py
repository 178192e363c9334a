"""Grids against hand-made interpolation, positional codes against `math`, stored codes against the encoder."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnerv.config import Config
from hnerv.data.video import data_split
from hnerv.model import Scene
from hnerv.model.embeddings import (
    EMBEDDINGS,
    Embedding,
    GridEmbedding,
    interpolate_knots,
    knot_counts,
    widest_gap,
)

CONFIG = Config().replaced({"dec_strides": (2, 2), "embed_dim": 5, "grid_levels": 3}).model


def scene(frames: int, train: tuple[int, ...]) -> Scene:
    return Scene(frames, 4, 4, 1, 1, 24.0, train, (), 0)


def test_interpolation_is_linear_between_knots():
    knots = torch.tensor([[0.0, 10], [2, 20], [3, 40], [-1, 0]])
    positions = torch.tensor([0, 0.25, 0.5, 1, 1.75, 2, 2.5, 3])
    expected = torch.tensor([[0, 10], [0.5, 12.5], [1, 15], [2, 20], [2.75, 35], [3, 40], [1, 20], [-1, 0]])
    assert torch.allclose(interpolate_knots(knots, positions), expected)
    assert torch.equal(interpolate_knots(knots, torch.arange(4.0)), knots)
    assert torch.equal(interpolate_knots(knots[:1], torch.zeros(2)), knots[:1].expand(2, -1))


@pytest.mark.parametrize("levels", [1, 3, 7])
def test_a_grid_returns_its_knots_and_lines_between_them(small, scene_of, levels):
    config = small(grid_levels=levels, embed_dim=5, grid_knots=9)
    embedding = GridEmbedding(config.model, scene_of(config, (2, 1), frames=33, train=tuple(range(33)), val=()))
    times = torch.tensor([0.0, 1.0, 4.0, 7.3, 16.0, 31.5, 32.0])
    codes = embedding(times)
    assert codes.shape == (7, 1, 5, *embedding.cells)
    assert [len(level) for level in embedding.levels] == [9, 5, 3, 2, 2][:levels]
    parts = codes[:, 0].split([level.shape[1] for level in embedding.levels], dim=1)
    for level, part in zip(embedding.levels, parts, strict=True):
        assert torch.equal(part[0], level[0]) and torch.equal(part[-1], level[-1])
        assert torch.allclose(part, interpolate_knots(level, times / 32 * (len(level) - 1)), atol=1e-6)


@st.composite
def splits(draw) -> tuple[int, tuple[int, ...]]:
    """(frames, training frames): any set of them, or one of --data-split."""
    count = draw(st.integers(1, 140))
    if draw(st.booleans()):
        return count, tuple(sorted(draw(st.sets(st.integers(0, count - 1), min_size=1))))
    split = draw(st.sampled_from(["9_9_10", "6_6_10", "1_1_2", "1_1_1", "1_1_7", "2_2_200"]))
    return count, tuple(data_split(count, split, draw(st.sampled_from([None, 0, 1]))).train.tolist())


@given(splits(), st.sampled_from([0, 2, 7, 40]))
def test_every_knot_is_trained(split, knots):
    """By more than rounding, whatever the split, its ends included; and no level has less knots than it could."""
    frames, train = split
    embedding = GridEmbedding(dataclasses.replace(CONFIG, grid_knots=knots), scene(frames, train))
    embedding(torch.tensor(train)).sum().backward()
    assert all((level.grad.flatten(1)[:, 0] > 1e-4).all() for level in embedding.levels)
    gap = max((b - a for a, b in zip(train, train[1:], strict=False)), default=1)
    finest, *coarser = knot_counts(CONFIG, scene(frames, train))
    assert len(embedding.levels[0]) == min(knots or finest, finest)
    assert widest_gap(train, frames) >= gap and (finest <= 2 or (frames - 1) / (finest - 1) >= gap)
    assert [max(min(2, len(train)), math.ceil(finest / 2**i)) for i in (1, 2)] == coarser


@pytest.mark.parametrize(
    ("train", "frames", "gap"),
    [((0, 1, 2, 3), 4, 1), ((0, 2, 4), 6, 2), ((0, 1, 2), 7, 5), ((3, 4, 9), 10, 5), ((6, 7), 8, 7), ((0,), 1, 1)],
)
def test_gap_table(train, frames, gap):
    """An untrained end counts one more than its distance, so that the knot there is within every frame's reach."""
    assert widest_gap(train, frames) == gap


@pytest.mark.parametrize(
    ("count", "split", "knots"), [(132, "9_9_10", 66), (132, "6_6_10", 27), (132, "1_1_1", 132), (10, "9_9_10", 5)]
)
def test_knots_of_bunny(count, split, knots):
    assert knot_counts(CONFIG, scene(count, tuple(data_split(count, split, None).train.tolist())))[0] == knots


def test_channels_are_shared_out_over_the_levels(small, scene_of):
    config = small(embed_dim=16, grid_levels=3, grid_knots=8)
    embedding = GridEmbedding(config.model, scene_of(config, frames=20))
    assert [tuple(level.shape[:2]) for level in embedding.levels] == [(8, 6), (4, 5), (2, 5)]


def frame_at(positions: torch.Tensor) -> torch.Tensor:
    """Frames of 8x16 that differ from position to position."""
    return torch.stack([torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(int(p))) for p in positions])


@pytest.fixture
def encoder(make):
    """19 training frames of 40: 1, 3, 5 ... 37; one more than a chunk of `refresh`."""
    positions = tuple(range(1, 38, 2))
    return make(embedding="encoder", times=(2, 4), frames=40, scene={"train": positions, "val": ()}).embedding


def test_refresh_stores_the_codes_of_each_training_frame(encoder):
    positions = torch.tensor(range(1, 38, 2))
    encoder.refresh(frame_at)
    expected = torch.cat([encoder.encoder(frame_at(p[None])) for p in positions])
    assert torch.allclose(encoder.codes, expected, atol=1e-6) and not encoder.codes.requires_grad
    assert torch.equal(encoder(positions.float())[:, 0], encoder.codes)
    assert torch.allclose(encoder(positions, frame_at(positions))[:, 0], encoder.codes, atol=1e-6)


@pytest.mark.parametrize("train", [tuple(range(1, 18, 2)), (2, 3, 11), (7,)])
def test_stored_codes_are_interpolated_and_held_at_the_ends(make, train):
    embedding = make(embedding="encoder", frames=20, scene={"train": train, "val": ()}).embedding
    times = torch.tensor([0.0, 0.9, 2.0, 2.25, 5.0, 7.0, 11.0, 16.5, 19.0])
    flat = embedding(times)[:, 0].flatten(1)
    for found, codes in zip(flat.T, embedding.codes.flatten(1).T, strict=True):
        expected = torch.tensor([hand_interpolated(t, train, codes.tolist()) for t in times.tolist()])
        assert torch.allclose(found, expected, atol=1e-6)


def hand_interpolated(time: float, train: tuple[int, ...], values: list[float]) -> float:
    for (a, left), (b, right) in zip(*(list(zip(train, values, strict=True))[i:] for i in (0, 1)), strict=False):
        if a <= time <= b:
            return left + (right - left) * (time - a) / (b - a)
    return values[0] if time < train[0] else values[-1]


@pytest.mark.parametrize(("pe", "base", "count"), [("1.25_80", 1.25, 80), ("2_5", 2, 5), ("1.05_80", 1.05, 80)])
def test_positional_encoding_is_the_formula(make, pe, base, count):
    embedding = make(embedding="pe", pe=pe).embedding
    where = [[0.0, 0.25, 0.75], [0.1, 0.5, 1.0]]
    angles = [[[math.pi * base**i * value for i in range(count)] for value in row] for row in where]
    expected = torch.tensor([[f(a) for v in row for f in (math.sin, math.cos) for a in v] for row in angles]).double()
    assert torch.allclose(embedding.encode(torch.tensor(where, dtype=torch.float64)), expected, atol=1e-6)
    bound = 3e-7 * math.pi * base ** (count - 1) + 1e-6
    assert bound > 1 or (embedding.encode(torch.tensor(where)) - expected).abs().max() < bound


def test_positional_codes_are_of_the_centres_of_frames_and_patches(make, monkeypatch):
    embedding = make(embedding="pe", grid="2x3", frames=4).embedding
    seen, encode = [], embedding.encode
    monkeypatch.setattr(embedding, "encode", lambda where: seen.append(where) or encode(where))
    codes = embedding(torch.tensor([0.0, 3.0]))
    rows = [[(t + 0.5) / 4, (y + 0.5) / 2, (x + 0.5) / 3] for t in (0, 3) for y in range(2) for x in range(3)]
    assert torch.allclose(seen[0], torch.tensor(rows)) and torch.pdist(codes.flatten(0, 1).flatten(1)).min() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding(torch.tensor([0.0, 3.0])), codes)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_every_embedding_keeps_the_contract(make, name):
    model = make(embedding=name, grid="2x3", times=(1, 1))
    embedding, grid = model.embedding, model.scene.grid
    embedding.refresh(lambda positions: torch.rand(len(positions), 3, grid.height, grid.width))
    assert embedding.canvases in (1, grid.patches)
    side = (grid.height, grid.width) if embedding.canvases == 1 else grid.patch_size
    for times in (torch.tensor([0, 3]), torch.tensor([0.0, 2.5]), torch.tensor([4.0, 0.5])):
        codes = embedding(times)
        assert codes.shape == (2, embedding.canvases, embedding.channels, side[0] // 4, side[1] // 4)
        assert codes.isfinite().all()
    before = {key: value.clone() for key, value in embedding.state_dict().items() if not key.startswith("encoder.")}
    embedding.discard_encoder()
    after = embedding.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert {name for name, _ in embedding.named_parameters()} == set(after) and embedding.at_any_time
    assert torch.equal(embedding(torch.tensor([4.0, 0.5])), codes)
    with pytest.raises(TypeError, match="abstract"):
        Embedding()


def check_slices(embedding, tensors: dict[str, torch.Tensor], spans: list[range]) -> None:
    """With everything set to 0 that `slices` does not name, frames have the same codes, bit for bit."""
    embedding.requires_grad_(False)
    full = {name: tensor.clone() for name, tensor in tensors.items()}
    for span in spans:
        times = torch.arange(span.start, span.stop).float()
        for name, tensor in tensors.items():
            tensor.copy_(full[name])
        expected = embedding(times)
        for name, tensor in tensors.items():
            named = embedding.slices(name, span)
            assert 0 <= named.start < named.stop <= len(tensor)
            tensor.zero_()[named.start : named.stop] = full[name][named.start : named.stop]
        assert torch.equal(embedding(times), expected)


@pytest.mark.parametrize(("frames", "knots"), [(2, 2), (5, 4), (24, 24), (39, 39), (40, 9), (58, 17), (97, 49)])
def test_a_grid_names_the_knots_that_frames_are_made_of(small, scene_of, frames, knots):
    """Also for times that fall on a knot but for the rounding of fp32; one more on each side at most."""
    config = small(grid_levels=2, embed_dim=2, grid_knots=knots)
    embedding = GridEmbedding(config.model, scene_of(config, frames=frames, train=tuple(range(frames)), val=()))
    spans = [range(t, t + 1) for t in range(frames)] + [range(t, min(t + 7, frames)) for t in range(0, frames, 5)]
    check_slices(embedding, {f"levels.{i}": level for i, level in enumerate(embedding.levels)}, spans)
    for span in spans:
        assert len(embedding.slices("levels.0", span)) <= len(span) * (knots - 1) / (frames - 1) + 5


@pytest.mark.parametrize("train", [(0, 1, 2, 3), (1, 4, 5, 9), (3,), (0, 7)])
def test_an_encoder_names_the_codes_that_frames_are_made_of(make, train):
    embedding = make(embedding="encoder", frames=11, scene={"train": train, "val": ()}).embedding
    embedding.discard_encoder()
    spans = [range(first, stop) for first in range(11) for stop in range(first + 1, 12)]
    check_slices(embedding, {"codes": embedding.codes}, spans)
    for span in spans:
        inside = {i for i, position in enumerate(train) if position in span}
        assert (
            inside <= set(embedding.slices("codes", span)) and len(embedding.slices("codes", span)) <= len(inside) + 2
        )
