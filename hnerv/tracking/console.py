"""Progress for people: a bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import sys

from tqdm import tqdm

from hnerv.tracking.tags import split_name


class Console:
    """Counts steps; `epoch` prints the values that the logger was given."""

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

    def back(self, step: int) -> None:
        """So many steps count as done, fewer than before."""
        self._bar.n = step
        self._bar.refresh()

    def epoch(self, epoch: int, values: dict[str, float], seconds: float) -> None:
        """`epoch` counts from 1; `values` by tag."""
        words = [f"{name} {values[tag]:{form}}" for name, tag, form in _WORDS if tag in values]
        line = f"epoch {epoch:>4}/{self.epochs}  {'  '.join(words)}  {seconds:.1f} s"
        if self._bar.disable:
            self.say(line)
        else:
            self._bar.set_postfix_str("  ".join(words))

    def evaluation(self, epoch: int, values: dict[str, float], unseen: str = "") -> None:
        """One line about an evaluation, by tag. `unseen` as in `split_name`."""
        words = [
            f"{split_name(split, unseen)} {name} {values[tag]:{form}}"
            for name, quantity, form in _EVAL_WORDS
            for split in ("train", "val")
            if (tag := f"Eval/Frame/{split}_{quantity}") in values
        ]
        self.say(f"eval  {epoch:>4}/{self.epochs}  {'  '.join(words)}")

    def say(self, line: str) -> None:
        """A line that does not break the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


_WORDS = (
    ("PSNR", "Train/PSNR", ".2f"),
    ("pixel", "Train/Loss/pixel_loss", ".2e"),
    ("clip", "Train/Loss/clip_loss", ".4f"),
    ("total", "Train/Loss/total_loss", ".2e"),
    ("lr", "Train/learning_rate", ".1e"),
)
_EVAL_WORDS = (
    ("PSNR", "psnr", ".2f"),
    ("full-frame PSNR", "psnr_frame", ".2f"),
    ("similarity", "clip_sim", ".4f"),
)
