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
from hnerv.data.store import Batch, FrameStore, Material, blend_times, load_material
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
    return FrameStore(
        Material(video, scene, Targets(embeddings, "", "file", "", "") if targets else None), CPU, blend_seed=0
    )


def all_blends(store: FrameStore) -> Batch:
    rows = store.num_frames + torch.arange(len(store.between))
    store.make(rows)
    return store.gather(store.between, rows, 0)


SPLITS = [("9_9_10", 12), ("1_1_2", 7), ("6_6_10", 12), ("6_8_10", 12), ("1_1_7", 15)]


@pytest.mark.parametrize(("split", "count"), SPLITS)
def test_blends_by_hand(split, count):
    """Linear between the squares of the two training frames around, whose targets are axes."""
    store, train = toy_store(count, split), data_split(count, split).train.tolist()
    blends = all_blends(store)
    assert blends.real == 0 and torch.equal(blends.times, store.between) and 0 < len(blends.times) <= len(train)
    for time, picture, target in zip(blends.times.tolist(), blends.frames, blends.clip, strict=True):
        low, high = max(t for t in train if t <= time), min(t for t in train if t > time)
        share = (time - low) / (high - low)
        grey = low**2 + share * (high**2 - low**2)
        assert torch.allclose(picture, torch.full((3, 4, 8), grey / 255), atol=0.51 / 255)  # rounded to 8 bits
        expected = torch.zeros(8, count)
        expected[:, low], expected[:, high] = 1 - share, share
        assert torch.allclose(target, expected / math.hypot(share, 1 - share), atol=1e-4)


@pytest.mark.parametrize(("split", "count"), SPLITS)
def test_blends_read_training_frames_alone(split, count):
    clean, white, black = (all_blends(toy_store(count, split, unseen)) for unseen in (None, 255, 0))
    assert (clean.clip.norm(dim=-1) - 1).abs().max() < 1e-6
    for other in (white, black):
        assert torch.equal(other.frames, clean.frames) and torch.equal(other.clip, clean.clip)


@pytest.mark.parametrize("split", ["9_9_10", "1_1_2", "6_6_10", "6_8_10", "1_1_7"])
def test_held_out_positions_get_no_special_share_of_the_blends(split):
    """Each frame of the video has the same number of blends around it, less than one, whether trained or held out."""
    count, seeds = 210, 300
    train = data_split(count, split).train
    first, last = train[0].item(), train[-1].item()
    drawn = torch.cat([blend_times(train, [], seed) for seed in range(seeds)])
    assert drawn.min() >= first and drawn.max() <= last
    blends = torch.histc(drawn - first + 0.5, bins=last - first + 1, min=0, max=last - first + 1) / seeds
    inside = blends[1:-1]  # around the first and the last frame there is half an interval
    expected = len(train) / (last - first)  # F blends over the video: at most one for each trained frame
    error = 5 * (expected / seeds) ** 0.5  # a Poisson process has this deviation, and strata have less
    assert expected <= len(train) / (len(train) - 1) and (inside - expected).abs().max() < error
    # Nor does a step of the size of a frame's share fall more often on the exact times that are evaluated.
    exact = ((drawn - drawn.round()).abs() < 0.05).float().mean()
    assert exact == pytest.approx(0.1, abs=0.02)


def test_there_is_no_blend_across_a_cut():
    train = torch.arange(0, 40, 2)
    times = blend_times(train, [5, 12], 0)  # scenes start at frames 10 and 24
    assert not ((times > 8) & (times < 10)).any() and not ((times > 22) & (times < 24)).any()
    assert set(times.tolist()) < set(blend_times(train, [], 0).tolist()) and len(times) > 15


def test_blends_are_compensated_pictures_and_targets_of_unit_norm(material):
    """Of 4 frames 0, 1 and 3 train."""
    store, embeddings = FrameStore(material, CPU, blend_seed=3), material.targets.embeddings
    last = len(store.between) - 1
    time = store.between[last]
    assert time > 1
    rows = torch.tensor([3, 0, store.num_frames + last])
    store.make(rows[2:])
    batch = store.gather(torch.tensor([3.0, 0.0, time]), rows, 2)
    share, pixels = (time - 1) / 2, material.video.frames.float() / 255
    mean = torch.lerp(embeddings[1], embeddings[3], share)
    assert torch.allclose(batch.clip[2], mean / mean.norm(dim=-1, keepdim=True), atol=1e-6)
    assert torch.equal(batch.frames[2:], round8(motion.between(pixels[1:2], pixels[3:], share[None])))
    assert torch.equal(batch.frames[:2], pixels[[3, 0]]) and torch.equal(batch.clip[:2], embeddings[[3, 0]])
    bare = toy_store(7, "1_1_2", targets=False)
    assert all_blends(bare).clip is None and len(bare.between)
    assert not len(FrameStore(material, CPU).between) and not len(toy_store(5, "1_1_1").between)


def test_a_batch_may_be_changed_without_changing_the_store(material):
    store, positions = FrameStore(material, CPU), torch.tensor([3, 0, 3])
    plain, empty = store.batch(positions), store.batch(positions)
    assert plain.real == empty.real == 3
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], empty[:3], strict=True))
    plain.frames.zero_()
    plain.clip.zero_()
    assert torch.equal(store.frames(positions), empty.frames) and torch.equal(store.clip(positions), empty.clip)


@pytest.mark.cuda
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_store_on_cuda_is_the_same(material, monkeypatch, share):
    monkeypatch.setattr(FrameStore, "SHARE_OF_DEVICE_MEMORY", share)
    there, here = (FrameStore(material, device, blend_seed=0) for device in (torch.device("cuda"), CPU))
    rows = torch.tensor([3, 0, here.num_frames])
    for store in (there, here):
        store.make(rows[2:])
    there, here = (store.gather(torch.zeros(3, device=store.device), rows, 2) for store in (there, here))
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
    pictures = len(material.video.frames) + 3
    needed = 2 * pictures * material.video.frames[0].nbytes + 2 * more
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * needed, total * needed))
    monkeypatch.setattr("hnerv.data.store._copied_in_parts", lambda frames, device: frames)
    assert FrameStore(bare, torch.device("cuda"), share, blend_seed=0).resident == bool(more)
