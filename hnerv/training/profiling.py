"""A trace of a few steps, for Perfetto."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch


class StepProfiler:
    """Records the steps of `span` that come by, and writes them to `folder`; with an empty span nothing."""

    def __init__(self, span: range, folder: Path, device: torch.device, say: Callable[[str], None]) -> None:
        self.span, self.folder, self.device, self.say = span, folder, device, say
        self._profile = None
        self._first = self._last = 0

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        """A run that ends within the span leaves what there is."""
        self._stop()

    def before(self, step: int) -> None:
        """`step` counts from 0, and is about to run."""
        if step in self.span and self._profile is None:
            self._start(step)
        elif step not in self.span:
            self._stop()
        self._last = step + 1

    def _start(self, step: int) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        # acc_events: torch 2.11 warns where it is not said
        self._profile, self._first = profile(activities=activities, record_shapes=True, acc_events=True), step
        self._profile.start()

    def _stop(self) -> None:
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        path = self.folder / f"steps_{self._first}-{self._last}.json.gz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            logging.getLogger("hnerv").warning("the trace %s was not written; the run continues: %s", path, error)
            return
        self.say(f"profile   {path}: open https://ui.perfetto.dev and drag the file onto the page")
