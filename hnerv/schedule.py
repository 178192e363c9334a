"""Learning rate and CLIP weight as pure functions of training progress.

Pure Python: the command line reads the table of schedules without importing torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hnerv.errors import UserError

_UP = "x < UP: MIN + (1 - MIN) (x/UP)"
SCHEDULES: dict[str, str] = {
    "constant": "1",
    "cosine_UP_POW_MIN": f"{_UP}^POW; then (1 + cos(pi y))/2",
    "hybrid_UP_UPPOW_DOWNPOW_MIN_FINAL": f"{_UP}^UPPOW; then 1 - (1 - FINAL) y^DOWNPOW",
}
"""Form of --lr-type -> factor of --lr; x is the fraction of training done, y = (x - UP)/(1 - UP)."""


def parse_lr(lr_type: str) -> Callable[[float], float]:
    """'cosine_0.1_1_0.1' -> the learning-rate factor, in [0, 1], as a function of progress x in [0, 1].

    Progress outside [0, 1] counts as the nearer end. UP = 0 starts with the decay; UP = 1 is a ramp alone.
    Source: the `lr_type` strings of HNeRV (Chen et al. 2023), formulae in `SCHEDULES`.
    Raises UserError that names the forms when `lr_type` is none of them or a number is out of range.
    """
    kind, *fields = lr_type.split("_")
    form = next((form for form in SCHEDULES if form.split("_")[0] == kind), "")
    names = form.split("_")[1:]
    if not form or len(names) != len(fields):
        raise UserError(f"--lr-type {lr_type!r} is not a known schedule: choose from {', '.join(SCHEDULES)}")
    number = {name: _number(lr_type, name, field) for name, field in zip(names, fields, strict=True)}
    if kind == "constant":
        return lambda x: 1.0
    if kind == "cosine":
        return _ramp_then(number["UP"], number["POW"], number["MIN"], _half_cosine)
    power, final = number["DOWNPOW"], number["FINAL"]
    return _ramp_then(number["UP"], number["UPPOW"], number["MIN"], lambda y: 1 - (1 - final) * y**power)


def clip_weight(epoch: int, *, weight: float, warmup_epochs: int, ramp_epochs: int) -> float:
    """Weight lambda of the CLIP loss in an epoch, counted from 0.

    Exactly 0.0 in the first `warmup_epochs` epochs; then weight/ramp_epochs, 2 weight/ramp_epochs, ..., and exactly
    `weight` from the last of the `ramp_epochs` epochs on; with `ramp_epochs` 0, `weight` at once.
    """
    active = epoch - warmup_epochs + 1
    if active <= 0:
        return 0.0
    return weight if active >= ramp_epochs else weight * active / ramp_epochs


def _half_cosine(y: float) -> float:
    return (1 + math.cos(math.pi * y)) / 2


def _ramp_then(up: float, power: float, low: float, decay: Callable[[float], float]) -> Callable[[float], float]:
    # The ramp reaches 1 at x = UP, where every decay starts from 1: the factor is continuous.
    def factor(x: float) -> float:
        x = min(max(x, 0.0), 1.0)
        if x < up:
            return low + (1 - low) * (x / up) ** power
        return decay((x - up) / (1 - up)) if up < 1 else 1.0

    return factor


def _number(lr_type: str, name: str, text: str) -> float:
    top = math.inf if name.endswith("POW") else 1.0
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= top and math.isfinite(value)):
        expected = "a number of at least 0" if name.endswith("POW") else "a number from 0 to 1"
        raise UserError(f"--lr-type {lr_type!r}: {name} is {text!r} but must be {expected}")
    return value
