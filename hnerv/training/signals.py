"""Stop requests: SIGINT, SIGTERM and the time limit, which the training loop checks after every step."""

from __future__ import annotations

import math
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType

from hnerv.errors import Interrupted, TimeUp, UserError

ON_DIVERGENCE = ("stop", "rollback")
ROLLBACKS = 3
"""How often `--on-divergence rollback` rolls a run back, over all its starts."""


@dataclass(frozen=True)
class Limits:
    """`deadline` is a time of `time.monotonic`; `rollbacks` the number that a run may have had, over all its starts."""

    deadline: float = math.inf
    rollbacks: int = 0

    @classmethod
    def of(cls, minutes: float, on_divergence: str) -> Limits:
        """From --max-minutes (0: no limit), which begin now, and --on-divergence. Raises UserError."""
        if not 0 <= minutes < math.inf:
            raise UserError(f"--max-minutes {minutes} must be finite and at least 0")
        if on_divergence not in ON_DIVERGENCE:
            raise UserError(f"--on-divergence {on_divergence!r} is unknown: use {' or '.join(ON_DIVERGENCE)}")
        deadline = time.monotonic() + 60 * minutes if minutes else math.inf
        return cls(deadline, ROLLBACKS if on_divergence == "rollback" else 0)


class StopSignals:
    """While entered, `number` is the signal that requested a stop, 0 for none. A second signal ends the process.

    Python delivers signals to the main thread: in another one, only the deadline stops.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.number = 0
        self.deadline = deadline
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        in_main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if in_main else ():
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> bool:
        """Whether a signal has come, or the deadline (a time of `time.monotonic`) has passed."""
        return bool(self.number) or time.monotonic() >= self.deadline

    def interruption(self, message: str) -> Interrupted:
        """The exception to raise once the state is saved."""
        return Interrupted(self.number, message) if self.number else TimeUp(f"--max-minutes reached: {message}")

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
