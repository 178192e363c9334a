"""What `--on-divergence rollback` does: back to the last good checkpoint, at half the learning rate."""

from __future__ import annotations

import contextlib

from hnerv.errors import Diverged, RunError
from hnerv.runs.checkpoint import load_checkpoint
from hnerv.tracking import NullLogger
from hnerv.tracking.console import Console
from hnerv.training.trainer import Trainer

FACTOR = 0.5


def fit(trainer: Trainer, logger: NullLogger, console: Console, report_to: str = "tensorboard") -> None:
    """`Trainer.fit`, begun again after each divergence as often as the trainer's limits allow. Closes the logger.

    Raises what `Trainer.fit` raises.
    """
    while True:
        try:
            with logger:
                return trainer.fit(logger, console)
        except Diverged as fault:
            allowed = trainer.limits.rollbacks
            if not allowed:
                raise
            if trainer.rollbacks >= allowed:
                raise RunError(f"{fault}; the run has already been rolled back {trainer.rollbacks} times") from fault
            logger = roll_back(trainer, fault, console, report_to)


def roll_back(trainer: Trainer, fault: Diverged, console: Console, report_to: str) -> NullLogger:
    """Takes the trainer and its logs back to latest.pt, and saves that with the new rate -> the logger of what follows.

    The record is written before latest.pt is, which knows where the logs then end: killed in between, the run
    diverges and is rolled back again as if for the first time.
    """
    number, wrong = trainer.rollbacks + 1, (trainer.epoch + 1, trainer.global_step)
    state = load_checkpoint(trainer.folder.latest)
    trainer.load_state(state)
    trainer.rollbacks, trainer.lr_scale = number, trainer.lr_scale * FACTOR
    back = {"epoch": trainer.epoch, "step": trainer.global_step}
    told = (
        f"rollback {number} of {trainer.limits.rollbacks}: {fault.cause}; back from epoch {wrong[0]} to the end of "
        f"step {back['step']} (epochs completed: {trainer.epoch}), learning rate x {trainer.lr_scale:g}"
    )
    logger = trainer.folder.reopen(state, report_to)
    detail = {"number": number, "from_epoch": wrong[0], "from_step": wrong[1], "lr_scale": trainer.lr_scale}
    with contextlib.ExitStack() as unless_saved:
        unless_saved.enter_context(logger)
        logger.record("rollback", {**back, "cause": fault.cause, "detail": detail})
        logger.text("Model/Info/rollback", told, trainer.global_step)
        console.print_line(told)
        console.set_step(trainer.global_step)
        trainer.logger = logger
        trainer.save()
        unless_saved.pop_all()
    return logger
