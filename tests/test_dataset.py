"""What a configuration refers to, and the frames as a training step gets them."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch

from hnerv.config import Config
from hnerv.dataset import FrameStore, load_material, pin_targets, targets_label
from hnerv.errors import UserError
from hnerv.geometry import plan_crop
from hnerv.video.clips import clip_path

FIELDS = {
    "data": "bunny", "frames": "0:4", "crop": "640x1280", "resize": "40x80", "clip_weights": "random",
    "dec_strides": (2, 5), "clip_site": 2, "data_split": "2_2_3", "dec_width": 8,
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config() -> Config:
    return Config().replaced(FIELDS)


@pytest.fixture(scope="module")
def material(config):
    return load_material(config, CPU)


@pytest.fixture(scope="module")
def uncropped() -> torch.Tensor:
    """The first 4 frames of the clip (4, 3, 720, 1280), uint8, read by PyAV."""
    with av.open(str(clip_path("bunny"))) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(4), strict=False)
        ]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def test_the_video_is_what_the_configuration_says(material, uncropped):
    frames = material.video.frames
    assert frames.shape == (4, 3, 40, 80) and frames.dtype == torch.uint8
    assert material.video.crop == plan_crop((720, 1280), "640x1280", "40x80", (10, 20))
    cropped = uncropped[:, :, 40:680].float()
    blocks = torch.nn.functional.avg_pool2d(cropped, 16)
    assert (frames - blocks).abs().mean() < 4


def test_the_scene_is_that_of_video_and_flags(material):
    scene = material.scene
    assert (scene.frames, scene.height, scene.width, scene.rows, scene.cols) == (4, 40, 80, 2, 4)
    assert (scene.train, scene.val) == ((0, 1, 3), (2,))
    assert scene.fps == material.video.fps
    assert scene.clip_dim == material.targets.embeddings.shape[-1] > 0


def test_the_targets_are_of_unit_norm_and_say_that_they_are_not_clip(material):
    targets = material.targets
    assert targets.embeddings.shape[:2] == (4, 8) and targets.kind == "random"
    assert torch.allclose(targets.embeddings.norm(dim=-1), torch.ones(4, 8), atol=1e-5)
    assert targets_label(material.describe()) == targets.source


def test_without_weights_there_are_no_targets(config):
    bare = load_material(config.replaced({"clip_weights": "none"}), CPU)
    assert bare.targets is None and bare.scene.clip_dim == 0
    assert bare.describe()["targets"] is None
    assert targets_label(bare.describe()) == "none (RGB head alone)"
    assert FrameStore(bare, CPU).batch(torch.tensor([1])).clip is None


def test_the_description_is_plain_and_names_the_pixels(material):
    text = json.dumps(material.describe())
    record = json.loads(text)
    assert "embeddings" not in record["targets"] and len(text) < 2000
    assert record["video"]["digest"] == material.video.digest
    assert record["video"]["crop"] == [40, 0, 640, 1280, 40, 80]
    assert record["scene"]["train"] == [0, 1, 3]
    assert record["targets"]["kind"] == "random"


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
        ({"resize": "40x84"}, "--resize 40x84 is not divided by 10x20"),
        ({"data": "nowhere.mp4"}, "--data 'nowhere.mp4' is neither a file nor a folder"),
        ({"data_split": "0_0_1"}, "leaves none of the 4 frames to train"),
        ({"embedding": "encoder"}, "the encoder divides frames by 320 and the decoder multiplies by 10"),
    ],
)
def test_what_does_not_fit_is_one_line(config, changes, message):
    with pytest.raises(UserError) as error:
        load_material(config.replaced({"clip_weights": "none", "grid": "2x4", **changes}), CPU)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "targets_file", "found", "pinned"),
    [
        ("auto", "", {"kind": "random", "weights": "random:0"}, "random"),
        ("auto", "", {"kind": "clip", "weights": "openai"}, "openai"),
        ("auto", "", None, "auto"),
        ("auto", "t.safetensors", {"kind": "file", "weights": "t.safetensors sha256:0"}, "auto"),
        ("random", "", {"kind": "random", "weights": "random:0"}, "random"),
        ("laion2b", "", {"kind": "clip", "weights": "laion2b"}, "laion2b"),
        ("none", "", None, "none"),
    ],
)
def test_auto_is_pinned_to_what_was_found_and_nothing_else_is(weights, targets_file, found, pinned):
    config = Config().replaced({"clip_weights": weights, "clip_targets": targets_file})
    after = pin_targets(config, {"targets": found})
    assert after == config.replaced({"clip_weights": pinned})


def test_what_auto_found_gives_the_same_targets_again(config, material, caplog):
    """`auto` without cache and hub tries and warns; the pinned configuration no longer tries."""
    auto = config.replaced({"clip_weights": "auto"})
    found = load_material(auto, CPU)
    assert [r.getMessage()[:9] for r in caplog.records] == ["NOT CLIP:"] and "openai" in caplog.text
    caplog.clear()
    again = load_material(pin_targets(auto, found.describe()), CPU)
    assert torch.equal(again.targets.embeddings, found.targets.embeddings)
    assert torch.equal(again.targets.embeddings, material.targets.embeddings)
    assert [r.getMessage()[:9] for r in caplog.records] == ["NOT CLIP:"] and "openai" not in caplog.text


def test_a_store_gives_frames_targets_and_times(material):
    store = FrameStore(material, CPU)
    positions = torch.tensor([3, 0, 3])
    batch = store.batch(positions)
    assert batch.times.tolist() == [3.0, 0.0, 3.0] and batch.times.dtype == torch.float32
    assert torch.equal(batch.frames, material.video.frames[positions] / 255)
    assert torch.equal(batch.clip, material.targets.embeddings[positions])
    assert torch.equal(batch.frames, store.frames(positions)) and torch.equal(batch.clip, store.clip(positions))
    assert batch.frames.min() >= 0 and batch.frames.max() <= 1


def test_a_batch_may_be_changed_without_changing_the_store(material):
    store = FrameStore(material, CPU)
    before = store.frames(torch.arange(4))
    batch = store.batch(torch.arange(4))
    batch.frames.zero_()
    batch.clip.zero_()
    assert torch.equal(store.frames(torch.arange(4)), before)
    assert store.clip(torch.arange(4)).norm() > 0


@pytest.mark.cuda
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_store_on_cuda_is_the_same(material, monkeypatch, share):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(FrameStore, "SHARE_OF_DEVICE_MEMORY", share)
    positions = torch.tensor([3, 0])
    there, here = (
        FrameStore(material, torch.device("cuda")).batch(positions),
        FrameStore(material, CPU).batch(positions),
    )
    assert there.frames.is_cuda and there.clip.is_cuda and there.times.is_cuda
    assert torch.equal(there.frames.cpu(), here.frames) and torch.equal(there.clip.cpu(), here.clip)
