"""The training loop: epochs, checks, logs, evaluations, checkpoints. S steps of an epoch, G parameter groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import NoReturn

import torch
from torch import Tensor

from hnerv.config import Config, LogConfig, parse_steps
from hnerv.data.batches import Batches, Counts
from hnerv.data.store import Batch, FrameStore
from hnerv.errors import Diverged, UserError
from hnerv.evaluation import eval_values, evaluate, load_weights, log_pictures, log_projector, log_report
from hnerv.evaluation.measure import Report
from hnerv.model import DualHeadHNeRV
from hnerv.runs.checkpoint import CURRENT, RATE, save_checkpoint
from hnerv.runs.folder import RunFolder
from hnerv.runs.record import RunRecord
from hnerv.schedule import parse_lr
from hnerv.tracking import NullLogger
from hnerv.tracking.console import Console
from hnerv.training.divergence import DivergenceCheck
from hnerv.training.ema import WeightAverage, effective_decay
from hnerv.training.pages import log_start
from hnerv.training.rate import RateTerm
from hnerv.training.signals import Limits, StopSignals
from hnerv.training.step import COLUMN_TAGS, COLUMNS, Graphs, Kind, TrainingStep
from hnerv.training.timing import Clock, StepProfiler
from hnerv.training.values import Objective, epoch_values, extended, log_histograms, objective_of, parameter_values


@dataclass
class TrainState:
    """The progress of a run, saved as it is. `epoch` epochs are complete, and `step_in_epoch` steps of the next one.

    `records` (S, columns) and `times` (seconds since 1970) belong to the steps of the current epoch; `window` holds the
    total losses of the last steps, fp64, for the stability measures. `best` is the PSNR that best.pt was kept for,
    `peak` the best Train/PSNR of an epoch, both in dB. `evaluation` is the last one, {Eval/ tag: value}. `logs` is the
    size of each log file when the state was saved. `rate_weight` is the weight of the rate before its ramp.
    """

    records: Tensor
    epoch: int = 0
    step_in_epoch: int = 0
    times: list[float] = field(default_factory=list)
    best: float = float("-inf")
    peak: float = float("-inf")
    rollbacks: int = 0
    lr_scale: float = 1.0
    rate_weight: float = 0.0
    window: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    evaluation: dict[str, float] = field(default_factory=dict)
    clock: dict[str, float] = field(default_factory=dict)
    logs: dict[str, int] = field(default_factory=dict)


class Trainer:
    """Fits `model`, on the device of `store`, to its frames. Random numbers depend on the seed and the epoch alone.

    `evaluated` is what is measured and saved: `model`, or with --ema-decay the average of its weights, or with
    --rate-weight its weights rounded to the steps learned so far. `optimizer` is that of `build_optimizer`. `on_save`
    is called before the first step and each time latest.pt has been written.
    `compile` compiles network and losses; `capture` allows CUDA graphs where the device has them.
    """

    def __init__(
        self,
        model: DualHeadHNeRV,
        optimizer: torch.optim.Optimizer,
        store: FrameStore,
        config: Config,
        folder: RunFolder,
        record: RunRecord,
        *,
        log: LogConfig = LogConfig(),  # noqa: B008 (frozen)
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        compile: bool = False,
        capture: bool = True,
        on_save: Callable[[Trainer], None] = lambda trainer: None,
        logger: NullLogger | None = None,
    ) -> None:
        self.model, self.optimizer, self.store, self.config = model, optimizer, store, config
        self.folder, self.record, self.log, self.limits, self.on_save = folder, record, log, limits, on_save
        self.logger = logger or NullLogger()
        self.clock = Clock(store.device)
        self.batches = Batches(store, model, config)
        self.average = WeightAverage(model, config.train.ema_decay) if config.train.ema_decay else None
        self.rate = RateTerm(model, optimizer, config) if config.loss.rate_weight else None
        self.evaluated = next((part.model for part in (self.average, self.rate) if part), model)
        self.training_step = TrainingStep(
            model, optimizer, self.batches, config, self.clock, compile, self.average, self.rate and self.rate.estimate
        )
        # The steps of `encoder` are not captured: a frame takes it ten times as long as a launch.
        self.captures = (
            capture
            and store.device.type == "cuda"
            and store.resident
            and model.embedding.at_any_time
            and not log.profile
        )
        self.graphs: Graphs | None = None
        self.steps_per_epoch = len(self.batches.sizes)
        self.state = TrainState(self.training_step.records, rate_weight=config.loss.rate_weight)
        self._lr_factor = parse_lr(config.train.lr_type)
        self._check = DivergenceCheck(folder.latest, limits.rollbacks)
        self._saved_at = float("-inf")
        self._refreshed_step = -1

    def log_to(self, logger: NullLogger) -> None:
        """Set the logger for the following steps."""
        self.logger = logger

    def fit(self, console: Console) -> StopSignals | None:
        """Trains up to the last epoch and evaluates it -> a stop request that came after the last epoch, or None.

        Raises Interrupted after SIGINT, SIGTERM or the deadline, with everything saved; Diverged where training went
        wrong, with the checkpoint of before.
        """
        epochs, state = self.config.train.epochs, self.state
        log_start(self.logger, self.model, self.record, self.folder.path, self.log.graph)
        if self.limits.rollbacks and state.epoch < epochs:
            self.save()  # the checkpoint to roll back to
        profiler = StepProfiler(
            parse_steps(self.log.profile), self.folder.path / "profile", self.store.device, console.print_line
        )
        with StopSignals(self.limits.deadline) as stop, profiler:
            while state.epoch < epochs:
                start = time.perf_counter()
                self.begin_epoch()
                while state.step_in_epoch < self.steps_per_epoch:
                    profiler.before(self.global_step)
                    self.advance()
                    console.step()
                    if stop.requested:
                        self._stop(stop)
                values = self.close_epoch(start)
                console.epoch(state.epoch, values, time.perf_counter() - start)
                if self._due(self.config.train.eval_freq):
                    self.evaluate()
                    console.evaluation(state.epoch, state.evaluation, self.config.model.unseen)
                if stop.requested and state.epoch < epochs:
                    self._stop(stop)
                if self._checkpoint_due():
                    self.save()
            if self.rate and (missed := self.rate.missed(self.state.rate_weight)):
                console.print_line(missed)
            return stop if stop.requested else None

    # Steps

    @property
    def global_step(self) -> int:
        """Steps of the run so far."""
        return self.state.epoch * self.steps_per_epoch + self.state.step_in_epoch

    @property
    def objective(self) -> Objective:
        """The CLIP term of this epoch."""
        return objective_of(self.config.loss, self.state.epoch, self.model.clip_head is not None)

    def learning_rate(self, step: int) -> float:
        """Of step `step` of the run, counted from 0."""
        progress = step / (self.config.train.epochs * self.steps_per_epoch)
        return self.config.train.lr * self._lr_factor(progress) * self.state.lr_scale

    def schedule(self, steps: range) -> Tensor:
        """(steps, G + 4), a row of `Schedule` for each of these steps of this epoch."""
        factors = [group["lr_factor"] for group in self.optimizer.param_groups]
        rows = []
        for step in steps:
            rates = [self.learning_rate(step) * factor for factor in factors]
            share = 1 - effective_decay(self.config.train.ema_decay, step + 1)
            rows.append([*rates, self.objective.weight, share, self.rate_weight, step])
        return torch.tensor(rows)

    @property
    def rate_weight(self) -> float:
        """W in this epoch."""
        ramp = self.config.loss.rate_ramp_epochs
        return self.state.rate_weight * min((self.state.epoch + 1) / (ramp + 1), 1.0)

    @property
    def rounded(self) -> bool:
        """Whether the steps of this epoch round the weights."""
        return self.state.epoch >= self.config.train.rounding_start * self.config.train.epochs

    def kind(self, counts: Counts) -> Kind:
        """Of the next step, which has so many frames."""
        rate = bool(self.rate) and self.global_step % self.config.train.rate_freq == 0
        return Kind(counts, self.objective.active, rate, bool(self.rate) and self.rounded)

    def generator(self) -> torch.Generator:
        """The source of everything random in this epoch."""
        return torch.Generator().manual_seed(self.config.train.seed * 1_000_003 + self.state.epoch)

    def remaining_batches(self) -> Iterator[Batch]:
        """The batches that are left of the epoch, in an order drawn from seed and epoch."""
        return self.batches.epoch(self.generator(), self.state.step_in_epoch)

    def begin_epoch(self) -> None:
        """Draw the order of the epoch and load its remaining steps onto the device."""
        first = self.state.epoch * self.steps_per_epoch
        schedule = self.schedule(range(first, first + self.steps_per_epoch))
        self.training_step.load(self.batches.plan(self.generator()), schedule, self.state.step_in_epoch)
        if self.rate and self.rounded:
            self.rate.estimate.fix()
        if self.captures and self.graphs is None:
            self.batches.make_all()
            parameters = list(self.model.parameters())
            self.graphs = Graphs(self.training_step.take, parameters, self.store.device, self.clock)
        self.clock.start()

    def advance(self) -> None:
        """Takes the next step of the epoch that `begin_epoch` began; its record stays on the device."""
        plan, index = self.training_step.plan, self.state.step_in_epoch
        kind = self.kind(plan.counts[index])
        self.batches.make(plan, index)
        if self.graphs is not None:
            self.graphs(kind)
        elif self.store.resident:
            self.training_step.take(kind)
        else:
            self.training_step.take_from_host(index, kind)
        self.state.times.append(time.time())
        self.state.step_in_epoch += 1

    def step(self, batch: Batch) -> Tensor:
        """One step on a batch, at the learning rates and lambda of the next step -> a row of COLUMNS on the device."""
        schedule = self.schedule(range(self.global_step, self.global_step + 1))[0]
        on_device = schedule.to(self.store.device, non_blocking=True)
        near = 0 if batch.near is None else len(batch.near.times)
        kind = self.kind(Counts(batch.real, len(batch.times) - batch.real, near))
        return self.training_step.update(batch, on_device, kind)

    # Epochs

    def close_epoch(self, start: float) -> dict[str, float]:
        """Reads, checks and logs the records of the epoch that began at `start`, then moves on -> {tag: value}.

        Time is read after the records: the device may still be training before that.
        """
        state, sizes = self.state, self.batches.sizes
        rows = self.training_step.records.cpu().double()
        seconds = time.perf_counter() - start
        self._check_steps(rows)
        means = dict(zip(COLUMNS, (rows * sizes[:, None] / sizes.sum()).sum(0).tolist(), strict=True))
        norms = dict(zip(COLUMNS[4:], rows[:, 4:].mean(0).tolist(), strict=True))
        self._check.quality(means["psnr"], state.peak, state.epoch + 1)
        state.peak = max(state.peak, means["psnr"])
        values = self._values(means | norms, rows)
        first, times = state.epoch * self.steps_per_epoch + 1, state.times
        state.epoch, state.step_in_epoch, state.times = state.epoch + 1, 0, []
        if self._due(self.config.train.params_freq):
            values |= parameter_values(self.training_step.parts)
        with self.clock.logging():
            for tag, column in zip(COLUMN_TAGS[:4], rows.T.tolist(), strict=False):
                if self.model.clip_head is not None or tag != "Train_Batch/clip_loss":
                    self.logger.curve(tag, range(first, first + len(column)), column, times)
            self.logger.scalars(values, state.epoch)
            if self.log.histogram_freq and self._due(self.log.histogram_freq):
                log_histograms(self.logger, self.model, state.epoch)
            line = {"epoch": state.epoch, "step": self.global_step, **values, "seconds": round(seconds, 3)}
            self.logger.record("train", line)
        return values

    def _values(self, means: dict[str, float], rows: Tensor) -> dict[str, float]:
        """{tag: value} of the epoch that ends, from its rows (steps, COLUMNS) and their means."""
        state, has_head = self.state, self.model.clip_head is not None
        # The CLIP term changes the loss, so that its statistics start again with it.
        restart = has_head and state.epoch == self.config.loss.pixel_loss_warmup_epochs
        state.window = extended(state.window[:0] if restart else state.window, rows[:, COLUMNS.index("total_loss")])
        norms = rows[:, COLUMNS.index("total_norm")]
        patches = len(self.model.scene.train) * self.model.scene.grid.patches
        values = {"Train/learning_rate": self.learning_rate(self.global_step - 1)} | self.clock.close(patches)
        if self.average:
            values |= self.average.values(self.global_step)
        if self.rate:
            rates = self.rate.measure()
            values |= self.rate.values(rates, self.rate_weight)
            if (
                state.epoch >= self.config.loss.rate_ramp_epochs
            ):  # below, the ramp would be taken for a weight too small
                state.rate_weight = self.rate.steered(state.rate_weight, self.rate.total(rates), self.rounded)
        objective = self.objective if has_head else None
        return epoch_values(means, norms, state.window, objective, self.config.train.grad_clip) | values

    def evaluate(self) -> None:
        """Measures and logs both splits; keeps best.pt by full-frame PSNR, of unseen frames where there are any."""
        state = self.state
        self.refresh_evaluated()
        report = evaluate(self.evaluated, self.store, self.config.model.unseen)
        self._check.values(eval_values(report), self.global_step, state.epoch)
        with self.clock.logging():
            state.evaluation = log_report(self.logger, report, state.epoch, self.global_step)
        score = state.evaluation[f"Eval/Frame/{'train' if report.val is None else 'val'}_psnr_frame"]
        if score > state.best:
            state.best = score
            save_checkpoint(self.folder.best, self.checkpoint())
        with self.clock.logging():
            self._log_pictures(report)

    def _log_pictures(self, report: Report) -> None:
        """Logs pictures at every N-th evaluation, and the embeddings after the last epoch."""
        last = self.state.epoch == self.config.train.epochs
        number = self.state.epoch // max(self.config.train.eval_freq, 1)
        if self.log.images_freq and (last or number % self.log.images_freq == 0):
            log_pictures(self.logger, self.evaluated, self.store, report, self.state.epoch)
        if self.log.projector and last:
            log_projector(self.logger, self.evaluated, self.store, report)

    def _due(self, every: int) -> bool:
        """Whether the epoch just closed is the last, or every N-th (0: none)."""
        return self.state.epoch == self.config.train.epochs or (every > 0 and self.state.epoch % every == 0)

    def _checkpoint_due(self) -> bool:
        train = self.config.train
        recent = time.monotonic() - self._saved_at < train.checkpoint_seconds
        return self._due(train.checkpoint_freq) and (self.state.epoch == train.epochs or not recent)

    def _check_steps(self, rows: Tensor) -> None:
        """Raises Diverged where the records (steps, COLUMNS) of this epoch or the weights are not finite."""
        first, epoch = self.state.epoch * self.steps_per_epoch + 1, self.state.epoch + 1
        self._check.records(rows, COLUMN_TAGS, first, epoch)
        self._check.weights(list(self.model.parameters()), self.global_step, epoch)

    # Checkpoints

    def refresh_evaluated(self) -> None:
        """Updates what `evaluated` stores of the weights, once after each step that is saved or measured."""
        if self._refreshed_step != self.global_step:
            if self.rate:
                self.rate.refresh()
            self.evaluated.embedding.refresh(self.store.frames)
            self._refreshed_step = self.global_step

    def _stop(self, stop: StopSignals) -> NoReturn:
        """Saves and raises Interrupted; Diverged, and no save, where the steps since the last epoch went wrong."""
        again = "the same command without --overwrite" if self.folder.overwrite else "the same command"
        try:
            self._check_steps(self.training_step.records[: self.state.step_in_epoch].cpu())
        except Diverged as fault:
            if not self.limits.rollbacks:
                raise
            raise stop.interruption(f"{fault.cause}; run {again} to resume from {self.folder.latest}") from fault
        self.save()
        raise stop.interruption(
            f"stopped at epoch {self.state.epoch + 1}, step {self.state.step_in_epoch} of {self.steps_per_epoch}; "
            f"saved {self.folder.latest}; run {again} to resume",
        )

    def save(self) -> None:
        """Writes latest.pt and calls `on_save`."""
        save_checkpoint(self.folder.latest, self.checkpoint())
        self._saved_at = time.monotonic()
        self.on_save(self)

    def checkpoint(self) -> dict:
        """Everything that a resumed run needs, as plain dictionaries and tensors. Inverse of `load`."""
        self.refresh_evaluated()
        optimizer, rate = self.optimizer.state_dict(), self.learning_rate(max(self.global_step - 1, 0))
        for group in optimizer["param_groups"]:
            group["lr"] = rate * group["lr_factor"]  # a number; during training it is a view of a table on the device
        records, clock, logs = self.training_step.records.cpu(), self.clock.state(), self.logger.position()
        progress = vars(replace(self.state, records=records, clock=clock, logs=logs)) | {"step": self.global_step}
        evaluation = progress.pop("evaluation")
        current = {} if self.evaluated is self.model else {CURRENT: self.model.state_dict()}
        if self.rate:
            current[RATE] = self.rate.estimate.state_dict()
        return {
            "run": self.record,
            "model": self.evaluated.state_dict(),
            **current,
            "optimizer": optimizer,
            "progress": progress,
            "evaluation": evaluation,
        }

    def load(self, checkpoint: dict) -> None:
        """Resumes from a checkpoint as if never stopped. Raises UserError where it does not fit the model."""
        load_weights(self.evaluated, checkpoint["model"], self.folder.latest)
        if self.evaluated is not self.model:
            load_weights(self.model, checkpoint[CURRENT], self.folder.latest)
        if self.rate:
            load_weights(self.rate.estimate, checkpoint[RATE], self.folder.latest)
        try:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.folder.latest}: its optimiser state does not fit ({error}): delete it to resume from best.pt"
            ) from error
        known = {field.name for field in fields(TrainState)}
        progress = {name: value for name, value in checkpoint["progress"].items() if name in known}
        self.training_step.records.copy_(progress["records"])
        progress |= {"records": self.training_step.records, "times": list(progress["times"])}
        self.state = TrainState(**progress, evaluation=checkpoint["evaluation"])
        self._refreshed_step = -1
        self.clock.load_state(self.state.clock)
        self.graphs = None  # they hold the addresses of the former optimiser state
