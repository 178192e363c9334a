"""Presentation times of frames, as integer time stamps in units of a tick, and the frame rate they imply.

Each container has its own tick (1/90000 s in MPEG-TS, 1/1000 s in Matroska), so the stamps of a constant rate are
rounded: 30 frames per second in Matroska are at 0, 33, 67, 100 ms.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from hnerv.errors import UserError

MAX_FPS = 1_000_000
_NTSC = Fraction(1000, 1001)
_MAX_DENOMINATOR = 1001
_MAX_STAMP = 1 << 53
"""JSON readers that store numbers as doubles keep integers below this exact."""


@dataclass(frozen=True)
class Timeline:
    """Frame k is shown from `stamps[k] * tick` seconds on, counted from the first frame of the source."""

    tick: Fraction
    stamps: Sequence[int]

    @classmethod
    def at_rate(cls, fps: float, frames: range = range(1 << 31)) -> Timeline:
        """Timeline of the given frame numbers of a source with a constant rate. Raises UserError as `exact_rate`."""
        return cls(1 / exact_rate(fps), frames)

    @property
    def median_step(self) -> int:
        """Median distance between frames in ticks, also used as the duration of the last one; 1 for a single frame."""
        head = self.stamps[: 1 << 20]
        return int(statistics.median_low([abs(b - a) for a, b in itertools.pairwise(head)] or [1])) or 1

    def seconds(self, frame: int) -> float:
        return float(self.stamps[frame] * self.tick)

    def select(self, frames: Iterable[int]) -> Timeline:
        """Timeline of a subset of the frames, each at its time in the source."""
        return Timeline(self.tick, tuple(self.stamps[frame] for frame in frames))

    def to_dict(self) -> dict:
        """{"tick": [1, 1000], "first": 0, "steps": [[33, 1], [34, 2]]}, run-length coded. Inverse of `from_dict`."""
        steps = itertools.groupby(b - a for a, b in itertools.pairwise(self.stamps))
        pairs = [[step, sum(1 for _ in group)] for step, group in steps]
        return {"tick": [*self.tick.as_integer_ratio()], "first": self.stamps[0], "steps": pairs}

    @classmethod
    def from_dict(cls, data: dict, count: int) -> Timeline:
        """Inverse of `to_dict`. Raises ValueError if `data` is not a timeline of `count` frames."""
        try:
            (over, under), first, pairs = data["tick"], data["first"], data["steps"]
            numbers = [over, under, first, *itertools.chain.from_iterable(pairs)]
            if any(type(number) is not int for number in numbers) or min(over, under) < 1 or len(data) != 3:
                raise ValueError("tick, first and steps must be integers")
            if any(times < 1 for _, times in pairs) or 1 + sum(times for _, times in pairs) != count:
                raise ValueError(f"not of {count} frames")
            if max(map(abs, numbers)) >= _MAX_STAMP:
                raise ValueError("numbers too large")
        except (KeyError, TypeError) as error:
            raise ValueError(f"no tick, first and steps: {error}") from error
        steps = itertools.chain.from_iterable([step] * times for step, times in pairs)
        return cls(Fraction(over, under), tuple(itertools.accumulate(steps, initial=first)))


def concat_timelines(parts: Sequence[Timeline]) -> Timeline:
    """Append timelines, in the coarsest tick that divides the ticks of all parts."""
    # gcd of reduced fractions a/b and c/d is gcd(a, c) / lcm(b, d).
    ticks = [part.tick for part in parts]
    tick = Fraction(math.gcd(*(t.numerator for t in ticks)), math.lcm(*(t.denominator for t in ticks)))
    return Timeline(tick, tuple(stamp * int(part.tick / tick) for part in parts for stamp in part.stamps))


def time_code(seconds: float) -> str:
    """Format as hh:mm:ss.mmm."""
    minutes, millis = divmod(round(1000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{millis // 1000:02d}.{millis % 1000:03d}"


def exact_rate(fps: float) -> Fraction:
    """Frames per second as a fraction: an integer, n x 1000/1001 (NTSC), or the nearest with a small denominator.

    Raises UserError unless 0 < fps <= MAX_FPS.
    """
    if not 0 < fps <= MAX_FPS:
        raise UserError(f"the frame rate {fps} must be above 0 and at most {MAX_FPS}, such as 24")
    ntsc = round(fps * 1.001) * _NTSC
    if abs(fps - round(fps)) > 1e-6 and abs(fps - ntsc) < 1e-4:
        return ntsc
    if fps < 1:  # such as one picture an hour
        return 1 / Fraction(1 / fps).limit_denominator(_MAX_DENOMINATOR)
    return Fraction(fps).limit_denominator(_MAX_DENOMINATOR)


def estimate_rate(times: Timeline, last: int = 0, hints: Iterable[Fraction] = ()) -> tuple[Fraction, bool]:
    """Frames per second of ascending stamps, and whether it is constant: frame k at k / rate, up to rounding.

    Candidates are the `hints` (rates in the headers) and the common rates near the mean. If none fits, the rate is the
    mean, with the last frame shown for `last` ticks (0: the median step).
    """
    stamps, tick, count = times.stamps, times.tick, len(times.stamps)
    span = stamps[-1] - stamps[0]
    last = last or times.median_step
    if count == 1 or span <= 0:
        return next(iter(hints), 1 / (tick * last)), True
    mean = (count - 1) / (span * tick)
    # A file remuxed from a coarser container (milliseconds of Matroska in the ticks of MP4) keeps the coarse rounding:
    # all its steps are multiples of the old tick, so their gcd bounds the rounding error, in ticks.
    rounding = math.gcd(*(b - a for a, b in itertools.pairwise(stamps)))
    common = Fraction(round(mean)), round(mean / _NTSC) * _NTSC, exact_rate(min(float(mean), MAX_FPS))
    for rate in (rate for rate in (*hints, *common) if rate > 0):
        # With a frame interval of over / under ticks, frame k fits if |stamp_k - k over / under| <= rounding. The gcd
        # of a variable rate may be large, so the error must stay below a quarter of a frame, too.
        over, under = (1 / (rate * tick)).as_integer_ratio()
        tolerance = min(rounding * under, over / 4)
        if all(abs((stamp - stamps[0]) * under - k * over) <= tolerance for k, stamp in enumerate(stamps)):
            return rate, True
    return count / ((span + last) * tick), False
