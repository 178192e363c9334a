"""The training loop: epochs, checks, logs, evaluations, checkpoints. S steps of an epoch, G parameter groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
from torch import Tensor

from hnerv.config import Config, LogConfig, parse_steps
from hnerv.data.batches import Batches
from hnerv.data.store import Batch, FrameStore
from hnerv.errors import Diverged, UserError
from hnerv.evaluation import eval_values, evaluate, load_weights, log_pictures, log_projector, log_report
from hnerv.evaluation.measure import Report
from hnerv.model import DualHeadHNeRV
from hnerv.runs.checkpoint import save_checkpoint
from hnerv.runs.folder import RunFolder
from hnerv.runs.record import RunRecord
from hnerv.schedule import parse_lr
from hnerv.tracking import NullLogger
from hnerv.tracking.console import Console
from hnerv.training.capture import Graphs
from hnerv.training.limits import COLLAPSE, Limits
from hnerv.training.profiling import StepProfiler
from hnerv.training.report import log_start
from hnerv.training.signals import StopSignals
from hnerv.training.stability import extended, stability_values
from hnerv.training.step import COLUMNS, Kind, TrainingStep
from hnerv.training.timing import Clock
from hnerv.training.values import (
    Objective,
    clip_values,
    clipping_values,
    log_histograms,
    loss_values,
    objective_of,
    parameter_values,
)

COLUMN_TAGS = (
    *(f"Train_Batch/{name}" for name in ("PSNR", *COLUMNS[1:4])), *(f"Train/Gradients/{name}" for name in COLUMNS[4:])
)  # fmt: skip


class Trainer:
    """Fits `model` to the frames of `store`. Randomness comes from the seed and the epoch alone."""

    def __init__(
        self, model: DualHeadHNeRV, store: FrameStore, config: Config, folder: RunFolder, record: RunRecord,
        log: LogConfig = LogConfig(), limits: Limits = Limits(),  # noqa: B008 (they are frozen)
    ) -> None:  # fmt: skip
        self.log, self.limits, self.clock = log, limits, Clock(store.device)
        self.model = model.to(store.device, memory_format=torch.channels_last)
        self.store, self.config, self.folder, self.record = store, config, folder, record
        self.logger = NullLogger()
        self.lr_factor = parse_lr(config.train.lr_type)
        self.batches = Batches(store, model, config)
        self.training_step = TrainingStep(self.model, self.batches, config, self.clock)
        self.parts, self.optimizer = self.training_step.parts, self.training_step.optimizer
        self.captures = (
            store.device.type == "cuda" and store.resident and model.embedding.at_any_time and not log.profile
        )
        """Whether steps are replayed as CUDA graphs. Those of `encoder` are not: a frame takes it ten times as long."""
        self.graphs: Graphs | None = None
        self.steps_per_epoch = len(self.batches.sizes)
        self.epoch = self.step_in_epoch = 0
        self.times: list[float] = []
        self.evaluation: dict[str, float] = {}
        self.best = self.peak = float("-inf")
        self.rollbacks, self.lr_scale = 0, 1.0
        self.saved_at = float("-inf")
        self.codes_step = -1
        self.asked: StopSignals | None = None
        """A wish to stop that came when there was nothing left to train."""
        self.saved: Callable[[Trainer], None] = lambda trainer: None
        self.window = torch.zeros(0, dtype=torch.float64)

    def fit(self, logger: NullLogger, console: Console) -> None:
        """Trains from where it is to the last epoch, and evaluates that.

        Raises Interrupted after SIGINT, SIGTERM or the deadline, Diverged where training goes wrong; both leave a
        checkpoint, the second one of before.
        """
        self.logger, epochs = logger, self.config.train.epochs
        log_start(logger, self.model, self.record, self.folder.path, self.log.graph)
        if self.limits.rollbacks and not self.folder.latest.exists():
            self.save()
        with StopSignals(self.limits.deadline) as stop, self.profiler(lambda line: console.say(line)) as profiler:
            while self.epoch < epochs:
                start = time.perf_counter()
                self.begin_epoch()
                while self.step_in_epoch < self.steps_per_epoch:
                    profiler.before(self.global_step)
                    self.advance()
                    console.step()
                    if stop.asked:
                        self.stop(stop)
                values = self.close_epoch(start)
                console.epoch(self.epoch, values, time.perf_counter() - start)
                if self.due(self.config.train.eval_freq):
                    self.evaluate()
                    console.evaluation(self.epoch, self.evaluation, self.config.model.unseen)
                if stop.asked and self.epoch < epochs:
                    self.stop(stop)
                if self.checkpoint_due():
                    self.save()
            self.asked = stop if stop.asked else None

    @property
    def global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def objective(self) -> Objective:
        """Of this epoch."""
        return objective_of(self.config.loss, self.epoch, self.model.clip_head is not None)

    def profiler(self, say: Callable[[str], None]) -> StepProfiler:
        """Of the steps that --profile names."""
        return StepProfiler(parse_steps(self.log.profile), self.folder.path / "profile", self.store.device, say)

    def learning_rate(self, step: int) -> float:
        """Of a step of the run, counted from 0."""
        progress = step / (self.config.train.epochs * self.steps_per_epoch)
        return self.config.train.lr * self.lr_factor(progress) * self.lr_scale

    def schedule(self, steps: range) -> Tensor:
        """(steps, G + 1): the learning rate of each parameter group, then lambda, of steps of this epoch."""
        factors, weight = [group["lr_factor"] for group in self.optimizer.param_groups], self.objective.weight
        return torch.tensor([[self.learning_rate(step) * f for f in factors] + [weight] for step in steps])

    def due(self, every: int) -> bool:
        """Whether the epoch just closed is one of `every` so many (0: of none), or the last."""
        return self.epoch == self.config.train.epochs or (every > 0 and self.epoch % every == 0)

    def checkpoint_due(self) -> bool:
        """Whether latest.pt is to be written after the epoch just closed."""
        train = self.config.train
        recent = time.monotonic() - self.saved_at < train.checkpoint_seconds
        return self.due(train.checkpoint_freq) and (self.epoch == train.epochs or not recent)

    def draw(self) -> torch.Generator:
        """Of all that is random in this epoch."""
        return torch.Generator().manual_seed(self.config.train.seed * 1_000_003 + self.epoch)

    def remaining_batches(self) -> Iterator[Batch]:
        """What is left of the epoch, in an order drawn from seed and epoch."""
        return self.batches.epoch(self.draw(), self.step_in_epoch)

    def begin_epoch(self) -> None:
        """Draws the order of the epoch, of which `step_in_epoch` steps are done, and loads it onto the device."""
        first = self.epoch * self.steps_per_epoch
        schedule = self.schedule(range(first, first + self.steps_per_epoch))
        self.training_step.load(self.batches.plan(self.draw()), schedule, self.step_in_epoch)
        if self.captures and self.graphs is None:
            self.batches.make_all()
            parameters = list(self.model.parameters())
            self.graphs = Graphs(self.training_step.take, parameters, self.store.device, self.clock)
        self.clock.start()

    def advance(self) -> None:
        """The next step of the epoch that `begin_epoch` began; its record is left on the device."""
        plan, index = self.training_step.plan, self.step_in_epoch
        kind = Kind(plan.counts[index], self.objective.active)
        self.batches.make(plan, index)
        if self.graphs is not None:
            self.graphs(kind)
        elif self.store.resident:
            self.training_step.take(kind)
        else:
            self.training_step.take_from_host(index, kind)
        self.times.append(time.time())
        self.step_in_epoch += 1

    def step(self, batch: Batch) -> Tensor:
        """One step on a batch, at the learning rates and lambda of the next step -> a row of COLUMNS on the device."""
        schedule = self.schedule(range(self.global_step, self.global_step + 1))[0]
        on_device = schedule.to(self.store.device, non_blocking=True)
        return self.training_step.update(batch, on_device, self.objective.active)

    def close_epoch(self, start: float) -> dict[str, float]:
        """Reads the records of the epoch that began at `start` from the device, checks and logs them -> {tag: value}.

        The next epoch follows. Time is read after the records, since the device may still be training before that.
        """
        rows = self.training_step.records.cpu().double()
        seconds = time.perf_counter() - start
        self.check_finite(rows)
        self.check_weights()
        sizes = self.batches.sizes
        means = dict(zip(COLUMNS, (rows * sizes[:, None] / sizes.sum()).sum(0).tolist(), strict=True))
        norms = dict(zip(COLUMNS[4:], rows[:, 4:].mean(0).tolist(), strict=True))
        self.check_quality(means["psnr"])
        values = self.epoch_values(means | norms, rows)
        first = self.epoch * self.steps_per_epoch
        steps = range(first + 1, first + self.steps_per_epoch + 1)
        times, self.epoch, self.step_in_epoch, self.times = self.times, self.epoch + 1, 0, []
        if self.due(self.config.train.params_freq):
            values |= parameter_values(self.parts)
        with self.clock.logging():
            for tag, column in zip(COLUMN_TAGS[:4], rows.T.tolist(), strict=False):
                if self.model.clip_head is not None or tag != "Train_Batch/clip_loss":
                    self.logger.curve(tag, steps, column, times)
            self.logger.scalars(values, self.epoch)
            if self.log.histogram_freq and self.due(self.log.histogram_freq):
                log_histograms(self.logger, self.model, self.epoch)
            line = {"epoch": self.epoch, "step": self.global_step, **values, "seconds": round(seconds, 3)}
            self.logger.record("train", line)
        return values

    def epoch_values(self, means: dict[str, float], rows: Tensor) -> dict[str, float]:
        """{tag: value} of the epoch that ends, of its rows (steps, COLUMNS) and their means."""
        total = rows[:, COLUMNS.index("total_loss")]
        has_head = self.model.clip_head is not None
        restart = has_head and self.epoch == self.config.loss.pixel_loss_warmup_epochs  # another loss begins
        self.window = extended(self.window[:0] if restart else self.window, total)
        values = loss_values(means) | {"Train/learning_rate": self.learning_rate(self.global_step - 1)}
        if has_head:
            values |= clip_values(means, self.objective)
        values |= clipping_values(rows[:, COLUMNS.index("total_norm")], self.config.train.grad_clip)
        patches = len(self.model.scene.train) * self.model.scene.grid.patches
        return values | stability_values(self.window) | self.clock.close(patches)

    def check_finite(self, rows: Tensor) -> None:
        """Raises Diverged naming the first step and tag of the epoch's rows (steps, COLUMNS) that is not finite."""
        bad = (~rows.isfinite()).nonzero()
        if len(bad):
            step, column = bad[0].tolist()
            first = self.epoch * self.steps_per_epoch
            self.not_finite(COLUMN_TAGS[column], rows[step, column].item(), first + step + 1, self.epoch + 1)

    def check_weights(self) -> None:
        """Raises Diverged when the last step left a weight that is not finite, before a checkpoint holds it."""
        norms = torch.stack(torch._foreach_norm([p for part in self.parts.values() for p in part]))
        if not norms.isfinite().all():
            worst = norms[~norms.isfinite()][0].item()
            self.not_finite("the norm of a weight", worst, self.global_step, self.epoch + 1)

    def check_values(self, values: dict[str, float]) -> None:
        """Raises Diverged naming the first of {tag: value}, measured after an epoch, that is not finite."""
        for tag, value in values.items():
            if not math.isfinite(value):
                self.not_finite(tag, value, self.global_step, self.epoch)

    def check_quality(self, psnr: float) -> None:
        """Raises Diverged where the Train/PSNR of the epoch that ends has collapsed and the run may be rolled back."""
        if self.limits.rollbacks and psnr < self.peak - COLLAPSE:
            fell = f"{psnr:.2f} dB in epoch {self.epoch + 1}, {self.peak - psnr:.2f} dB below the best epoch"
            raise Diverged(f"Train/PSNR is {fell}", ": lower --lr under another --exp-id")
        self.peak = max(self.peak, psnr)

    def not_finite(self, tag: str, value: float, step: int, epoch: int) -> NoReturn:
        """Raises Diverged, in words; `step` and `epoch` count from 1."""
        latest = self.folder.latest
        good = f"the last good checkpoint is {latest}" if latest.exists() else "there is no checkpoint yet"
        again = "" if self.limits.rollbacks else "; or pass --on-divergence rollback to resume this run"
        raise Diverged(
            f"{tag} is {value} at step {step} (epoch {epoch})",
            f"; {good}: lower --lr or --clip-loss-weight, or set --grad-clip, under another --exp-id{again}",
        )

    def evaluate(self) -> None:
        """Measures both splits, logs them, and keeps best.pt by frame PSNR, of unseen frames where there are any."""
        self.refresh_codes()
        report = evaluate(self.model, self.store, self.config.model.unseen)
        self.check_values(eval_values(report))
        with self.clock.logging():
            self.evaluation = log_report(self.logger, report, self.epoch, self.global_step)
        split = "train" if report.val is None else "val"
        score = self.evaluation[f"Eval/Frame/{split}_psnr_frame"]
        if score > self.best:
            self.best = score
            save_checkpoint(self.folder.best, self.state())
        with self.clock.logging():
            self.show(report)

    def show(self, report: Report) -> None:
        """Pictures at every so many evaluations, embeddings at the end."""
        last = self.epoch == self.config.train.epochs
        number = self.epoch // max(self.config.train.eval_freq, 1)
        if self.log.images_freq and (last or number % self.log.images_freq == 0):
            log_pictures(self.logger, self.model, self.store, report, self.epoch)
        if self.log.projector and last:
            log_projector(self.logger, self.model, self.store, report)

    def refresh_codes(self) -> None:
        """Brings the codes that the embedding stores up to date, once after each step that is saved or measured."""
        if self.codes_step != self.global_step:
            self.model.embedding.refresh(self.store.frames)
            self.codes_step = self.global_step

    def stop(self, stop: StopSignals) -> NoReturn:
        """Saves and raises Interrupted; Diverged, and no save, where the steps since the last epoch went wrong."""
        again = "the same command without --overwrite" if self.folder.overwrite else "the same command"
        try:
            self.check_finite(self.training_step.records[: self.step_in_epoch].cpu())
            self.check_weights()
        except Diverged as fault:
            if not self.limits.rollbacks:
                raise
            raise stop.interruption(f"{fault.cause}; run {again} to resume from {self.folder.latest}") from fault
        self.save()
        raise stop.interruption(
            f"stopped at epoch {self.epoch + 1}, step {self.step_in_epoch} of {self.steps_per_epoch}; saved "
            f"{self.folder.latest}; run {again} to resume",
        )

    def save(self) -> None:
        """Writes latest.pt, and tells `saved`."""
        save_checkpoint(self.folder.latest, self.state())
        self.saved_at = time.monotonic()
        self.saved(self)

    def state(self) -> dict:
        """Everything that a resumed run needs, as plain dictionaries and tensors. Inverse of `load_state`."""
        self.refresh_codes()
        optimizer, rate = self.optimizer.state_dict(), self.learning_rate(max(self.global_step - 1, 0))
        for group in optimizer["param_groups"]:
            group["lr"] = rate * group["lr_factor"]  # instead of a view of the table on the device
        progress = {
            "epoch": self.epoch,
            "step": self.global_step,
            "step_in_epoch": self.step_in_epoch,
            "records": self.training_step.records.cpu(),
            "times": self.times,
            "best": self.best,
            "logs": self.logger.position(),
            "window": self.window,
            "peak": self.peak,
            "rollbacks": self.rollbacks,
            "lr_scale": self.lr_scale,
            "clock": self.clock.state(),
        }
        return {
            "run": self.record,
            "model": self.model.state_dict(),
            "optimizer": optimizer,
            "progress": progress,
            "evaluation": self.evaluation,
        }

    def load_state(self, state: dict) -> None:
        """Goes on from a checkpoint, as if never stopped. Raises UserError when its weights do not fit."""
        load_weights(self.model, state, self.folder.latest)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder.latest}: its optimiser state does not fit ({error}): delete it to resume from best.pt"
            ) from error
        progress = state["progress"]
        self.epoch, self.step_in_epoch = progress["epoch"], progress["step_in_epoch"]
        self.training_step.records.copy_(progress["records"])
        self.times, self.best, self.evaluation = list(progress["times"]), progress["best"], state["evaluation"]
        self.window, self.peak, self.rollbacks = progress["window"], progress["peak"], progress["rollbacks"]
        self.lr_scale, self.codes_step = progress["lr_scale"], -1
        self.clock.load_state(progress["clock"])
        self.graphs = None  # they hold the addresses of the former state
