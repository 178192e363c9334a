"""Bits, steps, pruning, fine-tuning and a target rate, on a run of 40 frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from hnerv.codec import CodedChunk, Options, check_options, coded_weights, encode_run, open_single_chunk
from hnerv.codec import encoding as encoding_module
from hnerv.codec.allocation import Bits, coarser, range_scales, sensitivity_scales
from hnerv.codec.bitstream import LATENTS
from hnerv.codec.encoding import prune, resolved
from hnerv.codec.finetune import Tuning, finetune
from hnerv.data.batches import Batches, clip_loss_of
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun, evaluate, open_run
from hnerv.quantise import Scale, from_logs

PIXELS = 40 * 32 * 64


class Made(NamedTuple):
    """A file, and the mean PSNR of its frames in dB."""

    chunk: CodedChunk
    psnr: float

    @property
    def bpp(self) -> float:
        return 8 * self.chunk.path.stat().st_size / PIXELS


def test_pruned_and_tuned_weights_of_convnext(run_of, tmp_path):
    """Steps by sensitivity, then fine-tuned: zeros stay, the picture improves."""
    found = {}
    for epochs in (0, 4):
        tuning = Tuning(epochs, 1e-3)
        run, path = open_run(run_of("convnext"), torch.device("cpu")), tmp_path / f"{epochs}.hnerv"
        path.write_bytes(
            encode_run(run.model, run.record, Options(Bits(5, 5), prune=0.3, tuning=tuning), run.store, {})
        )
        found[epochs] = open_single_chunk(path).model()
        for name, mask in prune(open_run(run_of("convnext"), torch.device("cpu")).model, 0.3).items():
            assert (found[epochs].state_dict()[name][mask] == 0).all(), name
    before, after = (evaluate(model, run.store).train.psnr_frame.mean() for model in found.values())
    assert after > before


@pytest.fixture
def opened(long_run) -> OpenedRun:
    return open_run(long_run, torch.device("cpu"))


@pytest.fixture(scope="module")
def make(long_run, tmp_path_factory) -> Callable[..., Made]:
    """make(**options) -> the file of the run of 40 frames under them, made once for each."""
    folder, made = tmp_path_factory.mktemp("encoded"), {}

    def build(**options) -> Made:
        key = str(sorted(options.items()))
        if key not in made:
            run = open_run(long_run, torch.device("cpu"))
            path = folder / f"{len(made)}.hnerv"
            torch.manual_seed(len(made))  # nothing may depend on the state that the caller left
            path.write_bytes(encode_run(run.model, run.record, Options(**options), run.store, {}))
            chunk = open_single_chunk(path)
            made[key] = Made(chunk, evaluate(chunk.model(), run.store).train.psnr_frame.mean().item())
        return made[key]

    return build


@pytest.fixture(scope="module")
def float_psnr(long_run) -> float:
    run = open_run(long_run, torch.device("cpu"))
    return evaluate(run.model, run.store).train.psnr_frame.mean().item()


def test_eight_bits_cost_next_to_nothing(make, float_psnr):
    assert float_psnr > 28
    assert make().psnr > float_psnr - 0.1
    assert make(bits=Bits(16, 16)).psnr == pytest.approx(float_psnr, abs=0.01)


def test_fewer_bits_are_fewer_bytes_and_a_poorer_picture(make):
    found = [make(bits=Bits(bits, bits)) for bits in (8, 6, 4)]
    sizes, quality = [m.chunk.size for m in found], [m.psnr for m in found]
    assert sizes == sorted(sizes, reverse=True) and quality == sorted(quality, reverse=True)
    assert make(bits=Bits(16, 16)).chunk.size > sizes[0]
    weights = make(bits=Bits(4, 8)).chunk.size, make(bits=Bits(8, 4)).chunk.size
    assert all(sizes[2] < size < sizes[0] for size in weights)


def test_half_floats_take_sixteen_bits_each(make, opened):
    chunk = make(bits=Bits(16, 16)).chunk
    opened.model.embedding.discard_encoder()
    for name, value in chunk.model().state_dict().items():
        assert torch.equal(value, coded_weights(opened.model)[name].half().float())
    for part in chunk.parts()[1:]:
        tensors = next(len(s.tensors) for s in chunk.sections if s.name == part.name)
        assert part.size == 2 * part.parameters + tensors


def test_sensitivity_spends_as_many_bits_as_a_range_per_channel(opened):
    opened.model.embedding.discard_encoder()
    weights, bits = coded_weights(opened.model), Bits(6, 6)

    def total(scales: dict[str, Scale]) -> float:
        """Bits up to a constant: minus the logarithm of the step, of every number."""
        return -sum(weights[name].numel() * s.step.log2().mean().item() for name, s in scales.items())

    found = sensitivity_scales(opened.model, weights, bits, 0.01)
    budget = range_scales(weights, bits, "symmetric", per_channel=True)
    assert found.keys() == weights.keys() and all(s.step.shape == (1,) for s in found.values())
    assert total(found) == pytest.approx(total(budget), rel=0.02)
    steps = {name: s.step.item() / budget[name].step.mean().item() for name, s in found.items()}
    assert max(steps.values()) > 1.5 * min(steps.values())


@pytest.mark.parametrize("bits", [6, 8])
def test_sensitivity_is_no_worse_than_a_range_at_no_more_bytes(make, bits):
    """At the rate of the symmetric range per tensor, or below."""
    symmetric = make(bits=Bits(bits, bits), steps="symmetric")
    found = make(target_bpp=symmetric.bpp)
    assert found.bpp <= symmetric.bpp
    assert found.psnr >= symmetric.psnr


@pytest.mark.parametrize("steps", ["sensitivity", "symmetric", "minmax"])
def test_the_file_notes_how_it_was_made(make, steps):
    note = {"steps": steps, "weight_bits": 5, "latent_bits": 6, "finetune_epochs": 0}
    assert make(bits=Bits(5, 6), steps=steps).chunk.encoder.items() >= note.items()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_pruned_weights_are_zero_in_the_file(make, opened, share):
    chunk = make(prune=share).chunk
    masks = prune(opened.model, share)
    decoded = chunk.model().state_dict()
    assert masks and not any(LATENTS.fullmatch(name) or decoded[name].dim() == 1 for name in masks)
    for name, mask in masks.items():
        assert mask.float().mean() >= share and mask.sum() <= math.ceil(share * mask.numel()) + 2
        assert (decoded[name][mask] == 0).all()
        assert opened.model.get_parameter(name)[~mask].abs().min() > 0


def test_zeros_are_nearly_free(make):
    """With 90 % zeros, the other values and their positions take less than half the bytes."""
    full, pruned = ({part.name: part.size for part in made.chunk.parts()} for made in (make(), make(prune=0.9)))
    assert pruned["decoder.stages.2"] < 0.5 * full["decoder.stages.2"]


def test_fine_tuning_regains_quality(make):
    before, tuned = make(bits=Bits(4, 4)), make(bits=Bits(4, 4), tuning=Tuning(4, 1e-3))
    assert tuned.psnr > before.psnr + 0.5 and tuned.chunk.size < 1.1 * before.chunk.size
    assert tuned.chunk.encoder["finetune_epochs"] == 4


def test_pruned_weights_stay_zero_through_fine_tuning(make, opened):
    masks = prune(opened.model, 0.3)
    tuned = make(prune=0.3, tuning=Tuning(2, 1e-3))
    decoded = tuned.chunk.model().state_dict()
    assert all((decoded[name][mask] == 0).all() for name, mask in masks.items())
    assert tuned.psnr > make(prune=0.3).psnr


def test_fine_tuning_uses_the_clip_loss_of_the_run(run_of):
    """With `motion` the differences between near frames fit better afterwards than with the cosine alone."""

    def left(name: str) -> float:
        run = open_run(run_of("grid"), torch.device("cpu"))
        changes = {"clip_loss": name, "clip_loss_weight": 1.0, "precision": "fp32"}
        config = run.record.config.replaced(changes)
        scales = sensitivity_scales(run.model, coded_weights(run.model), Bits(5, 5), 1.0)
        finetune(run.model, scales, {}, run.store, config, Tuning(60, 1e-2))
        batches = Batches(run.store, run.model, config.replaced({"clip_loss": "motion"}))
        losses = []
        with torch.no_grad():
            for batch in batches.epoch(torch.Generator().manual_seed(0)):
                found = run.model(batch.times, embedded=batch.embedded).clip
                losses.append(clip_loss_of("motion", found, batch) - clip_loss_of("cosine", found, batch))
        return torch.stack(losses).mean().item()

    assert left("motion") < 0.97 * left("cosine")


def test_fine_tuning_is_reproducible(long_run):
    """Whatever random numbers were drawn before."""
    files = []
    for seed in (1, 2):
        run = open_run(long_run, torch.device("cpu"))
        torch.manual_seed(seed)
        options = Options(Bits(4, 4), tuning=Tuning(1, 1e-3))
        files.append(encode_run(run.model, run.record, options, run.store, {}))
    assert files[0] == files[1]


@pytest.mark.parametrize("share", [0.8, 0.5, 0.4])
def test_a_target_rate_is_met(make, share):
    target = share * make().bpp
    found = make(target_bpp=target)
    assert 0.95 * target <= found.bpp <= target
    assert found.chunk.encoder["target_bpp"] == target


def test_a_target_rate_is_met_after_fine_tuning(make):
    target = 0.5 * make().bpp
    found = make(target_bpp=target, tuning=Tuning(3, 1e-3))
    assert 0.95 * target <= found.bpp <= target
    assert found.psnr > make(target_bpp=target).psnr


def test_a_generous_rate_leaves_eight_bits(make):
    assert make(target_bpp=100.0).chunk.size <= make().chunk.size + 40
    assert make(target_bpp=100.0).psnr == make().psnr


def test_an_unreachable_rate_is_refused(opened):
    with pytest.raises(UserError, match="--target-bpp 0.01 is below 0.* bpp, the lowest rate of this model"):
        encode_run(opened.model, opened.record, Options(target_bpp=0.01), None, {})


def test_very_coarse_steps_are_worth_a_warning(opened, caplog, monkeypatch):
    monkeypatch.setattr(encoding_module, "COARSEST", 64.0)
    sizes = []

    def size_of(scales: dict[str, Scale]) -> bytes:
        sizes.append(scales)
        return bytes(1000 if scales["decoder.stem.weight"].step > coarse else 100_000)

    weights = coded_weights(opened.model)
    first = sensitivity_scales(opened.model, weights, Bits(8, 8), 0.01)
    coarse = 12 * first["decoder.stem.weight"].step
    found = encoding_module.scaled_to_rate(weights, first, 0.2, opened.model, size_of)
    assert found["decoder.stem.weight"].step > coarse and "times as large as at first" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(Bits(1, 8)), "--weight-bits 1 must be 2 to 8"),
        (Options(Bits(8, 9)), "--latent-bits 9 must be 2 to 8"),
        (Options(per_channel=True), "--per-channel applies only to --steps symmetric and minmax"),
        (Options(prune=1.0), "--prune 1.0 must be"),
        (Options(prune=math.nan), "--prune nan must be"),
        (Options(prune=0.5, steps="minmax"), "minmax, which has no level at 0"),
        (Options(target_bpp=math.nan), "--target-bpp nan "),
        (Options(target_bpp=0.1, steps="minmax"), "--target-bpp scales .*, not --steps minmax"),
        (Options(Bits(6, 8), target_bpp=0.1), "--target-bpp"),
        (Options(tuning=Tuning(-1)), "--finetune-epochs -1 "),
        (Options(tuning=Tuning(1, 0.0)), "above 0"),
    ],
)
def test_options_that_make_no_file(options, words):
    with pytest.raises(UserError, match=words):
        check_options(options)


@pytest.fixture(scope="module")
def encode_rated(rated, tmp_path_factory) -> Callable[..., CodedChunk]:
    """encode_rated(**options) -> the file of a run with learned steps under them."""

    def build(targets: str = "", **options) -> CodedChunk:
        run, path = (
            open_run(rated, torch.device("cpu"), clip_targets=targets),
            tmp_path_factory.mktemp("a") / "a.hnerv",
        )
        path.write_bytes(encode_run(run.model, run.record, Options(**options), run.store, {}, learned=run.learned))
        return open_single_chunk(path)

    return build


def test_learned_steps_are_the_default_and_can_be_replaced(encode_rated):
    learned, by_sensitivity = encode_rated(), encode_rated(steps="sensitivity")
    assert (learned.encoder["steps"], by_sensitivity.encoder["steps"]) == ("learned", "sensitivity")
    assert encode_rated(steps="learned").path.read_bytes() == learned.path.read_bytes()
    assert learned.size < 0.8 * by_sensitivity.size


def test_a_run_without_a_rate_has_no_learned_steps(opened):
    with pytest.raises(UserError, match="--steps learned needs a run that was trained with --rate-weight"):
        encode_run(opened.model, opened.record, Options(steps="learned"), None, {})


@pytest.mark.parametrize("steps", ["", "learned"])
def test_bits_are_not_ignored(steps):
    """Learned steps leave nothing for them to choose."""
    with pytest.raises(UserError, match="--latent-bits do not apply to learned steps: remove them, or"):
        resolved(Options(Bits(8, 6), steps), learned=True)
    assert resolved(Options(Bits(8, 6), "sensitivity"), learned=True).bits == Bits(8, 6)


def test_a_target_rate_scales_learned_steps(encode_rated):
    full = 8 * encode_rated().size / (12 * 32 * 64)
    found = encode_rated(target_bpp=0.9 * full)
    assert 8 * found.size / (12 * 32 * 64) <= 0.9 * full and found.encoder["steps"] == "learned"


def test_a_generous_target_rate_leaves_learned_steps(encode_rated):
    first, second = (encode_rated(**options).model().state_dict() for options in ({}, {"target_bpp": 100.0}))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert encode_rated(target_bpp=100.0).size < encode_rated().size + 20


@pytest.mark.parametrize("factor", [1.0, 1.5, 7.0])
def test_no_step_becomes_finer(factor):
    """Also of a tensor with a single level besides 0."""
    weights = {"rgb_head.out.bias": torch.tensor([0.5, -0.5, 0.0])}
    scales = {"rgb_head.out.bias": from_logs(torch.tensor([-1.0]), None)}
    assert coarser(weights, scales, factor)["rgb_head.out.bias"].step == 0.5


def test_fine_tuning_keeps_learned_steps(encode_rated):
    tuned = encode_rated(tuning=Tuning(1, 1e-4))
    assert tuned.encoder["steps"] == "learned" and tuned.size == pytest.approx(encode_rated().size, rel=0.1)


def test_learned_steps_of_a_model_without_its_head(encode_rated):
    """As with --clip-targets none."""
    full, found = encode_rated().model().state_dict(), encode_rated("none").model().state_dict()
    assert found.keys() == {name for name in full if not name.startswith("clip_head")}
    assert all(torch.equal(full[name], value) for name, value in found.items())
