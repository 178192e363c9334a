"""What the numbers of a run mean: one table of rules, read by `hnerv report` and by `hnerv diagnose`.

A rule takes one number from a run and knows where it is healthy, where it is a warning, and what to do then. Between
the two lies "watch". A number that was not measured gives no finding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from hnerv.report.reading import Curve, RunData

LEVELS = ("warning", "watch", "note", "good")
"""Gravest first."""


class Range(NamedTuple):
    """From `low` to `high`, both within it."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: float) -> bool:
        """Whether the value lies in it."""
        return self.low <= value <= self.high

    def words(self, unit: str) -> str:
        """'at most 3 dB', 'at least 0.85', '0.1 to 10'."""
        if self.low == -math.inf:
            return f"at most {self.high:g}{unit}"
        return f"at least {self.low:g}{unit}" if self.high == math.inf else f"{self.low:g} to {self.high:g}{unit}"


class Rule(NamedTuple):
    """`number` is None where it was not measured. `excuse` says why a value outside is well all the same, else ''.

    `low` and `high` say what a value below or above `healthy` means, and what to do.
    """

    name: str
    tag: str
    unit: str
    number: Callable[[RunData], float | None]
    healthy: Range
    tolerated: Range
    means: str
    low: str = ""
    high: str = ""
    excuse: Callable[[RunData], str] = lambda run: ""

    def warning_words(self) -> str:
        """Where it warns: 'over 5 dB', 'under 0.001 or over 100'."""
        bounds = [(self.tolerated.low, "under"), (self.tolerated.high, "over")]
        return " or ".join(f"{word} {value:g}{self.unit}" for value, word in bounds if math.isfinite(value))

    def judge(self, run: RunData) -> Finding | None:
        """None where the number was not measured."""
        value = self.number(run)
        if value is None:
            return None
        if self.healthy.holds(value):
            return self._finding("good", value, "")
        advice = self.low if value < self.healthy.low else self.high
        if excuse := self.excuse(run):
            return self._finding("note", value, excuse)
        return self._finding("watch" if self.tolerated.holds(value) else "warning", value, advice)

    def _finding(self, level: str, value: float, advice: str) -> Finding:
        return Finding(level, self.name, self.tag, f"{value:.3g}{self.unit}", self.healthy.words(self.unit), advice)


class Finding(NamedTuple):
    """`level` is one of LEVELS; `advice` says what to do.

    `value` and `healthy` are text with their unit, '' where there is no number.
    """

    level: str
    name: str
    tag: str
    value: str
    healthy: str
    advice: str

    def line(self) -> str:
        """For the terminal."""
        head = f"{self.level:8}{self.name}" + (f": {self.value}" if self.value else "")
        head += f" (healthy: {self.healthy})" if self.healthy else ""
        return head + (f". {self.advice}" if self.advice else "")


def last(tag: str) -> Callable[[RunData], float | None]:
    """Of an Eval/ tag the last evaluation's value, of any other its value at the last epoch that has one."""

    def number(run: RunData) -> float | None:
        if tag.startswith("Eval/"):
            return run.values.get(tag)
        return run.curves[tag][-1][1] if tag in run.curves else None

    return number


def rise(tag: str) -> Callable[[RunData], float | None]:
    """Best value less the first one; None under 5 points."""

    def number(run: RunData) -> float | None:
        values = [value for _, value in run.curves.get(tag, [])]
        return max(values) - values[0] if len(values) >= 5 else None

    return number


def fall(tag: str) -> Callable[[RunData], float | None]:
    """Best value less the last one."""

    def number(run: RunData) -> float | None:
        values = [value for _, value in run.curves.get(tag, [])]
        return max(values) - values[-1] if values else None

    return number


def while_learning(tag: str) -> Callable[[RunData], float | None]:
    """Median over the epochs whose learning rate is at least a tenth of its peak: at the end all is meant to fade."""

    def number(run: RunData) -> float | None:
        rates = dict(run.curves.get("Train/learning_rate", []))
        enough = 0.1 * max(rates.values(), default=0)
        values = [value for epoch, value in run.curves.get(tag, []) if rates.get(epoch, math.inf) >= enough]
        return statistics.median(values) if values else None

    return number


def worst_below_mean(run: RunData) -> float | None:
    """dB between the mean unseen frame and the worst one."""
    mean, worst = run.values.get("Eval/Frame/val_psnr"), run.values.get("Eval/PSNR_Stats/val_min")
    return None if mean is None or worst is None else mean - worst


def rank_kept(run: RunData) -> float | None:
    """Effective rank of the predicted embeddings over that of the true ones: of unseen patches where there are any."""
    split = "val" if "Eval/Embedding/val_effective_rank" in run.values else "train"
    found, true = (run.values.get(f"Eval/Embedding/{split}_{what}_rank") for what in ("effective", "target"))
    return found / true if true and found is not None else None


def clip_over_pixel(run: RunData) -> float | None:
    """Weighted CLIP loss over pixel loss at the last epoch that had both."""
    clip, pixel = (run.curves.get(f"Train/Loss/{name}") for name in ("clip_loss_weighted", "pixel_loss"))
    if not _active(clip) or not pixel or not pixel[-1][1]:
        return None
    return clip[-1][1] / pixel[-1][1]


def clip_loss_kept(run: RunData) -> float | None:
    """Last CLIP loss over its first one after warm-up; None under 5 epochs."""
    values = _active(run.curves.get("Train/Loss/clip_loss"))
    return values[-1] / values[0] if len(values) >= 5 else None


def _active(points: Curve | None) -> list[float]:
    """Values after warm-up, during which they are exactly 0."""
    return [value for _, value in points or [] if value > 0]


def _similar_anyway(run: RunData) -> str:
    """A quiet CLIP head is well once it has learned; one that dominates is not."""
    found = run.values.get("Eval/Frame/train_clip_sim", 0.0)
    if head_ratio(run) < 1 or found < 0.85:
        return ""
    return f"The CLIP head has learned anyway: similarity on training frames is {found:.2f}."


head_ratio = while_learning("Train/Gradients/rgb_to_clip_ratio")

RULES = (
    Rule(
        "rise in training PSNR", "Train/PSNR", " dB", rise("Train/PSNR"), Range(low=3), Range(low=1),
        "PSNR of the best epoch minus that of the first.",
        low="Training is flat from the start: lower --lr.",
    ),
    Rule(
        "drop in training PSNR after its best epoch", "Train/PSNR", " dB", fall("Train/PSNR"),
        Range(high=0.5), Range(high=1),
        "PSNR of the best epoch minus that of the last.",
        high="PSNR drops before the end: lower --lr or set --grad-clip.",
    ),
    Rule(
        "generalisation gap", "Eval/Gap/psnr_gap", " dB", last("Eval/Gap/psnr_gap"), Range(high=3), Range(high=5),
        "PSNR of the training frames minus that of the unseen frames.",
        high="The model memorises its training frames: set fewer --grid-knots (with --embedding grid) or use a "
        "--data-split with more training frames.",
    ),
    Rule(
        "drop of the worst unseen frame below the mean", "Eval/PSNR_Stats/val_min", " dB", worst_below_mean,
        Range(high=6), Range(high=10), "Mean PSNR of the unseen frames minus that of the worst one.",
        high="A single bad frame is often a scene cut at an unseen frame: look at that frame in hnerv report.",
    ),
    Rule(
        "similarity of unseen frames", "Eval/Frame/val_clip_sim", "", last("Eval/Frame/val_clip_sim"),
        Range(low=0.85), Range(low=0.7), "Cosine between predicted and true embeddings, mean over unseen patches.",
        low="The CLIP head has learned too little: raise --clip-loss-weight or lower --pixel-loss-warmup-epochs.",
    ),
    Rule(
        "centred similarity of unseen frames", "Eval/Frame/val_clip_sim_centred", "",
        last("Eval/Frame/val_clip_sim_centred"), Range(low=0.5), Range(low=0.2),
        "The same cosine after removing the mean of the training targets, which all patches share.",
        low="The CLIP head predicts little more than the mean embedding of the video: train longer, or change "
        "--clip-site or --clip-hidden.",
    ),
    Rule(
        "effective rank of the embeddings, relative to the targets", "Eval/Embedding/val_effective_rank", "", rank_kept,
        Range(low=0.5), Range(low=0.2), "Effective rank of the predicted embeddings divided by that of the true ones.",
        low="The predicted embeddings collapse: raise --clip-loss-weight, lower --pixel-loss-warmup-epochs or change "
        "--clip-hidden.",
    ),
    Rule(
        "gradient norm", "Train/Gradients/total_norm", "", while_learning("Train/Gradients/total_norm"),
        Range(0.001, 100), Range(0.001, 100), "Median over the epochs at a tenth of the peak learning rate or more.",
        low="Gradients vanish: raise --lr, or check whether a loss has already reached its floor.",
        high="Gradients explode: lower --lr or set --grad-clip.",
    ),
    Rule(
        "gradient ratio of RGB head to CLIP head", "Train/Gradients/rgb_to_clip_ratio", "", head_ratio,
        Range(0.1, 10), Range(0.1, 100),
        "Gradient norm of the RGB head divided by that of the CLIP head, median over the same epochs.",
        low="The CLIP head dominates the decoder: lower --clip-loss-weight.",
        high="The CLIP head barely learns: raise --clip-loss-weight.",
        excuse=_similar_anyway,
    ),
    Rule(
        "weighted CLIP loss, relative to pixel loss", "Train/Loss/clip_loss_weighted", "", clip_over_pixel,
        Range(high=0.5), Range(high=1), "Weighted CLIP loss divided by pixel loss at the last epoch.",
        high="The CLIP loss competes with the pixel loss: lower --clip-loss-weight.",
    ),
    Rule(
        "CLIP loss, relative to its first value", "Train/Loss/clip_loss", "", clip_loss_kept,
        Range(high=0.8), Range(high=0.95), "Last value divided by the first one after warm-up.",
        high="The CLIP loss barely decreases: train longer, or change --clip-site or --clip-hidden.",
    ),
)  # fmt: skip
"""The bounds of docs/tensorboard.md, «How to read the curves»."""


def findings_of(run: RunData) -> list[Finding]:
    """Gravest first; in the order of the rules where they are as grave."""
    found = [
        *_circumstances(run),
        *_beside_baselines(run),
        *(finding for rule in RULES if (finding := rule.judge(run))),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def has_warning(found: list[Finding]) -> bool:
    """Whether a warning stands."""
    return any(finding.level == "warning" for finding in found)


def _circumstances(run: RunData) -> list[Finding]:
    """What no number says: an unfinished run, targets that are not CLIP's, no unseen frames, another video."""
    found = []
    if run.epoch < run.epochs:
        state = f"{run.epoch} of {run.epochs} epochs"
        found.append(Finding("note", "unfinished run", "", state, "", "Run the same command to resume."))
    if run.record.targets is None:
        found.append(Finding("note", "no CLIP head", "", "", "", "This run was trained on pixels only."))
    elif run.record.targets.kind != "clip":
        found.append(_not_clip(run))
    if not run.record.scene.val:
        advice = "Generalisation cannot be measured: use a --data-split that leaves frames out of training."
        found.append(Finding("note", "no unseen frames", "", "", "", advice))
    if not run.values:
        found.append(Finding("note", "no evaluation yet", "", "", "", f"Run python eval.py {run.folder}."))
    if run.record.scene.val and "encode" in (run.summary.get("unseen"), run.record.config.model.unseen):
        advice = f"They do not measure generalisation: run python eval.py {run.folder} --unseen interpolate."
        found.append(Finding("warning", "held-out frames were shown to the encoder", "", "", "", advice))
    if run.summary.get("same_pixels_as_trained_on") is False:
        advice = "eval.py read different frames from those of training: pass the video of the run with --data."
        found.append(
            Finding("warning", "evaluated on different pixels", "", str(run.summary.get("video", "")), "", advice)
        )
    return found


def _beside_baselines(run: RunData) -> list[Finding]:
    """Whether the CLIP head is closer to the targets than the mean embedding, and than a table of as many bytes."""
    from hnerv.evaluation.semantics.comparing import MEAN, PCA

    centred = {row.name: row.unseen["centred"] for row in run.beside if "centred" in row.unseen}
    rivals = {name: centred[name] for name in (MEAN, PCA) if name in centred}
    if not rivals or run.summary.get("epoch") != run.values_epoch:
        return []
    ours = centred[run.beside[0].name]
    best = max(rivals.values())
    value = f"{ours:.3f} versus {' and '.join(f'{number:.3f} ({name})' for name, number in rivals.items())}"
    name = "centred similarity compared with the baselines"
    if ours > best:
        return [Finding("good", name, "", value, "", "")]
    advice = (
        "A baseline of at most the same size does as well or better: train longer, or change --clip-site or "
        "--clip-hidden."
    )
    return [Finding("watch", name, "", value, "", advice)]


def _not_clip(run: RunData) -> Finding:
    """A stand-in nobody asked for is a warning; what was asked for is worth a note."""
    if run.record.targets.kind == "file":
        advice = "The similarities are CLIP similarities only if the file holds CLIP embeddings."
        return Finding("note", "targets from a file", "", run.targets, "", advice)
    asked = run.record.config.clip.clip_weights == "random"
    advice = (
        "The similarities of this run are not CLIP similarities: train a new run with --clip-weights openai, "
        "--clip-weights FILE or --clip-targets FILE."
    )
    return Finding("note" if asked else "warning", "targets are not CLIP embeddings", "", run.targets, "", advice)
