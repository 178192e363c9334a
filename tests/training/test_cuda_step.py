"""A training step, and Muon's iteration, on a CUDA device against the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hnerv.training.muon import COEFFICIENTS, ROUNDS, orthogonalize
from hnerv.training.step import Kind
from hnerv.training.trainer import Trainer

DEVICE = "cuda"
RATE = {"rate_weight": 1e-3, "rate_freq": 2, "rounding_start": 0.5, "epochs": 16}
pytestmark = pytest.mark.cuda


def modules_of(trainer: Trainer) -> list[torch.nn.Module]:
    """Everything that is trained or evaluated."""
    return [trainer.model, trainer.evaluated, *([trainer.rate.estimate] if trainer.rate else [])]


def by_decomposition(x: Tensor) -> Tensor:
    """(K, O, I) float64 -> what the polynomial makes of the singular values."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        s = a * s + b * s**3 + c * s**5
    return u * s[:, None] @ v


@pytest.mark.parametrize("shape", [(1, 12, 5), (9, 40, 12), (9, 12, 40), (25, 64, 64), (1, 700, 300)], ids=str)
def test_orthogonalization_against_decompositions(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonalize(x.float().to(DEVICE))
    assert found.device.type == DEVICE and found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), by_decomposition(x), rtol=0, atol=5e-3)


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
@pytest.mark.parametrize("kind", ["grid", "encoder", "pe", "convnext"])
def test_a_step_is_that_of_the_cpu(make, console, setting_of, kind, optimizer):
    """An epoch of one step in fp32: logged values to 0.1 %, the updates of the weights to 1 % of their norm."""
    settings = {**setting_of(kind), "optimizer": optimizer, "pixel_loss": "Fusion10", "grad_clip": 1}
    one_step = {"epochs": 1, "batch_size": 8, "blend_freq": 0, "pixel_loss_warmup_epochs": 0}
    there, here = (make(device=device, **settings, **one_step) for device in (DEVICE, "cpu"))
    before = {name: value.clone() for name, value in here.model.state_dict().items()}
    for trainer in (there, here):
        trainer.fit(console)
        assert trainer.global_step == 1
    for tag in ("Train/PSNR", "Train/Loss/total_loss", "Train/Loss/clip_loss", "Train/Gradients/total_norm"):
        (ours,), (theirs,) = (trainer.logger.values[tag].values() for trainer in (there, here))
        assert ours == pytest.approx(theirs, rel=1e-3), tag
    ours, theirs = there.model.state_dict(), here.model.state_dict()
    for name, start in before.items():
        update = theirs[name] - start
        assert (ours[name].cpu() - theirs[name]).norm() <= 0.01 * update.norm(), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clip_loss": "motion", "precision": "auto"},
        {"embedding": "pe"},
        {"decoder": "convnext"},
        {"decoder": "convnext", "precision": "auto"},
        {"optimizer": "adam"},
        {"ema_decay": 0.9},
        RATE,
        {**RATE, "embedding": "pe", "precision": "auto"},
    ],
    ids=str,
)
def test_captured_steps_give_the_weights_of_eager_ones(make, console, monkeypatch, changes):
    """Bit for bit, with deterministic convolutions, over the end of the warm-up and a last step of fewer frames."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    captured, eager = (
        make(device=DEVICE, **{"epochs": 8, "eval_freq": 0, "blend_freq": 1, "capture": capture} | changes)
        for capture in (True, False)
    )
    assert captured.captures
    for trainer in (captured, eager):
        trainer.fit(console)
    assert eager.graphs is None and len(captured.graphs.captured) >= 3
    assert torch.equal(captured.training_step.records, eager.training_step.records)
    for ours, theirs in zip(modules_of(captured), modules_of(eager), strict=True):
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


def test_captured_steps_do_not_wait_for_the_device(make, no_sync):
    trainer = make(device=DEVICE, blend_freq=1, pixel_loss_warmup_epochs=0)
    for epoch in range(5):
        trainer.state.epoch, trainer.state.step_in_epoch = epoch, 0
        trainer.begin_epoch()
        if epoch < 4:
            for _ in range(trainer.steps_per_epoch):
                trainer.advance()
    with no_sync():
        for _ in range(trainer.steps_per_epoch):
            trainer.advance()
    assert trainer.training_step.records.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pixel_loss": "Fusion10_freq", "clip_loss": "motion", "ema_decay": 0.9},
        {"decoder": "convnext", "pixel_loss": "L1_freq"},
        RATE,
        {**RATE, "rounding_start": 0},
    ],
    ids=str,
)
def test_what_is_captured_does_not_wait_for_the_device(make, no_sync, changes):
    """The eager step, of which an operation that waits would end a capture."""
    trainer = make(device=DEVICE, blend_freq=1, pixel_loss_warmup_epochs=0, **changes)
    trainer.begin_epoch()
    step = trainer.training_step
    kind = trainer.kind(step.plan.counts[0])
    assert kind == Kind(step.plan.counts[0], True, bool(changes.get("rate_weight")), changes.get("rounding_start") == 0)
    for _ in range(2):
        step.take(kind)
        step.number.zero_()
    with no_sync():
        step.take(kind)
    assert step.records[0].isfinite().all()


def test_a_state_that_is_loaded_is_captured_again(make, console):
    trainer = make(device=DEVICE, epochs=8, eval_freq=0, pixel_loss_warmup_epochs=0)
    trainer.fit(console)
    state = trainer.checkpoint()
    again = make(device=DEVICE, epochs=8, eval_freq=0, pixel_loss_warmup_epochs=0)
    again.fit(console)
    again.load(state)
    assert again.graphs is None
    again.state.epoch = 0
    again.fit(console)
    assert again.graphs.captured and again.training_step.records.isfinite().all()
