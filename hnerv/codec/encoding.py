"""From a trained model to a file: quantisation bits and steps, pruning, fine-tuning, target rate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.codec.allocation import SENSITIVITY, Bits, coarser, range_scales, sensitivity_scales
from hnerv.codec.file import coded_weights, encode_model, open_single_chunk
from hnerv.codec.finetune import Tuning, finetune
from hnerv.codec.format import write_bitstream
from hnerv.config import Config
from hnerv.data.store import FrameStore
from hnerv.errors import UserError
from hnerv.evaluation import eval_values, evaluate
from hnerv.metrics import bits_per_pixel
from hnerv.model import LATENTS, DualHeadHNeRV
from hnerv.quantise import SCHEMES, Scale, check_bits
from hnerv.runs import Chunk
from hnerv.runs.models import OpenedModel, open_checkpoint, open_run
from hnerv.runs.record import RunRecord

FINEST = Bits(weights=8, latents=8)
"""The bits that a target rate starts from; its steps are never finer."""

COARSEST = 64.0
"""The largest factor by which a target rate multiplies the steps."""

LEARNED = "learned"
"""The steps that a run with --rate-weight has learned."""


class Options(NamedTuple):
    """Options of the encoder. `target_bpp` in bits per pixel; 0: the bits decide.

    `steps` '' are the learned ones of a run that has some, otherwise those by sensitivity.
    """

    bits: Bits = FINEST
    steps: str = ""
    per_channel: bool = False
    prune: float = 0.0
    """Fraction of each weight tensor to set to 0, smallest magnitude first."""
    tuning: Tuning = Tuning(epochs=0)
    target_bpp: float = 0.0

    @classmethod
    def of(
        cls,
        weight_bits: int = 8,
        latent_bits: int = 8,
        steps: str = "",
        per_channel: bool = False,
        prune: float = 0.0,
        finetune_epochs: int = 0,
        finetune_lr: float = 2e-4,
        target_bpp: float = 0.0,
    ) -> Options:
        """From the flags of `hnerv encode`. Raises UserError for invalid values and combinations."""
        tuning = Tuning(finetune_epochs, finetune_lr)
        options = cls(Bits(weight_bits, latent_bits), steps, per_channel, prune, tuning, target_bpp)
        check_options(options)
        return options


def check_options(options: Options) -> None:
    """Raises UserError for invalid values and combinations, before anything is loaded."""
    check_bits(options.bits.weights, "--weight-bits")
    check_bits(options.bits.latents, "--latent-bits")
    kinds = (LEARNED, SENSITIVITY, *SCHEMES)
    if options.steps and options.steps not in kinds:
        raise UserError(f"--steps {options.steps!r} does not exist: choose from {', '.join(kinds)}")
    if options.per_channel and options.steps not in SCHEMES:
        raise UserError("--per-channel applies only to --steps symmetric and minmax: set one of them, or remove it")
    if not 0 <= options.prune < 1:
        raise UserError(f"--prune {options.prune} must be at least 0 and below 1")
    if options.prune and options.steps == "minmax":
        raise UserError(
            "--prune conflicts with --steps minmax, which has no level at 0: remove it, or set --steps sensitivity or "
            "symmetric"
        )
    tuning = options.tuning
    numbers = {"target-bpp": options.target_bpp, "finetune-epochs": tuning.epochs}
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise UserError(f"--{name} {value} must be finite and at least 0")
    if not 0 < tuning.lr < math.inf:
        raise UserError(f"--finetune-lr {tuning.lr} must be finite and above 0")
    if options.target_bpp and options.bits != FINEST:
        raise UserError("--target-bpp chooses the bits itself: remove --weight-bits and --latent-bits")
    if options.target_bpp and options.steps in SCHEMES:
        raise UserError(
            f"--target-bpp scales learned steps or those by sensitivity, not --steps {options.steps}: remove one of "
            "them"
        )


def progress_of(trained: OpenedModel) -> dict[str, int]:
    """How far a model was trained, to be noted in the file."""
    return {"epoch": trained.epoch, "step": trained.step}


def encode_run(
    model: DualHeadHNeRV,
    record: RunRecord,
    options: Options,
    store: FrameStore | None,
    note: dict,
    progress: bool = False,
    learned: dict[str, Scale] | None = None,
) -> bytes:
    """A file of one chunk with a trained model. Fine-tuning needs `store` and changes `model`; `note` is stored.

    `learned` are {tensor: its steps} of a run with --rate-weight. Raises UserError where the target rate cannot be
    reached, or the options do not suit the run.
    """
    config = record.config
    options = resolved(options, bool(learned))
    model.embedding.discard_encoder()

    def encoded(scales: dict[str, Scale | None]) -> bytes:
        return encode_model(coded_weights(model), scales, record, {**note, **_note_of(options)})

    pruned = prune(model, options.prune)
    if options.steps == LEARNED:
        scales = {name: learned[name] for name in coded_weights(model)}
    else:
        scales = first_scales(model, options, config)
    if options.target_bpp:
        scales = scaled_to_rate(coded_weights(model), scales, options.target_bpp, model, encoded)
    if options.tuning.epochs:
        finetune(model, scales, pruned, store, config, options.tuning, progress)
        if options.target_bpp:  # the tuned weights have another entropy: meet the rate again
            scales = scaled_to_rate(coded_weights(model), scales, options.target_bpp, model, encoded)
    return encoded(scales)


def resolved(options: Options, learned: bool) -> Options:
    """The options with the kind of steps that they leave open; `learned`: the run has some. Raises UserError."""
    if options.steps == LEARNED and not learned:
        raise UserError(
            "--steps learned needs a run that was trained with --rate-weight: train one, or pass --steps sensitivity"
        )
    steps = options.steps or (LEARNED if learned else SENSITIVITY)
    if steps == LEARNED and options.bits != FINEST:
        raise UserError(
            "--weight-bits and --latent-bits do not apply to learned steps: remove them, or pass --steps sensitivity"
        )
    return options._replace(steps=steps)


def encode_chunk(
    chunk: Chunk, options: Options, device: torch.device, file: Path, place: tuple[str, str], measure: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Write a chunk of a run as a file -> {Eval/ tag: value} before and after, of the file as it is read again.

    `place` are new locations of video and targets; they are read only with `measure` or fine-tuning.
    """
    if measure or options.tuning.epochs:
        opened = open_run(chunk.path, device, data=place[0], clip_targets=place[1])
        store = opened.store
    else:
        opened, store = open_checkpoint(chunk.path), None
        opened.model.to(device, memory_format=torch.channels_last)
    resolved(options, bool(opened.learned))  # refuses options that do not suit the run, before it is evaluated
    planes = opened.planes if measure else None
    before = eval_values(evaluate(opened.model, store, progress=True, planes=planes)) if measure else {}
    note = progress_of(opened)
    coded = encode_run(opened.model, opened.record, options, store, note, progress=True, learned=opened.learned)
    write_bitstream(file, [coded])
    if not measure:
        return {}, {}
    model = open_single_chunk(file).model().to(device)
    return before, eval_values(evaluate(model, store, progress=True, planes=planes))


@torch.no_grad()
def prune(model: DualHeadHNeRV, share: float) -> dict[str, Tensor]:
    """Sets the smallest `share` of every weight matrix and kernel to 0; returns {tensor: mask of the zeros}."""
    masks = {}
    for name, weight in model.named_parameters() if share else ():
        if weight.dim() > 1 and not LATENTS.fullmatch(name):
            count = max(1, math.ceil(share * weight.numel()))
            # weights equal to the threshold are pruned too, so that the choice does not depend on their order
            masks[name] = weight.abs() <= weight.abs().flatten().kthvalue(count).values
            weight.masked_fill_(masks[name], 0)
    return masks


def first_scales(model: DualHeadHNeRV, options: Options, config: Config) -> dict[str, Scale | None]:
    """{tensor: scale} before fine-tuning, None for half floats."""
    weights = coded_weights(model)
    bits = FINEST if options.target_bpp else options.bits
    if options.steps == SENSITIVITY:
        return sensitivity_scales(model, weights, bits, config.loss.clip_loss_weight)
    return range_scales(weights, bits, options.steps, options.per_channel)


def scaled_to_rate(
    weights: dict[str, Tensor],
    scales: dict[str, Scale | None],
    target_bpp: float,
    model: DualHeadHNeRV,
    encoded: Callable[[dict[str, Scale | None]], bytes],
) -> dict[str, Scale | None]:
    """All steps times the smallest factor, 1 to COARSEST, that gives a file of at most `target_bpp`. Raises UserError.

    Bisection on a logarithmic scale, to a factor of 1.002: the rate falls as the steps grow.
    """
    scene = model.scene

    def rate(factor: float) -> float:
        size = len(encoded(coarser(weights, scales, factor)))
        return bits_per_pixel(size, scene.frames, scene.height, scene.width)

    if rate(1.0) <= target_bpp:
        return coarser(weights, scales, 1.0)
    low, high = 1.0, COARSEST
    if (least := rate(high)) > target_bpp:
        raise UserError(
            f"--target-bpp {target_bpp} is below {least:.4f} bpp, the lowest rate of this model: raise it, or train "
            "with a smaller --modelsize"
        )
    # Invariant: rate(low) > target_bpp >= rate(high). At high rates, twice the step saves one bit per parameter,
    # whatever the step is: the rate is linear in the logarithm of the factor, hence the geometric mean.
    while high / low > 1.002:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if rate(middle) > target_bpp else (low, middle)
    if high > 8:
        logging.getLogger("hnerv").warning(
            "the quantisation steps are %.0f times as large as at first: expect poor image quality", high
        )
    return coarser(weights, scales, high)


def _note_of(options: Options) -> dict[str, object]:
    bits = {"weight_bits": options.bits.weights, "latent_bits": options.bits.latents}
    note = {
        **({} if options.steps == LEARNED else bits),
        "steps": options.steps,
        "per_channel": options.per_channel,
        "prune": options.prune,
        "finetune_epochs": options.tuning.epochs,
    }
    return note | {"target_bpp": options.target_bpp} if options.target_bpp else note
