"""A gradient that is silently cut, and a precision that costs quality, are defects."""

from __future__ import annotations

import pytest
import torch

from hnerv.evaluation import evaluate
from hnerv.losses import cosine_loss, pixel_loss
from hnerv.training.optim import parameters_of


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_every_parameter_is_trained(make, setting_of, kind):
    """Over an epoch with both losses: a knot is touched only by the frames around it."""
    trainer = make(**setting_of(kind), pixel_loss_warmup_epochs=0, clip_loss_weight=1)
    reached = {name: torch.zeros_like(p) for name, p in trainer.model.named_parameters()}
    for batch in trainer.remaining_batches():
        trainer.step(batch)
        for name, p in trainer.model.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
            reached[name] += p.grad.abs()
    assert not [name for name, total in reached.items() if (total == 0).any()]


@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_gradients_are_the_slopes_of_the_loss(make, setting_of, kind):
    """Against central differences along each part's own gradient, so that a detach anywhere shows."""
    trainer, far = make(**setting_of(kind)), 1e-3
    model, batch = trainer.model, next(trainer.remaining_batches())

    def loss() -> torch.Tensor:
        prediction = model(batch.times, batch.frames)
        return pixel_loss("L2", prediction.rgb, batch.frames) + cosine_loss(prediction.clip, batch.clip)

    loss().backward()
    for name, part in parameters_of(model).items():
        values, gradients = [], [p.grad.clone() for p in part]
        size = torch.nn.utils.get_total_norm(gradients).item()
        before = [p.detach().clone() for p in part]
        for sign in (1, -1):
            torch._foreach_copy_([p.data for p in part], before)
            torch._foreach_add_([p.data for p in part], gradients, alpha=sign * far / size)
            values.append(loss().item())
        torch._foreach_copy_([p.data for p in part], before)
        assert (values[0] - values[1]) / (2 * far) == pytest.approx(size, rel=0.02), name


def trained_psnr(make, device: str, precision: str) -> float:
    """psnr_frame of the training frames after a short run."""
    trainer = make(
        device=device, precision=precision, epochs=60, eval_freq=0, checkpoint_freq=60, clip_loss_weight=0.01
    )
    for trainer.state.epoch in range(60):
        for batch in trainer.remaining_batches():
            trainer.step(batch)
    trainer.refresh_evaluated()
    return evaluate(trainer.model, trainer.store).train.psnr_frame.double().mean().item()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_bf16_costs_no_quality(make, device):
    spread = 0.3  # what two seeds of this short run differ by, whatever the precision
    assert trained_psnr(make, device, "bf16") > trained_psnr(make, device, "fp32") - spread
