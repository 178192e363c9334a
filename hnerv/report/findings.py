"""Interpretation of the numbers of a run: one table of rules, used by `hnerv report` and `hnerv diagnose`.

A rule takes one number of a run and knows where it is healthy, where it is a warning, and what to do about it. Between
healthy and warning lies "watch". A number that was not measured gives no finding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from hnerv.report.results import RunResults

LEVELS = ("warning", "watch", "note", "good")
"""Most severe first."""


class Bounds(NamedTuple):
    """Healthy from `low` to `high`, a warning below `warn_below` or above `warn_above`; the bounds belong inside."""

    low: float = -math.inf
    high: float = math.inf
    warn_below: float = -math.inf
    warn_above: float = math.inf

    def level(self, value: float) -> str:
        """One of LEVELS."""
        if self.low <= value <= self.high:
            return "good"
        return "watch" if self.warn_below <= value <= self.warn_above else "warning"

    def healthy_text(self, unit: str) -> str:
        """'at most 3 dB', 'at least 0.85', '0.1 to 10'."""
        if self.low == -math.inf:
            return f"at most {self.high:g}{unit}"
        return f"at least {self.low:g}{unit}" if self.high == math.inf else f"{self.low:g} to {self.high:g}{unit}"

    def warning_text(self, unit: str) -> str:
        """'over 5 dB', 'under 0.001 or over 100'."""
        bounds = ((self.warn_below, "under"), (self.warn_above, "over"))
        return " or ".join(f"{word} {value:g}{unit}" for value, word in bounds if math.isfinite(value))


class Finding(NamedTuple):
    """`level` is one of LEVELS; `advice` is what to do. `value` and `healthy` are text with units, '' for no number."""

    level: str
    name: str
    tag: str = ""
    value: str = ""
    healthy: str = ""
    advice: str = ""

    def line(self) -> str:
        """For the terminal."""
        head = f"{self.level:8}{self.name}" + (f": {self.value}" if self.value else "")
        head += f" (healthy: {self.healthy})" if self.healthy else ""
        return head + (f". {self.advice}" if self.advice else "")


class Rule(NamedTuple):
    """`number` computes the value, None if it was not measured; by default it is that of the last evaluation.

    `low` and `high` explain a value below or above the healthy range, and what to do. `excuse` returns why such a
    value is acceptable in this run, or ''.
    """

    name: str
    tag: str
    bounds: Bounds
    meaning: str
    unit: str = ""
    number: Callable[[RunResults], float | None] | None = None
    low: str = ""
    high: str = ""
    excuse: Callable[[RunResults], str] | None = None

    def apply(self, run: RunResults) -> Finding | None:
        """None if the number was not measured."""
        value = self.number(run) if self.number else run.values.get(self.tag)
        if value is None:
            return None
        level, advice = self.bounds.level(value), self.low if value < self.bounds.low else self.high
        if level == "good":
            advice = ""
        elif self.excuse and (excuse := self.excuse(run)):
            level, advice = "note", excuse
        healthy = self.bounds.healthy_text(self.unit)
        return Finding(level, self.name, self.tag, f"{value:.3g}{self.unit}", healthy, advice)


def curve_values(run: RunResults, tag: str) -> list[float]:
    """Empty if the tag was never logged."""
    return [value for _, value in run.curves.get(tag, [])]


def psnr_rise(run: RunResults) -> float | None:
    """Best training PSNR minus the first; None for fewer than 5 epochs."""
    values = curve_values(run, "Train/PSNR")
    return max(values) - values[0] if len(values) >= 5 else None


def psnr_drop(run: RunResults) -> float | None:
    """Best training PSNR minus the last."""
    values = curve_values(run, "Train/PSNR")
    return max(values) - values[-1] if values else None


def while_learning(tag: str) -> Callable[[RunResults], float | None]:
    """Median over the epochs at a tenth of the peak learning rate or more: towards the end, gradients should fade."""

    def number(run: RunResults) -> float | None:
        rates = dict(run.curves.get("Train/learning_rate", []))
        least = 0.1 * max(rates.values(), default=0)
        values = [value for epoch, value in run.curves.get(tag, []) if rates.get(epoch, math.inf) >= least]
        return statistics.median(values) if values else None

    return number


def worst_below_mean(run: RunResults) -> float | None:
    """dB between the mean unseen frame and the worst one."""
    mean, worst = run.values.get("Eval/Frame/val_psnr"), run.values.get("Eval/PSNR_Stats/val_min")
    return None if mean is None or worst is None else mean - worst


def gap_in_errors(run: RunResults) -> float | None:
    """Paired gap divided by its standard error; None for fewer than 5 unseen frames."""
    gap, error = (run.values.get(f"Eval/Gap/psnr_gap_paired{end}") for end in ("", "_error"))
    # The error of a standard error from n values is 1 / sqrt(2 (n - 1)) of it: 71 % of 2 values, 35 % of 5.
    enough = run.values.get("Eval/Info/num_val_frames", 0) >= 5
    return gap / error if enough and error and gap is not None else None


def rank_ratio(run: RunResults) -> float | None:
    """Effective rank of the predicted embeddings over that of the true ones, of unseen patches if there are any."""
    split = "val" if "Eval/Embedding/val_effective_rank" in run.values else "train"
    predicted, true = (run.values.get(f"Eval/Embedding/{split}_{kind}_rank") for kind in ("effective", "target"))
    return predicted / true if true and predicted is not None else None


def clip_over_pixel(run: RunResults) -> float | None:
    """Weighted CLIP loss over pixel loss, both at the last epoch."""
    clip, pixel = (curve_values(run, f"Train/Loss/{name}") for name in ("clip_loss_weighted", "pixel_loss"))
    return clip[-1] / pixel[-1] if any(clip) and pixel and pixel[-1] else None


def clip_loss_ratio(run: RunResults) -> float | None:
    """Last CLIP loss over its first after warm-up; None for fewer than 5 epochs."""
    values = [value for value in curve_values(run, "Train/Loss/clip_loss") if value > 0]  # exactly 0 during warm-up
    return values[-1] / values[0] if len(values) >= 5 else None


gradient_ratio = while_learning("Train/Gradients/rgb_to_clip_ratio")


def _has_learned(run: RunResults) -> str:
    """A quiet CLIP head is fine once it has learned; one that dominates is not."""
    similarity = run.values.get("Eval/Frame/train_clip_sim", 0.0)
    if gradient_ratio(run) < 1 or similarity < 0.85:
        return ""
    return f"The CLIP head has learned anyway: similarity on training frames is {similarity:.2f}."


RULES = (
    Rule(
        "rise in training PSNR",
        "Train/PSNR",
        Bounds(low=3, warn_below=1),
        "PSNR of the best epoch minus that of the first.",
        unit=" dB",
        number=psnr_rise,
        low="Training is flat from the start: lower --lr.",
    ),
    Rule(
        "drop in training PSNR after its best epoch",
        "Train/PSNR",
        Bounds(high=0.5, warn_above=1),
        "PSNR of the best epoch minus that of the last.",
        unit=" dB",
        number=psnr_drop,
        high="PSNR drops before the end: lower --lr or set --grad-clip.",
    ),
    Rule(
        "generalisation gap",
        "Eval/Gap/psnr_gap",
        Bounds(high=3, warn_above=5),
        "PSNR of the training frames minus that of the unseen frames.",
        unit=" dB",
        high="The model memorises its training frames: set fewer --grid-knots (with --embedding grid) or use a "
        "--data-split with more training frames.",
    ),
    Rule(
        "generalisation gap to adjacent frames, in standard errors",
        "Eval/Gap/psnr_gap_paired",
        # An unseen frame scores at most as well as trained frames of equal difficulty, so a true gap is 0 or more. More
        # than two standard errors below 0, noise is an unlikely cause: 2 % for a normal distribution.
        Bounds(low=-2, warn_below=-2),
        "PSNR of the training frames around an unseen frame minus its own: mean divided by its standard error.",
        number=gap_in_errors,
        low="Unseen frames score higher than the training frames around them: they are easier (choose another "
        "--data-split), or information about them reached training (--blend-freq 0 trains without blends).",
    ),
    Rule(
        "drop of the worst unseen frame below the mean",
        "Eval/PSNR_Stats/val_min",
        Bounds(high=6, warn_above=10),
        "Mean PSNR of the unseen frames minus that of the worst one.",
        unit=" dB",
        number=worst_below_mean,
        high="A single bad frame is often a scene cut at an unseen frame: look at that frame in hnerv report.",
    ),
    Rule(
        "similarity of unseen frames",
        "Eval/Frame/val_clip_sim",
        Bounds(low=0.85, warn_below=0.7),
        "Cosine between predicted and true embeddings, mean over unseen patches.",
        low="The CLIP head has learned too little: raise --clip-loss-weight or lower --pixel-loss-warmup-epochs.",
    ),
    Rule(
        "centred similarity of unseen frames",
        "Eval/Frame/val_clip_sim_centred",
        Bounds(low=0.5, warn_below=0.2),
        "The same cosine after removing the mean of the training targets, which all patches share.",
        low="The CLIP head predicts little more than the mean embedding of the video: train longer, or change "
        "--clip-site or --clip-hidden.",
    ),
    Rule(
        "effective rank of the embeddings, relative to the targets",
        "Eval/Embedding/val_effective_rank",
        Bounds(low=0.5, warn_below=0.2),
        "Effective rank of the predicted embeddings divided by that of the true ones.",
        number=rank_ratio,
        low="The predicted embeddings collapse: raise --clip-loss-weight, lower --pixel-loss-warmup-epochs or change "
        "--clip-hidden.",
    ),
    Rule(
        "gradient norm",
        "Train/Gradients/total_norm",
        Bounds(0.001, 100, 0.001, 100),
        "Median over the epochs at a tenth of the peak learning rate or more.",
        number=while_learning("Train/Gradients/total_norm"),
        low="Gradients vanish: raise --lr, or check whether a loss has already reached its floor.",
        high="Gradients explode: lower --lr or set --grad-clip.",
    ),
    Rule(
        "gradient ratio of RGB head to CLIP head",
        "Train/Gradients/rgb_to_clip_ratio",
        Bounds(0.1, 10, 0.1, 100),
        "Gradient norm of the RGB head divided by that of the CLIP head, median over the same epochs.",
        number=gradient_ratio,
        low="The CLIP head dominates the decoder: lower --clip-loss-weight.",
        high="The CLIP head barely learns: raise --clip-loss-weight.",
        excuse=_has_learned,
    ),
    Rule(
        "weighted CLIP loss, relative to pixel loss",
        "Train/Loss/clip_loss_weighted",
        Bounds(high=0.5, warn_above=1),
        "Weighted CLIP loss divided by pixel loss at the last epoch.",
        number=clip_over_pixel,
        high="The CLIP loss competes with the pixel loss: lower --clip-loss-weight.",
    ),
    Rule(
        "CLIP loss, relative to its first value",
        "Train/Loss/clip_loss",
        Bounds(high=0.8, warn_above=0.95),
        "Last value divided by the first one after warm-up.",
        number=clip_loss_ratio,
        high="The CLIP loss barely decreases: train longer, or change --clip-site or --clip-hidden.",
    ),
)
"""The bounds of docs/tensorboard.md, «How to read the curves»."""


def findings_of(run: RunResults) -> list[Finding]:
    """Most severe first; in the order of the rules within a level."""
    findings = [*_circumstances(run), *_against_baselines(run)]
    findings += [finding for rule in RULES if (finding := rule.apply(run))]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def has_warning(findings: list[Finding]) -> bool:
    """Whether any finding is a warning."""
    return any(finding.level == "warning" for finding in findings)


def _circumstances(run: RunResults) -> list[Finding]:
    """Findings without a rule: an unfinished run, targets that are not from CLIP, no unseen frames, another video."""
    findings, record = [], run.record
    if run.epoch < run.epochs:
        state = f"{run.epoch} of {run.epochs} epochs"
        findings.append(Finding("note", "unfinished run", value=state, advice="Run the same command to resume."))
    if record.targets is None:
        findings.append(Finding("note", "no CLIP head", advice="This run was trained on pixels only."))
    elif record.targets.kind == "file":
        advice = "The similarities are CLIP similarities only if the file holds CLIP embeddings."
        findings.append(Finding("note", "targets from a file", value=run.targets, advice=advice))
    elif record.targets.kind != "clip":
        # A random encoder is a warning unless it was requested.
        level = "note" if record.config.clip.clip_weights == "random" else "warning"
        advice = (
            "The similarities of this run are not CLIP similarities: train a new run with --clip-weights openai, "
            "--clip-weights FILE or --clip-targets FILE."
        )
        findings.append(Finding(level, "targets are not CLIP embeddings", value=run.targets, advice=advice))
    if not record.scene.val:
        advice = "Generalisation cannot be measured: use a --data-split that leaves frames out of training."
        findings.append(Finding("note", "no unseen frames", advice=advice))
    elif "encode" in (run.summary.get("unseen"), record.config.model.unseen):
        advice = f"They do not measure generalisation: run python eval.py {run.folder} --unseen interpolate."
        findings.append(Finding("warning", "held-out frames were shown to the encoder", advice=advice))
    if not run.values:
        findings.append(Finding("note", "no evaluation yet", advice=f"Run python eval.py {run.folder}."))
    if run.summary.get("same_pixels_as_trained_on") is False:
        advice = "eval.py read different frames from those of training: pass the video of the run with --data."
        video = str(run.summary.get("video", ""))
        findings.append(Finding("warning", "evaluated on different pixels", value=video, advice=advice))
    return findings


def _against_baselines(run: RunResults) -> list[Finding]:
    """Whether the CLIP head is closer to the targets than the mean embedding, and than a PCA table of as many bytes."""
    from hnerv.evaluation.head_comparison import MEAN, PCA

    centred = {row.name: row.unseen["centred"] for row in run.baselines if "centred" in row.unseen}
    baselines = {name: centred[name] for name in (MEAN, PCA) if name in centred}
    if not baselines or run.summary.get("epoch") != run.values_epoch:
        return []
    head = centred[run.baselines[0].name]
    value = f"{head:.3f} versus {' and '.join(f'{number:.3f} ({name})' for name, number in baselines.items())}"
    name = "centred similarity compared with the baselines"
    if head > max(baselines.values()):
        return [Finding("good", name, value=value)]
    advice = (
        "A baseline of at most the same size does as well or better: train longer, or change --clip-site or "
        "--clip-hidden."
    )
    return [Finding("watch", name, value=value, advice=advice)]
