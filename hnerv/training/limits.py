"""How long a run may take, and how often it may be rolled back. No part of its configuration."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from hnerv.flags import Invocation

ROLLBACKS = 3
"""As many as `--on-divergence rollback` allows a run in all."""
COLLAPSE = 6.0
"""dB of Train/PSNR below the best epoch that count as a divergence where rollbacks are allowed."""


@dataclass(frozen=True)
class Limits:
    """`deadline` is a time of `time.monotonic`; `rollbacks` how many a run may have had, over all its starts."""

    deadline: float = math.inf
    rollbacks: int = 0

    @classmethod
    def of(cls, ask: Invocation) -> Limits:
        """The minutes begin now."""
        deadline = time.monotonic() + 60 * ask.max_minutes if ask.max_minutes else math.inf
        return cls(deadline, ROLLBACKS if ask.on_divergence == "rollback" else 0)
