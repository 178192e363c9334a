"""Values of an epoch against what they are defined as, and those of a real run against its batches."""

from __future__ import annotations

import pytest
import torch

from hnerv.training.values import Objective, clip_values, clipping_values, log_histograms, loss_values, stability_values

MEANS = {
    "psnr": 30.0,
    "pixel_loss": 0.03,
    "clip_loss": 0.5,
    "total_loss": 0.04,
    "total_norm": 1.0,
    "rgb_head_norm": 0.6,
    "clip_head_norm": 0.3,
    "decoder_norm": 0.5,
    "embedding_norm": 0.1,
}


def test_shares_are_percent_of_the_total():
    values = loss_values(MEANS) | clip_values(MEANS, Objective(0.02, True))
    assert values["Train/Loss/pixel_share"] == pytest.approx(75)
    assert values["Train/Loss/clip_share"] == pytest.approx(25)
    warm_up = clip_values(MEANS | {"clip_loss": 0.0, "clip_head_norm": 0.0}, Objective(0.0, False))
    assert warm_up["Train/Loss/clip_share"] == 0.0
    nothing = MEANS | {"total_loss": 0.0}
    assert not [tag for tag in loss_values(nothing) | clip_values(nothing, Objective(1.0, True)) if "share" in tag]


def test_clipping():
    norms = torch.tensor([0.5, 2.0, 4.0, 1.0], dtype=torch.float64)
    assert clipping_values(norms, 1.0) == {
        "Train/Gradients/total_norm_clipped": pytest.approx((0.5 + 1 + 1 + 1) / 4),
        "Train/Gradients/clipped_share": pytest.approx(50),
    }
    assert clipping_values(norms, 0) == {}


@pytest.mark.parametrize("grad_clip", [0, 1e-4, 1e6])
def test_what_an_epoch_logs_of_clipping_is_what_happened(make, console, grad_clip):
    trainer = make(epochs=1, grad_clip=grad_clip)
    after, step = [], trainer.optimizer.step

    def watched():
        after.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None]))
        step()

    trainer.optimizer.step = watched
    trainer.fit(console)
    values = {tag: points[1] for tag, points in trainer.logger.values.items() if 1 in points}
    if not grad_clip:
        assert "Train/Gradients/clipped_share" not in values
        return
    assert values["Train/Gradients/total_norm_clipped"] == pytest.approx(torch.stack(after).mean().item(), rel=1e-5)
    assert values["Train/Gradients/clipped_share"] == (100 if grad_clip == 1e-4 else 0)


def test_the_window_holds_the_steps_with_the_same_terms(make, console):
    trainer = make(epochs=4, pixel_loss_warmup_epochs=2)
    trainer.fit(console)
    batches = trainer.logger.values["Train_Batch/total_loss"]
    for epoch, steps in ((2, range(1, 7)), (3, range(7, 10)), (4, range(7, 13))):
        expected = stability_values(torch.tensor([batches[step] for step in steps], dtype=torch.float64))
        assert {tag: trainer.logger.values[tag][epoch] for tag in expected} == pytest.approx(expected)


def test_without_a_clip_head_the_window_does_not_begin_anew(make, console):
    trainer = make(epochs=4, clip_targets=None, clip_weights="none")
    trainer.fit(console)
    assert len(trainer.state.window) == 12


def test_histograms_are_of_every_parameter_and_its_gradient(make):
    trainer, seen = make(), {}
    trainer.logger.histogram = lambda tag, values, step: seen.update({tag: (values, step)})
    trainer.step(next(trainer.remaining_batches()))
    log_histograms(trainer.logger, trainer.model, 3)
    for name, parameter in trainer.model.named_parameters():
        assert seen[f"Model/Histogram/weight/{name}"] == (parameter, 3)
        in_use = not name.startswith("clip_head")
        assert (f"Model/Histogram/gradient/{name}" in seen) == in_use, "in warm-up the CLIP head has no gradient"
