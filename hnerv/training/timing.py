"""Time and memory of a run, {Train/Performance tag: value}, and traces of steps. Nothing here waits inside a step."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

PARTS = ("data", "forward", "backward", "optimizer", "rest")
"""The parts of an eager step. A step that is replayed from a CUDA graph is a single part, "graph"."""
ROOT = "Train/Performance"
MIB = 1 << 20


class Clock:
    """Time of the parts of a step, summed over an epoch: CUDA events on the GPU, the clock of the host elsewhere.

    `mark(part)` assigns the time since the previous mark to `part`. `totals` are saved with the run, so that an epoch
    that was interrupted is measured in full.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.totals: dict[str, float] = dict.fromkeys(("steps", "graphs", "seconds", *PARTS, "graph"), 0.0)
        self._pool: list[torch.cuda.Event] = []
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []
        self._started = self._closed = time.perf_counter()
        self._logging = 0.0

    def start(self) -> None:
        """Called when the steps of an epoch, or of the rest of one, begin."""
        self._started = time.perf_counter()
        self.mark("")

    def mark(self, part: str) -> None:
        """Assigns the time since the last mark to this part. Nothing is marked while a graph is captured."""
        if self.device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return
            event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """The time inside the block counts as logging, not as part of a step."""
        start = time.perf_counter()
        yield
        self._logging += time.perf_counter() - start

    def state(self) -> dict[str, float]:
        """The sums of the epoch so far; waits for the device. Inverse of `load_state`."""
        self._collect()
        return dict(self.totals)

    def load_state(self, state: dict[str, float]) -> None:
        """Inverse of `state`; marks since then are dropped."""
        self.totals = dict.fromkeys(self.totals, 0.0) | state
        self._marks, self._logging = [], 0.0
        self._started = self._closed = time.perf_counter()

    def close(self, patches: int) -> dict[str, float]:
        """{tag: value} of the epoch that ends, in which `patches` were shown; then counts from zero."""
        self._collect()
        now, totals = time.perf_counter(), self.totals
        values = {f"{ROOT}/logging_share": 100 * self._logging / max(now - self._closed, 1e-9)}
        if totals["steps"]:
            of_steps = sum(totals[part] for part in PARTS)
            values |= {f"{ROOT}/{p}_ms": totals[p] / totals["steps"] for p in ("forward", "backward", "optimizer")}
            values[f"{ROOT}/data_share"] = 100 * totals["data"] / max(of_steps, 1e-9)
        if totals["graphs"]:
            values[f"{ROOT}/graph_ms"] = totals["graph"] / totals["graphs"]
        if totals["seconds"]:
            values |= {
                f"{ROOT}/epoch_seconds": totals["seconds"],
                f"{ROOT}/patches_per_second": patches / max(totals["seconds"], 1e-9),
            }
        self.totals = dict.fromkeys(totals, 0.0)
        self._closed, self._logging = now, 0.0
        return values | memory_values(self.device)

    def _collect(self) -> None:
        """Turns marks into sums. Waits for the last event, after which all steps before it are done."""
        if self.device.type == "cuda" and self._marks:
            self._marks[-1][1].synchronize()
        for (_, before), (part, after) in itertools.pairwise(self._marks):
            if part:
                self.totals[part] += _milliseconds(before, after)
                self.totals["steps"] += part == "forward"
                self.totals["graphs"] += part == "graph"
        if len(self._marks) > 1:
            now = time.perf_counter()
            self.totals["seconds"] += now - self._started
            self._started = now
        if self.device.type == "cuda":
            self._pool += [event for _, event in self._marks[:-1]]
        self._marks = [("", mark) for _, mark in self._marks[-1:]]


def _milliseconds(before: torch.cuda.Event | float, after: torch.cuda.Event | float) -> float:
    return 1000 * (after - before) if isinstance(before, float) else before.elapsed_time(after)


def memory_values(device: torch.device) -> dict[str, float]:
    """{tag: MiB, or percent}: the quantities that this machine offers."""
    values = {}
    if resident := _resident_bytes():
        values[f"{ROOT}/host_memory_mib"] = resident / MIB
    if device.type == "cuda":
        values |= {
            f"{ROOT}/gpu_memory_allocated_mib": torch.cuda.memory_allocated(device) / MIB,
            f"{ROOT}/gpu_memory_reserved_mib": torch.cuda.memory_reserved(device) / MIB,
            f"{ROOT}/gpu_memory_peak_mib": torch.cuda.max_memory_allocated(device) / MIB,
        }
        with contextlib.suppress(Exception):  # no nvidia-ml-py, or a driver without it
            values[f"{ROOT}/gpu_utilisation"] = float(torch.cuda.utilization(device))
    return values


def _resident_bytes() -> int:
    """0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


class StepProfiler:
    """Traces the steps in `span` for Perfetto and writes them to `folder`; does nothing for an empty span."""

    def __init__(self, span: range, folder: Path, device: torch.device, report: Callable[[str], None]) -> None:
        self.span, self.folder, self.device, self.report = span, folder, device, report
        self._profile = None
        self._first = self._last = 0

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        """Writes the steps traced so far when a run ends within the span."""
        self._stop()

    def before(self, step: int) -> None:
        """Called before each step; `step` counts from 0."""
        if step in self.span and self._profile is None:
            self._start(step)
        elif step not in self.span:
            self._stop()
        self._last = step + 1

    def _start(self, step: int) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        # torch 2.11 warns unless acc_events is given
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
        self.report(f"profile   {path}: open https://ui.perfetto.dev and drag the file onto the page")
