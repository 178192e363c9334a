"""The run around the training of one network: checks, resuming, rollback, errors of the device."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.config import Config, LogConfig
from hnerv.data.store import Material, training_store
from hnerv.errors import Diverged, RunError, UserError, first_line, is_gpu_lost, is_out_of_memory
from hnerv.files import sha256_of
from hnerv.metrics import SSIM_WINDOW, ms_ssim_scales
from hnerv.model import LATENTS, DualHeadHNeRV
from hnerv.presets import Choice
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.runs.folder import RunFolder
from hnerv.runs.record import RunRecord
from hnerv.tracking import NullLogger
from hnerv.tracking.console import Console
from hnerv.training.pages import announce
from hnerv.training.signals import Limits, StopSignals
from hnerv.training.trainer import Trainer

MAX_SEED = 1 << 32
LR_FACTOR = 0.5
"""A rollback multiplies the learning rate by this."""


class RuntimeOptions(NamedTuple):
    """Options that do not affect the identity of a run. `gpu_share` is its part of a GPU that several runs share.

    `on_save` is called before the first step and each time latest.pt has been written.
    """

    device: torch.device
    log: LogConfig = LogConfig()
    limits: Limits = Limits()
    compile: bool = False
    gpu_share: float = 1.0
    on_save: Callable[[Trainer], None] = lambda trainer: None


class ChunkRun(NamedTuple):
    """One network to train. `frames` is the number of frames that were planned, 0 for any.

    `initial` is a checkpoint that a fresh run takes its weights from; `like` the record of a run with the same targets.
    """

    choice: Choice
    folder: RunFolder
    frames: int = 0
    initial: Path | None = None
    like: RunRecord | None = None

    @property
    def config(self) -> Config:
        """The configuration with the targets that this run, or `like`, found when it first started."""
        config = self.folder.pinned(self.choice.config)
        return self.like.pinned(config) if self.like else config


class Result(NamedTuple):
    """A run trained to its end: its record and last evaluation, {Eval/ tag: value}.

    `stop` is a stop request received after the last epoch; the caller handles it.
    """

    record: RunRecord
    values: dict[str, float]
    stop: StopSignals | None = None


def fit(
    chunk: ChunkRun, material: Material, model: DualHeadHNeRV, optimizer: torch.optim.Optimizer, options: RuntimeOptions
) -> Result:
    """Trains `model`, or resumes where the folder of the chunk holds a checkpoint of the same run.

    Raises UserError before anything is written, RunError when the run cannot continue, Interrupted when it was stopped.
    """
    config, folder, device = chunk.choice.config, chunk.folder, options.device
    record = RunRecord.of(chunk.choice.preset, config, material, model)
    if chunk.initial:
        record = dataclasses.replace(record, initial=initialise_from(model, chunk.initial))
    precision = "bf16" if config.train.in_bf16(device.type) else "fp32"
    print(announce(record, device), flush=True)
    with folder.locked(), compilation_errors(options.compile):
        trainer = Trainer(
            model,
            optimizer,
            training_store(material, config, device, options.gpu_share),
            config,
            folder,
            record,
            log=options.log,
            limits=options.limits,
            compile=options.compile,
            on_save=options.on_save,
        )
        checkpoint = folder.saved_state(record)
        if checkpoint:
            trainer.load(checkpoint)
            print(f"resumed  {trainer.state.epoch} of {config.train.epochs} epochs already done", flush=True)
            before = folder.last_precision()
            if trainer.state.epoch < config.train.epochs and before not in (None, precision):
                print(f"resumed  in {precision}, previously {before}: --precision auto follows the device", flush=True)
        options.on_save(trainer)
        with Console(config.train.epochs, trainer.steps_per_epoch, trainer.global_step) as console:
            logger = folder.claim(record, checkpoint, device, precision, options.log.report_to)
            stop = fit_with_rollbacks(trainer, logger, console, options.log.report_to)
    return Result(record, trainer.state.evaluation, stop)


def check_settings(config: Config, log: LogConfig) -> None:
    """Validates settings before anything is written to the run folder. Raises UserError."""
    if config.train.seed >= MAX_SEED:
        raise UserError(f"--seed {config.train.seed} must be below {MAX_SEED}: choose a smaller one")
    if config.model.unseen == "encode" and config.model.embedding != "encoder":
        raise UserError(
            f"--unseen encode requires --embedding encoder, not {config.model.embedding}: change one of them"
        )
    if log.report_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError("--report-to wandb needs wandb, which is not installed: pip install wandb, or remove the flag")


def check_material(chunk: ChunkRun, material: Material) -> None:
    """Raises UserError for frames on which MS-SSIM is not defined, and for another number of them than planned."""
    scene, video = material.scene, chunk.choice.config.video
    if not ms_ssim_scales(scene.height, scene.width):
        raise UserError(
            f"frames of {scene.height}x{scene.width} are too small for MS-SSIM, which needs "
            f"{SSIM_WINDOW}x{SSIM_WINDOW} pixels: choose a larger --crop or --resize"
        )
    if chunk.frames and scene.frames != chunk.frames:
        raise UserError(
            f"{video.data} has {scene.frames} frames in --frames {video.frames}, but {chunk.frames} were planned: "
            "repair the file, or pass an intact range under another --exp-id"
        )


@torch.no_grad()
def initialise_from(model: DualHeadHNeRV, checkpoint: Path) -> dict[str, str]:
    """Copies the weights of the run of the previous chunk into `model` -> the entry `initial` of the record.

    All knots of a grid start as the last knot of the other grid, which represents the frame before the first one here.
    Weights of another shape keep their values. Raises UserError.
    """
    theirs = load_checkpoint(checkpoint)["model"]
    for name, value in model.state_dict().items():
        if (source := theirs.get(name)) is not None:
            _copy(name, value, source)
    return {"checkpoint": checkpoint.parent.parent.name, "sha256": sha256_of(checkpoint)}


def _copy(name: str, ours: Tensor, theirs: Tensor) -> None:
    if LATENTS.fullmatch(name):
        if ours.shape[1:] == theirs.shape[1:]:
            ours.copy_(theirs[-1:].expand_as(ours))
    elif ours.shape == theirs.shape:
        ours.copy_(theirs)


# Divergence


def fit_with_rollbacks(
    trainer: Trainer, logger: NullLogger, console: Console, report_to: str = "tensorboard"
) -> StopSignals | None:
    """`Trainer.fit`, restarted after each divergence as often as the limits allow. Closes the logger."""
    while True:
        try:
            with logger:
                trainer.log_to(logger)
                return trainer.fit(console)
        except Diverged as fault:
            allowed = trainer.limits.rollbacks
            if not allowed:
                raise
            if trainer.state.rollbacks >= allowed:
                done = trainer.state.rollbacks
                raise RunError(f"{fault}; the run has already been rolled back {done} times") from fault
            logger = roll_back(trainer, fault, console, report_to)


def roll_back(trainer: Trainer, fault: Diverged, console: Console, report_to: str) -> NullLogger:
    """Reset the trainer and its logs to latest.pt, with a lower learning rate -> the logger for the following steps.

    `Trainer.fit` then saves that state. A run that is killed before it does diverges again and is rolled back again.
    """
    state = trainer.state
    number, wrong, scale = state.rollbacks + 1, (state.epoch + 1, trainer.global_step), state.lr_scale * LR_FACTOR
    checkpoint = load_checkpoint(trainer.folder.latest)
    checkpoint["progress"] |= {"rollbacks": number, "lr_scale": scale}
    trainer.load(checkpoint)
    epoch, step = trainer.state.epoch, trainer.global_step
    message = (
        f"rollback {number} of {trainer.limits.rollbacks}: {fault.cause}; back from epoch {wrong[0]} to the end of "
        f"step {step} (epochs completed: {epoch}), learning rate x {scale:g}"
    )
    logger = trainer.folder.reopen(checkpoint, report_to)
    detail = {"number": number, "from_epoch": wrong[0], "from_step": wrong[1], "lr_scale": scale}
    with contextlib.ExitStack() as on_error:
        on_error.enter_context(logger)
        logger.record("rollback", {"epoch": epoch, "step": step, "cause": fault.cause, "detail": detail})
        logger.text("Model/Info/rollback", message, step)
        console.print_line(message)
        console.set_step(step)
        on_error.pop_all()
    return logger


# Errors of the device


@contextlib.contextmanager
def device_errors(config: Config, latest: Path) -> Iterator[None]:
    """Turns an error of the GPU in the block into a RunError. Nothing is saved: its memory may hold half a step."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise RunError(
                f"out of GPU memory ({first_line(error)}): pass {_smaller(config)}, under another --exp-id; "
                f"or stop other programs on the GPU and run the same command to {_resume(latest)}"
            ) from error
        if is_gpu_lost(error):
            raise RunError(
                f"the GPU failed ({first_line(error)}): check nvidia-smi, then run the same command, with another "
                f"--device if needed, to {_resume(latest)}"
            ) from error
        raise


def _resume(latest: Path) -> str:
    return f"resume from {latest}" if latest.exists() else "start over, since there is no checkpoint yet"


def _smaller(config: Config) -> str:
    """The setting that takes the most memory, halved."""
    batch, model = config.train.batch_size, config.model
    if batch > 1:
        return f"--batch-size {batch // 2} instead of {batch}"
    size = f"--dec-width {max(model.dec_width // 2, 1)}" if model.dec_width else f"--modelsize {model.modelsize / 2:g}"
    was = model.dec_width or f"{model.modelsize:g}"
    return f"{size} instead of {was}, or a --resize of half the height and width"


@contextlib.contextmanager
def compilation_errors(compile: bool) -> Iterator[None]:
    """Turns an error of torch.compile in the block, most often a missing compiler, into a RunError."""
    if not compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    print("compiling the network during the first steps (about a minute)", flush=True)
    try:
        yield
    except TorchDynamoException as error:
        cause = " ".join(str(error).split("\n")[:2])  # the backend and the reason; advice and a stack follow
        raise RunError(
            f"--compile: torch cannot compile the network on this machine ({cause}): install a C++ compiler (g++) and "
            "the Python headers, or remove --compile"
        ) from error
