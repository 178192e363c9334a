"""--rate-weight: the objective, what it saves in bytes, what is evaluated and saved, and the target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hnerv.codec import Options, encode_run, open_single_chunk
from hnerv.config import LossConfig
from hnerv.evaluation import eval_values, evaluate, open_run
from hnerv.runs.checkpoint import CURRENT, KEYS, RATE, load_checkpoint
from hnerv.runs.models import open_checkpoint
from hnerv.training.rate import RateTerm
from hnerv.training.step import Schedule, losses_of
from hnerv.training.trainer import Trainer

LONG = {"epochs": 40, "lr": 6e-3, "eval_freq": 40, "params_freq": 40, "data_split": "1_1_1"}
PIXELS = 12 * 32 * 64


def coded_bytes(trainer: Trainer) -> int:
    found = open_checkpoint(trainer.folder.latest)
    return len(encode_run(found.model, found.record, Options(), None, {}, learned=found.learned))


def test_a_rate_saves_bytes_at_similar_quality(make, console):
    """Against a run without it, and against one whose weight of the rate is next to nothing."""
    plain, weak, strong = (make(**LONG, rate_weight=weight) for weight in (0.0, 1e-6, 1e-2))
    sizes, quality = [], []
    for trainer in (plain, weak, strong):
        trainer.fit(console)
        sizes.append(coded_bytes(trainer))
        quality.append(trainer.state.evaluation["Eval/Frame/train_psnr_frame"])
    estimates = [sum(trainer.rate.measure().values()) * PIXELS / 8 for trainer in (weak, strong)]
    assert sizes[2] < 0.9 * sizes[1] < sizes[0] and estimates[1] < 0.85 * estimates[0]
    assert quality[2] > quality[0] - 2


@pytest.mark.parametrize("rounded", [False, True])
def test_the_objective(make, rounded):
    """total = pixel + lambda x CLIP + N x W x bits / pixels of all frames, in every N-th step."""
    trainer = make(rate_weight=0.5, rate_freq=3, pixel_loss_warmup_epochs=0, rounding_start=0.0 if rounded else 1.0)
    trainer.begin_epoch()
    counts = trainer.training_step.plan.counts
    kinds = []
    for step in range(3):
        trainer.state.step_in_epoch = step
        kinds.append(trainer.kind(counts[step]))
    assert [kind.rate for kind in kinds] == [True, False, False] and {kind.rounded for kind in kinds} == {rounded}
    losses = losses_of(trainer.model, trainer.config, torch.device("cpu"), trainer.rate.estimate)
    schedule, batch = Schedule.of(trainer.schedule(range(4, 5))[0]), next(trainer.remaining_batches())
    with_rate, without = (losses(batch, schedule, kinds[0]._replace(rate=rate)) for rate in (True, False))
    estimate = trainer.rate.estimate
    bits = estimate.bits(estimate(torch.tensor(4.0), rounded).symbols, rounded).sum()
    assert schedule.number == 4 and torch.equal(with_rate.logged, without.logged)
    assert without.total.item() == pytest.approx(without.logged[3].item())
    assert (with_rate.total - without.total).item() == pytest.approx(3 * 0.5 * bits.item() / PIXELS, rel=1e-4)


def test_what_was_evaluated_is_what_the_file_decodes_to(rated, hnerv_main, tmp_path, lines_of):
    path = tmp_path / "a.hnerv"
    assert hnerv_main("encode", rated, "-o", path, "--no-measure") == 0
    opened, chunk = open_run(rated, torch.device("cpu")), open_single_chunk(path)
    assert chunk.encoder["steps"] == "learned"
    decoded = chunk.model()
    for name, value in opened.model.state_dict().items():
        assert torch.equal(decoded.state_dict()[name], value), name
    found = eval_values(evaluate(decoded, opened.store))
    last = next(line for line in reversed(lines_of(rated)) if line["kind"] == "eval")
    assert found == pytest.approx({tag: last[tag] for tag in found}, rel=1e-5)


@pytest.mark.parametrize("rounding_start", [0.5, 1.0])
def test_the_checkpoint_holds_both_kinds_of_weights(make, console, rounding_start):
    """Also where rounding never began; the rounded ones are on a coarse grid, the current ones are not."""
    trainer = make(epochs=2, rate_weight=0.01, rounding_start=rounding_start)
    trainer.fit(console)
    state = load_checkpoint(trainer.folder.latest)
    assert state.keys() == KEYS | {CURRENT, RATE}
    for name, scale in trainer.rate.estimate.scales().items():
        weight, rounded = state[CURRENT][name], state["model"][name]
        assert torch.equal(weight, trainer.model.state_dict()[name])
        steps = scale.steps(weight.shape)
        assert ((rounded - weight).abs() <= steps * 0.5001).all()
        torch.testing.assert_close(rounded / steps, (rounded / steps).round(), rtol=1e-6, atol=0)
    assert not torch.equal(state[CURRENT]["decoder.stem.weight"], state["model"]["decoder.stem.weight"])


def test_a_target_is_met(make, console):
    """Within 5 %, header included, from a weight that leaves a rate well above it."""
    trainer = make(
        **LONG | {"epochs": 100, "lr": 2e-2}, clip_targets=None, clip_weights="none", rate_weight=1e-2, target_bpp=1.4
    )
    trainer.fit(console)
    rates = trainer.logger.values["Train/Rate/bpp"]
    assert rates[1] > 1.5 and trainer.rate.total(trainer.rate.measure()) == pytest.approx(1.4, rel=0.05)
    assert rates[100] == pytest.approx(1.4, rel=0.05)


def test_the_controller():
    """On a rate W^-0.4, the logarithm of the error falls as exp(-0.4 x 75 x fraction of training)."""
    term = SimpleNamespace(loss=LossConfig(rate_weight=1.0, target_bpp=0.5), epochs=1000)
    weight, rate = 1.0, 1.0
    for _ in range(200):
        weight = RateTerm.steered(term, weight, rate, False)
        rate = weight**-0.4
    assert rate / 0.5 == pytest.approx(2 ** (2.718281828 ** (-0.4 * 75 * 0.2)), rel=1e-3)
    assert RateTerm.steered(term, weight, 7.0, True) == weight, "held while weights are rounded"
    assert RateTerm.steered(SimpleNamespace(loss=LossConfig(rate_weight=0.3), epochs=9), 0.3, 7.0, False) == 0.3


@pytest.mark.parametrize(("rate", "bound"), [(1e3, 100.0), (1e-3, 0.01)])
def test_a_target_out_of_reach_does_not_wind_up_the_weight(rate, bound):
    term, weight = SimpleNamespace(loss=LossConfig(rate_weight=0.3, target_bpp=0.5), epochs=10), 0.3
    for _ in range(10):
        weight = RateTerm.steered(term, weight, rate, False)
    assert weight == pytest.approx(0.3 * bound)


def test_the_rate_spares_the_clip_head_before_its_loss_starts(make, console):
    """It would shrink the head to zeros, which have no gradient."""
    trainer = make(epochs=30, pixel_loss_warmup_epochs=20, rate_weight=0.1)
    before = {name: p.clone() for name, p in trainer.model.clip_head.named_parameters()}
    for trainer.state.epoch in range(20):
        for batch in trainer.remaining_batches():
            trainer.step(batch)
    for name, parameter in trainer.model.clip_head.named_parameters():
        assert torch.equal(parameter, before[name]), name
