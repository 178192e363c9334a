"""When frames are shown: integer time stamps in units of a tick, and their frame rate.

A container counts time in ticks of its own (1/90000 s in MPEG-TS, 1/1000 s in Matroska), so even a constant rate has
stamps that are rounded to them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hnerv.errors import UserError

MOST_FPS = 1_000_000
_LARGEST = 1 << 53
_NTSC = Fraction(1000, 1001)
_LARGEST_DENOMINATOR = 1001


@dataclass(frozen=True)
class Timeline:
    """Frame k is shown from `stamps[k] * tick` seconds on; 0 is the first frame of the source."""

    tick: Fraction
    stamps: Sequence[int]

    @classmethod
    def at_rate(cls, fps: float, frames: range = range(1 << 31)) -> Timeline:
        """Of these `frames` of a source of a constant rate. Raises UserError as `exact_rate`."""
        return cls(1 / exact_rate(fps), frames)

    @property
    def step(self) -> int:
        """Median distance of two frames, in ticks: how long the last one is shown, too. 1 for a single frame."""
        head = self.stamps[: 1 << 20]
        return int(statistics.median_low([abs(b - a) for a, b in itertools.pairwise(head)] or [1])) or 1

    def seconds(self, frame: int) -> float:
        return float(self.stamps[frame] * self.tick)

    def chosen(self, frames: Iterable[int]) -> Timeline:
        """That of these frames alone, each at its time in the source."""
        return Timeline(self.tick, tuple(self.stamps[frame] for frame in frames))

    def to_dict(self) -> dict:
        """{"tick": [1, 1000], "first": 0, "steps": [[33, 1], [34, 2]]}: one run of equal steps is one pair.

        Inverse of `from_dict`.
        """
        steps = itertools.groupby(b - a for a, b in itertools.pairwise(self.stamps))
        pairs = [[step, sum(1 for _ in group)] for step, group in steps]
        return {"tick": [*self.tick.as_integer_ratio()], "first": self.stamps[0], "steps": pairs}

    @classmethod
    def from_dict(cls, data: dict, count: int) -> Timeline:
        """Inverse of `to_dict`, of `count` frames. Raises ValueError for what is no timeline of so many."""
        try:
            (over, under), first, pairs = data["tick"], data["first"], data["steps"]
            numbers = [over, under, first, *itertools.chain.from_iterable(pairs)]
            if any(type(number) is not int for number in numbers) or min(over, under) < 1 or len(data) != 3:
                raise ValueError("tick, first and steps must be integers")
            if any(times < 1 for _, times in pairs) or 1 + sum(times for _, times in pairs) != count:
                raise ValueError(f"not of {count} frames")
            if max(map(abs, numbers)) >= _LARGEST:
                raise ValueError("numbers too large")
        except (KeyError, TypeError) as error:
            raise ValueError(f"no tick, first and steps: {error}") from error
        steps = itertools.chain.from_iterable([step] * times for step, times in pairs)
        return cls(Fraction(over, under), tuple(itertools.accumulate(steps, initial=first)))


def joined(parts: Sequence[Timeline]) -> Timeline:
    """One after the other, in the coarsest tick that all of them are multiples of."""
    ticks = [part.tick for part in parts]
    tick = Fraction(math.gcd(*(t.numerator for t in ticks)), math.lcm(*(t.denominator for t in ticks)))
    return Timeline(tick, tuple(stamp * int(part.tick / tick) for part in parts for stamp in part.stamps))


def time_code(seconds: float) -> str:
    """hh:mm:ss.mmm."""
    minutes, millis = divmod(round(1000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{millis // 1000:02d}.{millis % 1000:03d}"


def exact_rate(fps: float) -> Fraction:
    """Frames per second as a fraction: an integer, n x 1000/1001 (NTSC), else the nearest with a small denominator.

    Raises UserError when it is not above 0 and at most MOST_FPS.
    """
    if not 0 < fps <= MOST_FPS:
        raise UserError(f"the frame rate {fps} must be above 0 and at most {MOST_FPS}, such as 24")
    ntsc = round(fps * 1.001) * _NTSC
    if abs(fps - round(fps)) > 1e-6 and abs(fps - ntsc) < 1e-4:
        return ntsc
    if fps < 1:  # such as a picture an hour
        return 1 / Fraction(1 / fps).limit_denominator(_LARGEST_DENOMINATOR)
    return Fraction(fps).limit_denominator(_LARGEST_DENOMINATOR)


def rate_of(times: Timeline, last: int = 0, hints: Iterable[Fraction] = ()) -> tuple[Fraction, bool]:
    """Frames per second of ascending stamps, and whether frame k is at k / rate, but for the rounding of the stamps.

    A constant rate is looked for among the `hints` (what headers promise) and the usual rates near the mean. Stamps may
    be rounded to more than a tick, in a file copied from a coarser container: to the greatest common divisor of their
    steps, and to less than a quarter of a frame. Else the rate is the mean, the last frame shown for `last` ticks (0:
    the median step).
    """
    stamps, tick, count = times.stamps, times.tick, len(times.stamps)
    span = stamps[-1] - stamps[0]
    if count == 1 or span <= 0:
        return next(iter(hints), 1 / (tick * (last or times.step))), True
    mean = (count - 1) / (span * tick)
    rounding = math.gcd(*(b - a for a, b in itertools.pairwise(stamps)))
    usual = Fraction(round(mean)), round(mean / _NTSC) * _NTSC, exact_rate(min(float(mean), MOST_FPS))
    for rate in (rate for rate in (*hints, *usual) if rate > 0):
        over, under = (1 / (rate * tick)).as_integer_ratio()  # ticks from frame to frame
        near = min(rounding * under, over / 4)
        if all(abs((stamp - stamps[0]) * under - number * over) <= near for number, stamp in enumerate(stamps)):
            return rate, True
    return count / ((span + (last or times.step)) * tick), False
