"""Schedules against hand-computed tables, at both ends, and their shape in between."""

import math
import subprocess
import sys

import pytest

from hnerv.errors import UserError
from hnerv.schedule import SCHEDULES, clip_weight, parse_lr

COSINE = "cosine_0.2_2_0.1"
HYBRID = "hybrid_0.2_1_2_0.1_0.05"


@pytest.mark.parametrize(
    ("lr_type", "points"),
    [
        ("constant", {0: 1, 1: 1}),
        (COSINE, {0: 0.1, 0.1: 0.1 + 0.9 * 0.25, 0.2: 1, 0.4: (1 + math.sqrt(0.5)) / 2, 0.6: 0.5, 1: 0, 1.5: 0}),
        (HYBRID, {-1: 0.1, 0: 0.1, 0.1: 0.55, 0.2: 1, 0.6: 1 - 0.95 * 0.25, 1: 0.05}),
        ("cosine_0_1_0.1", {0: 1, 0.5: 0.5, 1: 0}),
        ("cosine_1_1_0.1", {0: 0.1, 0.5: 0.55, 1: 1}),
        ("hybrid_1_1_2_0_0.5", {1: 1}),
    ],
)
def test_learning_rate_table(lr_type, points):
    found = {progress: parse_lr(lr_type)(progress) for progress in points}
    assert found == pytest.approx(points, abs=1e-12)


@pytest.mark.parametrize("lr_type", [COSINE, HYBRID])
def test_learning_rate_rises_joins_and_falls(lr_type):
    factor = parse_lr(lr_type)
    rise, fall = ([factor(start + span * i / 100) for i in range(101)] for start, span in ((0, 0.2), (0.2, 0.8)))
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True) and 0 <= min(rise + fall) <= max(rise) == 1
    assert factor(0.2 - 1e-9) == pytest.approx(factor(0.2), abs=1e-7)


FORMS = f"is not a known schedule: choose from {', '.join(SCHEDULES)}"


@pytest.mark.parametrize(
    ("lr_type", "fault"),
    [
        *((text, f" {FORMS}") for text in ("", "linear", "cosine", "cosine_0.1_1", "cosine_0.1_1_0.1_0", "constant_1")),
        ("cosine_x_1_0.1", ": UP is 'x' but must be a number from 0 to 1"),
        ("cosine_1.5_1_0.1", ": UP is '1.5' but must be a number from 0 to 1"),
        ("cosine_0.1_-1_0.1", ": POW is '-1' but must be a number of at least 0"),
        ("cosine_0.1_inf_0.1", ": POW is 'inf' but must be a number of at least 0"),
        ("cosine_0.1_1_nan", ": MIN is 'nan' but must be a number from 0 to 1"),
        ("hybrid_0.1_1_x_0.1_0.1", ": DOWNPOW is 'x' but must be a number of at least 0"),
        ("hybrid_0.1_1_1_0.1_2", ": FINAL is '2' but must be a number from 0 to 1"),
    ],
)
def test_a_wrong_form_or_number_is_one_line(lr_type, fault):
    with pytest.raises(UserError) as error:
        parse_lr(lr_type)
    assert str(error.value) == f"--lr-type {lr_type!r}{fault}"


@pytest.mark.parametrize(
    ("warmup", "ramp", "expected"),
    [
        (0, 0, [0.6] * 6),
        (2, 0, [0.0, 0.0, 0.6, 0.6, 0.6, 0.6]),
        (2, 1, [0.0, 0.0, 0.6, 0.6, 0.6, 0.6]),
        (2, 3, [0.0, 0.0, 0.2, 0.4, 0.6, 0.6]),
        (0, 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        (9, 3, [0.0] * 6),
    ],
)
def test_clip_weight_table(warmup, ramp, expected):
    got = [clip_weight(epoch, weight=0.6, warmup_epochs=warmup, ramp_epochs=ramp) for epoch in range(6)]
    assert got == pytest.approx(expected, abs=1e-12)
    assert [value == 0 for value in got] == [epoch < warmup for epoch in range(6)]
    assert clip_weight(warmup + ramp, weight=0.6, warmup_epochs=warmup, ramp_epochs=ramp) == 0.6


def test_the_tables_of_the_help_need_no_torch():
    code = "import sys, hnerv.schedule, hnerv.losses; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
