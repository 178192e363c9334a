"""Progress in the terminal: a bar, or one line per epoch where stderr is not a terminal."""

from __future__ import annotations

import sys

from tqdm import tqdm

from hnerv.tracking.tags import split_name

# label, tag, format
_EPOCH = (
    ("PSNR", "Train/PSNR", ".2f"),
    ("pixel", "Train/Loss/pixel_loss", ".2e"),
    ("clip", "Train/Loss/clip_loss", ".4f"),
    ("total", "Train/Loss/total_loss", ".2e"),
    ("rate", "Train/Rate/bpp", ".4f"),
    ("lr", "Train/learning_rate", ".1e"),
)
_EVALUATION = (("PSNR", "psnr", ".2f"), ("full-frame PSNR", "psnr_frame", ".2f"), ("similarity", "clip_sim", ".4f"))


class Console:
    """Counts steps and prints the values that the logger writes."""

    def __init__(self, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        self.epochs = epochs
        total = epochs * steps_per_epoch
        self._bar = tqdm(total=total, initial=first_step, unit="step", disable=not sys.stderr.isatty())

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self) -> None:
        self._bar.update(1)

    def set_step(self, step: int) -> None:
        """Move the bar back to a number of completed steps, after a rollback."""
        self._bar.n = step
        self._bar.refresh()

    def epoch(self, epoch: int, values: dict[str, float], seconds: float) -> None:
        """Show an epoch, counted from 1. values: {tag: value}."""
        text = "  ".join(f"{label} {values[tag]:{form}}" for label, tag, form in _EPOCH if tag in values)
        if self._bar.disable:
            self.print_line(f"epoch {epoch:>4}/{self.epochs}  {text}  {seconds:.1f} s")
        else:
            self._bar.set_postfix_str(text)

    def evaluation(self, epoch: int, values: dict[str, float], unseen: str = "") -> None:
        """Print one line about an evaluation. values: {tag: value}; unseen: as in `split_name`."""
        words = [
            f"{split_name(split, unseen)} {label} {values[tag]:{form}}"
            for label, quantity, form in _EVALUATION
            for split in ("train", "val")
            if (tag := f"Eval/Frame/{split}_{quantity}") in values
        ]
        self.print_line(f"eval  {epoch:>4}/{self.epochs}  {'  '.join(words)}")

    def print_line(self, line: str) -> None:
        """Print above the bar, to stdout."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
