"""SIGINT, SIGTERM and the end of the time allowed, as a wish that the loop looks at after every step."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

from hnerv.errors import Interrupted, TimeUp


class StopSignals:
    """While entered, `number` is the signal that asked to stop, 0 for none. A second one ends the process at once."""

    def __init__(self, deadline: float = math.inf) -> None:
        self.number = 0
        self.deadline = deadline
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether a signal has come, or the deadline (a time of `time.monotonic`) has passed."""
        return bool(self.number) or time.monotonic() >= self.deadline

    def interruption(self, message: str) -> Interrupted:
        """What to raise once the state is saved."""
        return Interrupted(self.number, message) if self.number else TimeUp(f"--max-minutes reached: {message}")

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
