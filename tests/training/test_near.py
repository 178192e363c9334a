"""The near frames of `--clip-loss motion`: which they are, what they change, and that a run resumes with them."""

from __future__ import annotations

import pytest
import torch

from hnerv.config import Config
from hnerv.data.batches import NEAR, near_indices
from hnerv.errors import UserError
from hnerv.losses import Embedded, clip_loss


@pytest.mark.parametrize("count", [1, 2, 5, 9, 200])
def test_near_frames_are_near(count):
    places = torch.arange(count).repeat(50)
    found = near_indices(places, count, torch.Generator().manual_seed(0))
    assert found.min() >= 0 and found.max() < count
    away = (found - places).abs()
    assert away.max() <= NEAR[1]
    if count > 2 * NEAR[1]:
        assert set(away.tolist()) == {*range(NEAR[0], NEAR[1] + 1)}
        assert (found > places).any() and (found < places).any()


def test_the_drawing_of_frames_and_blends_is_left_as_it_was(make):
    plain, moving = ([*make(clip_loss=name).remaining_batches()] for name in ("cosine", "motion"))
    for one, other in zip(plain, moving, strict=True):
        assert torch.equal(one.times, other.times) and one.near is None and len(other.near.times) == other.real
    trainer = make(clip_loss="motion")
    again = [batch.near.times for batch in trainer.remaining_batches()]
    assert all(torch.equal(a, b.near.times) for a, b in zip(again, moving, strict=True))
    trainer.state.step_in_epoch = 1  # a run that resumes draws the same
    rest = [*trainer.remaining_batches()]
    assert all(torch.equal(a.near.times, b.near.times) for a, b in zip(rest, moving[1:], strict=True))
    trainer.state.epoch, trainer.state.step_in_epoch = 1, 0
    assert any(not torch.equal(a, b.near.times) for a, b in zip(again, trainer.remaining_batches(), strict=True))
    assert {int(t) for near in again for t in near} <= set(trainer.model.scene.train)


def test_a_step_takes_the_loss_of_its_configuration(make):
    trainer = make(clip_loss="motion", pixel_loss_warmup_epochs=0)
    batch = next(iter(trainer.remaining_batches()))
    with torch.no_grad():
        here = Embedded(trainer.model(batch.times, batch.frames).clip, batch.clip)
        near = Embedded(trainer.model(batch.near.times).clip, batch.near.clip)
    assert torch.equal(batch.near.clip, trainer.store.clip(batch.near.times.long()))
    row = trainer.step(batch)
    assert row[2].item() == pytest.approx(clip_loss("motion", here, near).item(), rel=1e-5)
    assert row[2] > clip_loss("cosine", here)


def test_a_run_without_a_head_has_no_near_frames(make):
    trainer = make(clip_loss="motion", clip_targets="", clip_weights="none")
    assert all(batch.near is None for batch in trainer.remaining_batches())


def test_the_encoder_cannot(tmp_path):
    with pytest.raises(UserError, match="--embedding encoder has none: pass --clip-loss cosine"):
        Config().replaced({"clip_loss": "motion", "embedding": "encoder"})
