"""Blends of two training frames: which steps carry one, at which times, and what is never read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from hnerv.data.store import Batch, Material
from hnerv.metrics import patch_mse, psnr

SPLITS = ["4_5_6", "1_1_2", "9_9_10", "6_6_10"]


def batches_of(trainer, epochs: int = 1) -> list[Batch]:
    found = []
    for trainer.state.epoch in range(epochs):
        found += trainer.remaining_batches()
    trainer.state.epoch = 0
    return found


def extra(batches: list[Batch]) -> list[list[float]]:
    return [batch.times[batch.real :].tolist() for batch in batches]


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.real == b.real
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


@pytest.mark.parametrize("every", [0, 1, 3, 100])
@pytest.mark.parametrize(("size", "real"), [(1, [1] * 8), (3, [3, 3, 2]), (8, [8])])
def test_every_so_many_steps_of_an_epoch_carry_one_frame_more(make, every, size, real):
    """And the training frames come in the same order as without blends."""
    trainer, plain = make(blend_freq=every, batch_size=size), make(blend_freq=0, batch_size=size)
    batches = batches_of(trainer, 2)
    assert [batch.real for batch in batches] == real * 2
    assert [len(found) for found in extra(batches)] == [int(every and i % every == 0) for i in range(len(real))] * 2
    for batch, bare in zip(batches, batches_of(plain, 2), strict=True):
        assert len(batch.times) == len(batch.frames) == len(batch.clip)
        assert torch.equal(batch.times[: batch.real], bare.times)


@pytest.mark.parametrize("split", SPLITS)
def test_blends_are_drawn_from_all_that_there_are(make, split):
    trainer = make(blend_freq=1, data_split=split)
    found = extra(batches_of(trainer, 40))
    assert {time for (time,) in found} == set(trainer.store.between.tolist())
    again, other = (extra(batches_of(make(blend_freq=1, data_split=split, seed=seed), 40)) for seed in (0, 1))
    assert found == again != other


@pytest.mark.parametrize(
    "changes", [{"embedding": "encoder"}, {"data_split": "1_1_12"}, {"data_split": "1_1_1"}, {"blend_freq": 0}], ids=str
)
def test_there_is_none(make, changes):
    """With an encoder, of a single training frame, and where every frame is trained."""
    assert not any(extra(batches_of(make(**{"blend_freq": 1, **changes}), 5)))


def test_cuts_do_not_make_a_blend_more_frequent_than_a_training_frame(make, monkeypatch):
    monkeypatch.setattr("hnerv.data.store.cuts_of", lambda changes: [2, 4, 5, 6])
    trainer = make(blend_freq=1, batch_size=1, data_split="4_5_6")
    left, epochs = len(trainer.store.between), 400
    assert 0 < left < 8
    drawn = [time for found in extra(batches_of(trainer, epochs)) for time in found]
    assert len(drawn) / (left * epochs) == pytest.approx(1, abs=0.1), "as often as each of the 8 training frames"


@pytest.mark.parametrize("embedding", ["grid", "pe"])
def test_the_rest_of_an_epoch_has_the_blends_that_were_left(make, embedding):
    trainer = make(blend_freq=2, batch_size=1, embedding=embedding)
    trainer.state.epoch = 3
    whole = list(trainer.remaining_batches())
    assert any(extra(whole))
    for trainer.state.step_in_epoch in range(len(whole) + 1):
        assert_same(list(trainer.remaining_batches()), whole[trainer.state.step_in_epoch :])


def poison(value: int) -> Callable[[Material], None]:
    """Makes every frame that is not trained white or black, and its targets no number."""

    def edit(material: Material) -> None:
        unseen = sorted(set(range(material.scene.frames)) - set(material.scene.train))
        material.video.frames[unseen] = value
        material.targets.embeddings[unseen] = float("nan")

    return edit


@pytest.mark.parametrize(
    ("embedding", "split"), [*(("grid", split) for split in SPLITS), ("encoder", "4_5_6"), ("pe", "6_6_10")]
)
def test_frames_that_are_not_trained_are_never_read(make, console, monkeypatch, embedding, split):
    """Nor in a fit, but for its evaluation, which is why there is none here."""
    monkeypatch.setattr("hnerv.training.trainer.Trainer.evaluate", lambda self: None)
    settings = {"embedding": embedding, "data_split": split, "blend_freq": 1, "epochs": 3}
    clean, *spoilt = (make(edit=edit, **settings) for edit in (lambda _: None, poison(255), poison(0)))
    for other in spoilt:
        assert other.store.clip(torch.arange(12)).isnan().any()
        assert not torch.equal(other.store.frames(torch.arange(12)), clean.store.frames(torch.arange(12)))
        assert_same(batches_of(clean, 4), batches_of(other, 4))
    for trainer in (clean, *spoilt):
        trainer.fit(console)
        assert trainer.logger.values["Train/Loss/clip_loss"][3] > 0
    ours, *others = (trainer.checkpoint()["model"] for trainer in (clean, *spoilt))
    assert all(torch.equal(ours[key], other[key]) and ours[key].isfinite().all() for other in others for key in ours)


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
