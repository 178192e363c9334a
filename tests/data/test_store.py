"""What a configuration refers to, and the frames as a training step gets them."""

from __future__ import annotations

import itertools
import math

import av
import numpy as np
import pytest
import torch

from hnerv import motion
from hnerv.config import Config
from hnerv.data.clip import Targets
from hnerv.data.store import FrameStore, Material, load_material
from hnerv.data.video import Video, data_split
from hnerv.data.video.sources import clip_path
from hnerv.errors import UserError
from hnerv.geometry import plan_crop
from hnerv.model import Scene
from hnerv.model.predict import round8

FIELDS = {"data": "bunny", "frames": "0:4", "crop": "640x1280", "resize": "40x80", "clip_weights": "random"}
FIELDS |= {"dec_strides": (2, 5), "clip_site": 2, "data_split": "2_2_3", "dec_width": 8}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> Config:
    return Config().replaced(FIELDS)


@pytest.fixture(scope="module")
def material(config):
    return load_material(config, CPU)


def test_video_scene_and_targets_are_those_of_the_configuration(material):
    """Frames against PyAV, cropped and averaged over blocks by torch."""
    with av.open(str(clip_path("bunny"))) as container:
        source = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(container.decode(video=0), 4)]
    cropped = torch.from_numpy(np.stack(source)).permute(0, 3, 1, 2)[:, :, 40:680].float()
    video, scene, targets = material
    assert video.frames.shape == (4, 3, 40, 80) and video.frames.dtype == torch.uint8
    assert video.crop == plan_crop((720, 1280), "640x1280", "40x80", (10, 20))
    assert (video.frames - torch.nn.functional.avg_pool2d(cropped, 16)).abs().mean() < 4
    assert (scene.frames, scene.height, scene.width, scene.rows, scene.cols, scene.fps) == (4, 40, 80, 2, 4, video.fps)
    assert (scene.train, scene.val) == ((0, 1, 3), (2,)) and scene.clip_dim == targets.embeddings.shape[-1] > 0
    assert targets.embeddings.shape[:2] == (4, 8) and targets.kind == "random"
    assert torch.allclose(targets.embeddings.norm(dim=-1), torch.ones(4, 8), atol=1e-5)


def test_without_weights_there_are_no_targets(config):
    bare = load_material(config.replaced({"clip_weights": "none"}), CPU)
    assert bare.targets is None and bare.scene.clip_dim == 0
    assert FrameStore(bare, CPU).batch(torch.tensor([1])).clip is None


def test_the_seed_shuffles_the_split_only_when_asked(config, material):
    def train(**changes) -> tuple[int, ...]:
        return load_material(config.replaced({"clip_weights": "none", **changes}), CPU).scene.train

    assert train(seed=7) == material.scene.train
    shuffled = {train(shuffle_data=True, seed=seed) for seed in range(3)}
    assert len(shuffled) > 1 and all(list(split) == sorted(split) and len(split) == 3 for split in shuffled)
    assert train(shuffle_data=True, seed=3) == train(shuffle_data=True, seed=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "40x84"}, "--resize 40x84 is not a multiple of 10x20"),
        ({"data": "nowhere.mp4"}, "--data 'nowhere.mp4' is not a file, a folder or one of the clips"),
        ({"data_split": "0_0_1"}, "leaves none of the 4 frames to train"),
        ({"embedding": "encoder"}, "the encoder downsamples frames by 320, but the decoder upsamples by 10"),
    ],
)
def test_what_does_not_fit_is_one_line(config, changes, message):
    with pytest.raises(UserError) as error:
        load_material(config.replaced({"clip_weights": "none", "grid": "2x4", **changes}), CPU)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_store_gives_frames_targets_and_times(material):
    store = FrameStore(material, CPU)
    positions = torch.tensor([3, 0, 3])
    batch = store.batch(positions)
    assert batch.times.tolist() == [3.0, 0.0, 3.0] and batch.times.dtype == torch.float32
    assert torch.equal(batch.frames, material.video.frames[positions] / 255)
    assert torch.equal(batch.clip, material.targets.embeddings[positions])
    assert torch.equal(batch.frames, store.frames(positions)) and torch.equal(batch.clip, store.clip(positions))
    assert batch.frames.min() >= 0 and batch.frames.max() <= 1


def toy_store(count: int, split: str, unseen: int | None = None, targets: bool = True) -> FrameStore:
    """Frame i of i^2 everywhere and target i along axis i; with `unseen`, frames that do not train are of that value
    and their targets no number."""
    train, val = (tuple(part.tolist()) for part in data_split(count, split))
    frames = (torch.arange(count) ** 2).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 4, 8)
    embeddings = torch.eye(count)[:, None].repeat(1, 8, 1)
    if unseen is not None:
        hidden = sorted(set(range(count)) - set(train))
        frames[hidden], embeddings[hidden] = unseen, math.nan
    scene = Scene(count, 4, 8, 2, 4, 24.0, train, val, count if targets else 0)
    video = Video(frames, 24.0, "toy", "toy", "images", (0, 0, 4, 8, 4, 8), "")
    return FrameStore(Material(video, scene, Targets(embeddings, "", "file", "", "") if targets else None), CPU)


BLENDS = [
    ("9_9_10", 12, 9, 82.0, {8: 1, 10: 1}),
    ("1_1_2", 7, 5, 26.0, {4: 1, 6: 1}),
    ("6_6_10", 12, 6, 40.0, {5: 4, 10: 1}),
    ("6_6_10", 12, 8, 70.0, {5: 2, 10: 3}),
    ("6_8_10", 12, 6, 40.0, {5: 4, 10: 1}),
    ("1_1_7", 15, 13, 175.0, {7: 1, 14: 6}),
]
"""Split, frames, position, grey of the blend, {training frame: its part}: linear between the squares of the two."""


@pytest.mark.parametrize("unseen", [None, 0, 255])
@pytest.mark.parametrize(("split", "count", "position", "grey", "parts"), BLENDS)
def test_a_blend_by_hand(split, count, position, grey, parts, unseen):
    """Whatever the frame that lies there shows, which is never the blend itself."""
    store = toy_store(count, split, unseen)
    batch = store.batch(torch.tensor([0, 5, 0]), torch.tensor([position]))
    assert batch.real == 3 and batch.times.tolist() == [0.0, 5.0, 0.0, position] and batch.times.dtype == torch.float32
    assert torch.allclose(batch.frames[3], torch.full((3, 4, 8), grey / 255), atol=1e-6)
    assert grey != position**2
    expected, length = torch.zeros(8, count), math.hypot(*parts.values())
    for frame, part in parts.items():
        expected[:, frame] = part / length
    assert torch.allclose(batch.clip[3], expected, atol=1e-6)


@pytest.mark.parametrize(("split", "count"), [("9_9_10", 32), ("1_1_2", 9), ("6_6_10", 32), ("6_8_10", 32)])
def test_all_blends_at_once_read_training_frames_alone(split, count):
    clean, white, black = (toy_store(count, split, unseen) for unseen in (None, 255, 0))
    train = data_split(count, split).train
    between = torch.tensor([i for i in range(count) if i not in train and i < train[-1]])
    batch = clean.batch(train, between)
    assert batch.real == len(train) and batch.times.tolist() == [*train.tolist(), *between.tolist()]
    assert (batch.clip.norm(dim=-1) - 1).abs().max() < 1e-6
    for store in (white, black):
        assert store.clip(between).isnan().all()
        other = store.batch(train, between)
        assert torch.equal(other.frames, batch.frames) and torch.equal(other.clip, batch.clip)


def test_blends_are_compensated_pictures_and_targets_of_unit_norm(material):
    """Of 4 frames 0, 1 and 3 train."""
    store, embeddings = FrameStore(material, CPU), material.targets.embeddings
    batch = store.batch(torch.tensor([3, 0]), torch.tensor([2]))
    mean, pixels = (embeddings[1] + embeddings[3]) / 2, material.video.frames.float() / 255
    assert torch.allclose(batch.clip[2], mean / mean.norm(dim=-1, keepdim=True), atol=1e-6)
    assert torch.equal(batch.frames[2:], round8(motion.between(pixels[1:2], pixels[3:], torch.tensor([0.5]))))
    assert torch.equal(batch.frames[:2], pixels[[3, 0]]) and torch.equal(batch.clip[:2], embeddings[[3, 0]])
    bare = toy_store(7, "1_1_2", targets=False).batch(torch.tensor([0]), torch.tensor([3]))
    assert bare.clip is None and torch.allclose(bare.frames[1], torch.tensor(10 / 255), atol=1e-6)


def test_a_batch_may_be_changed_without_changing_the_store(material):
    store, positions = FrameStore(material, CPU), torch.tensor([3, 0, 3])
    plain, empty = store.batch(positions), store.batch(positions, positions[:0])
    assert plain.real == empty.real == 3
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], empty[:3], strict=True))
    plain.frames.zero_()
    plain.clip.zero_()
    assert torch.equal(store.frames(positions), empty.frames) and torch.equal(store.clip(positions), empty.clip)


@pytest.mark.cuda
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_store_on_cuda_is_the_same(material, monkeypatch, share):
    monkeypatch.setattr(FrameStore, "SHARE_OF_DEVICE_MEMORY", share)
    positions = torch.tensor([3, 0])
    between = torch.tensor([2])
    there, here = (
        FrameStore(material, torch.device("cuda")).batch(positions, between),
        FrameStore(material, CPU).batch(positions, between),
    )
    assert there.frames.is_cuda and there.clip.is_cuda and there.times.is_cuda
    # In levels: CUDA divides by 255 as a multiplication, to the last bit but one. A blend is rounded to 8 bits, and its
    # values that lie between two levels may fall to either.
    levels = (255 * (there.frames.cpu() - here.frames)).abs()
    assert levels[:2].max() < 1e-4 and levels[2].max() < 1 + 1e-4
    assert torch.equal(there.clip[:2].cpu(), here.clip[:2]) and torch.allclose(there.clip.cpu(), here.clip)
    assert there.real == here.real == 2


@pytest.mark.parametrize(("free", "total", "share"), [(1, 10, 1), (10, 1, 1), (10, 4, 0.25)])
@pytest.mark.parametrize("more", [0, 1])
def test_frames_and_blends_have_to_fit_into_a_part_of_the_gpu(material, monkeypatch, free, total, share, more):
    """Half of what is free, or of the share of all its memory that a process has; to the byte. No GPU is touched."""
    bare = material._replace(targets=None)
    pictures = len(material.video.frames) + len(material.scene.between)
    needed = 2 * pictures * material.video.frames[0].nbytes + 2 * more
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * needed, total * needed))
    monkeypatch.setattr("hnerv.data.store._copied", lambda frames, device: frames)
    assert len(material.scene.between) > 0
    assert FrameStore(bare, torch.device("cuda"), share).resident == bool(more)
