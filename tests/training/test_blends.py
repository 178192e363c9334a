"""Frames between training frames, blended of them: which steps carry one, which positions, and what is never read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from hnerv import motion
from hnerv.data.store import Batch, Material
from hnerv.metrics import patch_mse, psnr, round8

SPLITS = ["4_5_6", "1_1_2", "9_9_10", "6_6_10"]


def batches_of(trainer, epochs: int = 1) -> list[Batch]:
    found = []
    for trainer.state.epoch in range(epochs):
        found += trainer.remaining_batches()
    trainer.state.epoch = 0
    return found


def extra(batches: list[Batch]) -> list[list[int]]:
    return [batch.times[batch.real :].long().tolist() for batch in batches]


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.real == b.real
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


@pytest.mark.parametrize("every", [0, 1, 2, 3, 100])
@pytest.mark.parametrize(("size", "real"), [(1, [1] * 8), (3, [3, 3, 2]), (8, [8])])
def test_every_so_many_steps_of_an_epoch_carry_one_frame_more(make, every, size, real):
    trainer = make(blend_freq=every, batch_size=size)
    for trainer.state.epoch in range(3):
        batches = list(trainer.remaining_batches())
        assert [batch.real for batch in batches] == real
        assert [len(found) for found in extra(batches)] == [int(every and i % every == 0) for i in range(len(real))]
        for batch in batches:
            assert len(batch.times) == len(batch.frames) == len(batch.clip)


def test_training_frames_come_in_the_same_order_with_blends_or_without(make):
    orders = [
        [batch.times[: batch.real].tolist() for batch in batches_of(make(blend_freq=every), 3)] for every in (0, 1, 2)
    ]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("split", SPLITS)
def test_positions_are_drawn_from_all_that_lie_between(make, split):
    trainer = make(blend_freq=1, data_split=split)
    found = extra(batches_of(trainer, 60))
    assert {position for (position,) in found} == set(trainer.model.scene.between)
    assert found == extra(batches_of(make(blend_freq=1, data_split=split), 60))
    assert len(trainer.model.scene.between) == 1 or found != extra(
        batches_of(make(blend_freq=1, data_split=split, seed=1), 60)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"blend_freq": 0},
        {"embedding": "encoder"},
        {"data_split": "1_1_1"},
        {"data_split": "4_5_12"},
        {"data_split": "1_1_12"},
    ],
    ids=str,
)
def test_there_is_none(make, changes):
    """Without --blend-freq, of an encoder, and where all that is untrained lies after the last training frame."""
    trainer = make(**{"blend_freq": 1, **changes})
    assert not any(extra(batches_of(trainer, 5)))


def test_frames_that_no_split_uses_lie_between_too(make):
    """Frame 4 is neither trained nor unseen under 4_5_6."""
    scene = make(data_split="4_5_6").model.scene
    assert scene.between == (4, 5) and 4 not in scene.train + scene.val


@pytest.mark.parametrize("embedding", ["grid", "pe"])
def test_the_rest_of_an_epoch_has_the_blends_that_were_left(make, embedding):
    trainer = make(blend_freq=2, batch_size=1, embedding=embedding)
    trainer.state.epoch = 3
    whole = list(trainer.remaining_batches())
    assert any(extra(whole))
    for trainer.state.step_in_epoch in range(len(whole) + 1):
        assert_same(list(trainer.remaining_batches()), whole[trainer.state.step_in_epoch :])


def test_a_blend_is_of_the_nearest_training_frames(make, film):
    """Under 4_5_6 frames 4 and 5 lie between 3 and 6."""

    def pixels(position: int) -> torch.Tensor:
        return torch.from_numpy(np.array(Image.open(film / f"{position}.png"))).permute(2, 0, 1).float() / 255

    trainer, seen = make(blend_freq=1, data_split="4_5_6"), set()
    for batch in batches_of(trainer, 5):
        position = int(batch.times[-1])
        share = (position - 3) / 3
        picture = motion.between(pixels(3)[None], pixels(6)[None], torch.tensor([share]))
        assert torch.equal(batch.frames[-1:], round8(picture))
        pair = trainer.store.clip(torch.tensor([3, 6]))
        mean = (1 - share) * pair[0] + share * pair[1]
        assert torch.allclose(batch.clip[-1], mean / mean.norm(dim=-1, keepdim=True), atol=1e-6)
        seen.add(position)
    assert seen == {4, 5}


def poison(value: int) -> Callable[[Material], None]:
    """Makes every frame that is not trained white or black, and its targets no number."""

    def edit(material: Material) -> None:
        unseen = sorted(set(range(material.scene.frames)) - set(material.scene.train))
        material.video.frames[unseen] = value
        material.targets.embeddings[unseen] = float("nan")

    return edit


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("embedding", ["grid", "encoder", "pe"])
def test_frames_that_are_not_trained_are_never_read(make, embedding, split):
    settings = {"embedding": embedding, "data_split": split, "blend_freq": 1, "pixel_loss_warmup_epochs": 0}
    clean, *spoilt = (make(edit=edit, **settings) for edit in (lambda _: None, poison(255), poison(0)))
    for other in spoilt:
        assert other.store.clip(torch.arange(12)).isnan().any()
        assert not torch.equal(other.store.frames(torch.arange(12)), clean.store.frames(torch.arange(12)))
        assert_same(batches_of(clean, 4), batches_of(other, 4))
    rows = [torch.stack([trainer.step(batch) for batch in batches_of(trainer, 2)]) for trainer in (clean, *spoilt)]
    for other, row in zip(spoilt, rows[1:], strict=True):
        assert row.isfinite().all() and torch.equal(row, rows[0])
        ours, theirs = other.checkpoint()["model"], clean.checkpoint()["model"]
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("embedding", ["grid", "pe"])
def test_a_whole_fit_does_not_read_them_either(make, console, monkeypatch, embedding):
    """But for its evaluation, which is why there is none here."""
    monkeypatch.setattr("hnerv.training.trainer.Trainer.evaluate", lambda self: None)
    states = []
    for edit in (lambda _: None, poison(255)):
        trainer = make(edit=edit, embedding=embedding, blend_freq=1, epochs=4)
        trainer.fit(console)
        states.append(copy.deepcopy(trainer.checkpoint()["model"]))
        assert trainer.logger.values["Train/Loss/clip_loss"][4] > 0
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("embedding", ["grid", "pe"])
def test_the_psnr_of_a_step_is_of_its_training_frames(make, embedding, epoch):
    trainer, *twins = (make(blend_freq=1, embedding=embedding) for _ in range(3))
    for each in (trainer, *twins):
        each.state.epoch = epoch
    batch = next(trainer.remaining_batches())
    assert len(batch.times) == batch.real + 1
    row = trainer.step(batch)
    odd = twins[0].step(batch._replace(frames=torch.cat([batch.frames[:-1], 1 - batch.frames[-1:]])))
    assert odd[0] == row[0] and odd[1] != row[1]
    bare = twins[1].step(Batch(batch.times[:-1], batch.frames[:-1], batch.clip[:-1], batch.real))
    torch.testing.assert_close(bare[0], row[0])
    assert bare[1] != row[1]


@pytest.mark.parametrize("ramp", [0, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_total_is_pixel_and_weighted_clip_exactly(make, batch_size, ramp):
    trainer = make(blend_freq=2, batch_size=batch_size, clip_ramp_epochs=ramp, clip_loss_weight=0.3)
    for trainer.state.epoch in range(5):
        for batch in trainer.remaining_batches():
            row = trainer.step(batch)
            assert row[3] == row[1] + trainer.objective.weight * row[2]
            assert (row[2] > 0) == (trainer.state.epoch >= 2)


@pytest.mark.parametrize("every", [0, 1, 2])
def test_the_psnr_of_an_epoch_is_the_mean_over_the_training_frames(make, console, every):
    """At a learning rate of next to nothing, so that the weights are those of the start at every step."""
    trainer = make(blend_freq=every, epochs=1, lr=1e-30, embed_lr_factor=1.5)
    start = copy.deepcopy(trainer.model)
    trainer.fit(console)
    positions = torch.tensor(start.scene.train)
    with torch.no_grad():
        rgb = start(positions.float(), clip=False).rgb
    expected = psnr(patch_mse(rgb, trainer.store.frames(positions), start.scene.grid)).mean().item()
    assert trainer.logger.values["Train/PSNR"][1] == pytest.approx(expected, abs=1e-4)
