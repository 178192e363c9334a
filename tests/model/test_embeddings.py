"""Grids against hand-made interpolation, positional codes against `math`, stored codes against the encoder."""

from __future__ import annotations

import math
import random

import pytest
import torch

from hnerv.data.video import data_split
from hnerv.model.embeddings import EMBEDDINGS, GridEmbedding, interpolate_knots, knot_counts, widest_gap

SPLITS = ["9_9_10", "6_6_10", "1_1_2", "1_1_1", "1_1_7", "1_1_200", "2_2_200"]
COUNTS = [1, 2, 3, 4, 5, 8, 9, 10, 11, 17, 20, 30, 33, 119, 132]


def test_interpolation_is_linear_between_knots():
    knots = torch.tensor([[0.0, 10], [2, 20], [3, 40], [-1, 0]])
    places = torch.tensor([0, 0.25, 0.5, 1, 1.75, 2, 2.5, 3])
    expected = torch.tensor([[0, 10], [0.5, 12.5], [1, 15], [2, 20], [2.75, 35], [3, 40], [1, 20], [-1, 0]])
    assert torch.allclose(interpolate_knots(knots, places), expected)
    assert torch.equal(interpolate_knots(knots, torch.arange(4.0)), knots)
    assert torch.equal(interpolate_knots(knots[:1], torch.zeros(2)), knots[:1].expand(2, -1))


@pytest.mark.parametrize("levels", [1, 2, 3, 7])
def test_a_grid_returns_its_knots_and_lines_between_them(small, scene_of, levels):
    config = small(grid_levels=levels, embed_dim=5, grid_knots=9)
    scene = scene_of(config, (2, 1), frames=33, train=tuple(range(33)), val=())
    embedding = GridEmbedding(config.model, scene)
    times = torch.tensor([0.0, 1.0, 4.0, 7.3, 16.0, 31.5, 32.0])
    codes = embedding(times)
    assert codes.shape == (7, 1, 5, scene.height // 4, scene.width // 4)
    assert [len(level) for level in embedding.levels] == [9, 5, 3, 2, 2][:levels]
    first = 0
    for level in embedding.levels:
        part = codes[:, 0, first : first + level.shape[1]]
        first += level.shape[1]
        assert torch.equal(part[0], level[0]) and torch.equal(part[-1], level[-1])
        knots = torch.linspace(0, 32, len(level))
        assert torch.allclose(embedding(knots)[:, 0, first - level.shape[1] : first], level, atol=1e-6)
        for time, code in zip(times.tolist(), part, strict=True):
            share = time / 32 * (len(level) - 1)
            low = min(int(share), len(level) - 2)
            assert torch.allclose(code, level[low] + (share - low) * (level[low + 1] - level[low]), atol=1e-6)
    assert first == 5


def split_scene(scene_of, config, count: int, split: str, shuffle: int | None = None):
    parts = data_split(count, split, shuffle)
    return scene_of(config, frames=count, train=tuple(parts.train.tolist()), val=tuple(parts.val.tolist()))


def knots_without_gradient(config, scene) -> list[tuple[int, int]]:
    """(level, knot) pairs that no training frame moves by more than rounding."""
    embedding = GridEmbedding(config.model, scene)
    embedding(torch.tensor(scene.train)).sum().backward()
    weights = [level.grad.flatten(1)[:, 0] for level in embedding.levels]
    return [(i, k) for i, level in enumerate(weights) for k in range(len(level)) if level[k] < 1e-4]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("count", COUNTS)
def test_every_knot_is_trained(small, scene_of, split, count):
    config = small(grid_levels=3)
    scene = split_scene(scene_of, config, count, split)
    assert knots_without_gradient(config, scene) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_knot_is_trained_when_frames_are_shuffled(small, scene_of, seed):
    config = small(grid_levels=3)
    draw = random.Random(seed)
    scene = split_scene(scene_of, config, draw.randrange(2, 60), draw.choice(SPLITS), shuffle=seed)
    assert knots_without_gradient(config, scene) == []


@pytest.mark.parametrize("train", [(1, 2), (0, 1), (1,), (0, 2, 3), (2, 3, 5)])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_every_knot_is_trained_where_the_ends_are_not(small, scene_of, train, after):
    config = small(grid_levels=3)
    scene = scene_of(config, frames=train[-1] + after, train=train, val=())
    assert knots_without_gradient(config, scene) == []


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("count", COUNTS)
def test_knots_are_no_closer_than_the_widest_gap_of_training_frames(small, scene_of, split, count):
    config = small(grid_levels=3)
    scene = split_scene(scene_of, config, count, split)
    gap = max((b - a for a, b in zip(scene.train, scene.train[1:], strict=False)), default=1)
    finest, *coarser = knot_counts(config.model, scene)
    assert finest <= 2 or (count - 1) / (finest - 1) >= gap
    assert widest_gap(scene.train, count) >= gap
    assert [max(min(2, len(scene.train)), math.ceil(finest / 2**i)) for i in (1, 2)] == coarser


@pytest.mark.parametrize(
    ("train", "frames", "gap"),
    [
        ((0, 1, 2, 3), 4, 1),
        ((0, 2, 4), 5, 2),
        ((0, 2, 4), 6, 2),
        ((0, 1, 2), 7, 5),
        ((3, 4, 9), 10, 5),
        ((6, 7), 8, 7),
        ((0,), 1, 1),
    ],
)
def test_gap_table(train, frames, gap):
    """An untrained end counts one more than its distance, so that the knot there is not beyond every frame's reach."""
    assert widest_gap(train, frames) == gap


@pytest.mark.parametrize(
    ("count", "split", "knots"),
    [(132, "9_9_10", 66), (132, "6_6_10", 27), (132, "1_1_2", 66), (132, "1_1_1", 132), (10, "9_9_10", 5)],
)
def test_knots_of_bunny(small, scene_of, count, split, knots):
    config = small()
    assert knot_counts(config.model, split_scene(scene_of, config, count, split))[0] == knots


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
    model = make(embedding="encoder", times=(2, 4), frames=40, scene={"train": positions, "val": ()})
    assert (model.scene.height, model.scene.width) == (8, 16)
    return model.embedding


def test_refresh_stores_what_the_encoder_makes_of_each_training_frame(encoder):
    positions = torch.tensor(range(1, 38, 2))
    encoder.refresh(frame_at)
    expected = torch.cat([encoder.encoder(frame_at(p[None])) for p in positions])
    assert torch.allclose(encoder.codes, expected, atol=1e-6)
    assert not encoder.codes.requires_grad
    assert torch.equal(encoder(positions.float())[:, 0], encoder.codes)
    assert torch.allclose(encoder(positions, frame_at(positions))[:, 0], encoder.codes, atol=1e-6)


def test_unseen_frames_lie_between_their_neighbours(encoder):
    for time in (2.0, 1.25, 17.5, 36.0):
        low = math.floor((time - 1) / 2)
        share = (time - 1) / 2 - low
        expected = (1 - share) * encoder.codes[low] + share * encoder.codes[low + 1]
        assert torch.allclose(encoder(torch.tensor([time]))[0, 0], expected, atol=1e-6)


def test_beyond_the_ends_the_nearest_code_holds(encoder):
    for time, code in (
        (0.0, encoder.codes[0]),
        (0.9, encoder.codes[0]),
        (37.1, encoder.codes[-1]),
        (39.0, encoder.codes[-1]),
    ):
        assert torch.equal(encoder(torch.tensor([time]))[0, 0], code)


def test_neighbours_at_unequal_distances_and_a_single_frame(make):
    model = make(embedding="encoder", frames=20, scene={"train": (2, 3, 11), "val": ()})
    codes = model.embedding.codes
    assert torch.allclose(model.embedding(torch.tensor([5.0]))[0, 0], torch.lerp(codes[1], codes[2], 0.25), atol=1e-6)
    alone = make(embedding="encoder", frames=20, scene={"train": (7,), "val": ()}).embedding
    assert torch.equal(alone(torch.tensor([0.0, 7.0, 19.0]))[:, 0], alone.codes.expand(3, -1, -1, -1))


def hand_encoding(where: list[float], base: float, count: int) -> list[float]:
    code = []
    for value in where:
        code += [math.sin(math.pi * base**i * value) for i in range(count)]
        code += [math.cos(math.pi * base**i * value) for i in range(count)]
    return code


@pytest.mark.parametrize(("pe", "base", "count"), [("1.25_80", 1.25, 80), ("2_5", 2, 5), ("1.05_80", 1.05, 80)])
def test_positional_encoding_is_the_formula(make, pe, base, count):
    embedding = make(embedding="pe", pe=pe).embedding
    where = [[0.0, 0.25, 0.75], [0.1, 0.5, 1.0]]
    expected = torch.tensor([hand_encoding(row, base, count) for row in where], dtype=torch.float64)
    assert embedding.encode(torch.tensor(where, dtype=torch.float64)).shape == (2, 6 * count)
    assert torch.allclose(embedding.encode(torch.tensor(where, dtype=torch.float64)), expected, atol=1e-6)
    single = embedding.encode(torch.tensor(where))
    bound = 3e-7 * math.pi * base ** (count - 1) + 1e-6
    assert bound > 1 or (single - expected).abs().max() < bound


def test_positional_codes_are_of_the_centres_of_frames_and_patches(make, monkeypatch):
    embedding = make(embedding="pe", grid="2x3", frames=4).embedding
    seen = []
    encode = embedding.encode
    monkeypatch.setattr(embedding, "encode", lambda where: seen.append(where) or encode(where))
    codes = embedding(torch.tensor([0.0, 3.0]))
    rows = [[(t + 0.5) / 4, (y + 0.5) / 2, (x + 0.5) / 3] for t in (0, 3) for y in range(2) for x in range(3)]
    assert torch.allclose(seen[0], torch.tensor(rows))
    assert codes.shape == (2, 6, embedding.channels, *embedding.cells)
    flat = codes.flatten(0, 1).flatten(1)
    assert torch.pdist(flat).min() > 0


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_positional_codes_are_fp32_under_autocast(make, precision):
    embedding = make(embedding="pe").embedding
    exact = embedding(torch.tensor([1.0]))
    with torch.autocast("cpu", precision):
        assert torch.equal(embedding(torch.tensor([1.0])), exact)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_every_embedding_keeps_the_contract(make, name):
    model = make(embedding=name, grid="2x3", times=(1, 1))
    embedding, grid = model.embedding, model.scene.grid
    embedding.refresh(lambda positions: torch.rand(len(positions), 3, grid.height, grid.width))
    assert embedding.canvases in (1, grid.patches)
    for times in (torch.tensor([0, 3]), torch.tensor([0.0, 2.5]), torch.tensor([4.0, 0.5])):
        codes = embedding(times)
        side = (grid.height, grid.width) if embedding.canvases == 1 else grid.patch_size
        assert codes.shape == (2, embedding.canvases, embedding.channels, side[0] // 4, side[1] // 4)
        assert codes.isfinite().all()


def as_read(tensor: torch.Tensor, named: range) -> torch.Tensor:
    """As a file leaves it that was read in part: 0 outside of `named`."""
    found = torch.zeros_like(tensor)
    found[named.start : named.stop] = tensor[named.start : named.stop]
    return found


SPANS = [(2, 2), (5, 4), (23, 23), (24, 24), (30, 30), (38, 38), (39, 39), (40, 9), (58, 17), (97, 49), (132, 66)]


@pytest.mark.parametrize(("frames", "knots"), SPANS)
def test_a_grid_names_the_knots_that_frames_are_made_of(small, scene_of, frames, knots):
    """Bit for bit, also where a time falls on a knot but for the rounding of fp32; one more on each side at most."""
    config = small(grid_levels=2, embed_dim=2, grid_knots=knots)
    scene = scene_of(config, frames=frames, train=tuple(range(frames)), val=())
    embedding = GridEmbedding(config.model, scene).requires_grad_(False)
    whole = [level.clone() for level in embedding.levels]
    spans = [range(t, t + 1) for t in range(frames)] + [range(t, min(t + 7, frames)) for t in range(0, frames, 5)]
    for span in spans:
        times = torch.arange(span.start, span.stop).float()
        for number, level in enumerate(embedding.levels):
            level.copy_(whole[number])
        expected = embedding(times)
        for number, level in enumerate(embedding.levels):
            named = embedding.slices(f"levels.{number}", span)
            assert 0 <= named.start < named.stop <= len(level)
            assert len(named) <= len(span) * (len(level) - 1) / (frames - 1) + 5
            level.copy_(as_read(whole[number], named))
        assert torch.equal(embedding(times), expected)


@pytest.mark.parametrize("train", [(0, 1, 2, 3), (1, 4, 5, 9), (3,), (0, 7)])
def test_an_encoder_names_the_codes_that_frames_are_made_of(make, train):
    embedding = make(embedding="encoder", frames=11, scene={"train": train, "val": ()}).embedding
    embedding.discard_encoder()
    embedding.requires_grad_(False)
    whole = embedding.codes.clone()
    for first in range(11):
        for stop in range(first + 1, 12):
            times = torch.arange(first, stop).float()
            embedding.codes.copy_(whole)
            expected = embedding(times)
            named = embedding.slices("codes", range(first, stop))
            inside = [i for i, position in enumerate(train) if first <= position < stop]
            assert set(inside) <= set(named) <= set(range(len(train))) and len(named) <= len(inside) + 2
            embedding.codes.copy_(as_read(whole, named))
            assert torch.equal(embedding(times), expected)


def test_codes_without_their_encoder_are_parameters(encoder):
    encoder.refresh(frame_at)
    times, stored = torch.tensor([1.0, 6.0, 39.0]), encoder.codes.clone()
    before = encoder(times)
    weights = {name for name, _ in encoder.named_parameters()}
    encoder.discard_encoder()
    assert weights and {name for name, _ in encoder.named_parameters()} == {"codes"} == set(encoder.state_dict())
    assert encoder.at_any_time and torch.equal(encoder.codes, stored) and torch.equal(encoder(times), before)
    encoder(times).sum().backward()
    assert encoder.codes.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["grid", "pe"])
def test_what_has_no_encoder_keeps_what_it_has(make, name):
    embedding = make(embedding=name).embedding
    before = {key: value.clone() for key, value in embedding.state_dict().items()}
    embedding.discard_encoder()
    assert embedding.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in embedding.state_dict().items())


def test_an_embedding_without_an_axis_of_time_names_no_slices(make):
    with pytest.raises(NotImplementedError):
        make(embedding="pe").embedding.slices("hidden.weight", range(2))
