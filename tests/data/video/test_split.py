from __future__ import annotations

import pytest

from hnerv.data.video import data_split
from hnerv.errors import UserError


@pytest.mark.parametrize(
    ("count", "split", "train", "val"),
    [
        (10, "9_9_10", [0, 1, 2, 3, 4, 5, 6, 7, 8], [9]),
        (10, "6_6_10", [0, 1, 2, 3, 4, 5], [6, 7, 8, 9]),
        (5, "1_1_2", [0, 2, 4], [1, 3]),
        (7, "1_2_3", [0, 3, 6], [2, 5]),
        (4, "1_1_1", [0, 1, 2, 3], []),
        (12, "9_10_10", [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11], []),
        (1, "9_9_10", [0], []),
    ],
)
def test_by_hand(count: int, split: str, train: list[int], val: list[int]) -> None:
    parts = data_split(count, split)
    assert (parts.train.tolist(), parts.val.tolist()) == (train, val)
    assert str(parts.train.dtype) == str(parts.val.dtype) == "torch.int64"


def test_bunny_has_the_sizes_of_the_literature() -> None:
    for split, sizes in {"1_1_2": (66, 66), "9_9_10": (119, 13), "6_6_10": (80, 52)}.items():
        assert tuple(map(len, data_split(132, split))) == sizes


def test_shuffled_parts_keep_their_sizes_and_are_disjoint() -> None:
    plain, one, again, other = (data_split(132, "6_8_10", seed) for seed in (None, 1, 1, 2))
    train, val = (part.tolist() for part in one)
    assert [*map(len, one)] == [*map(len, plain)] and not {*train} & {*val} and {*train, *val} < {*range(132)}
    assert train == sorted(train) == again.train.tolist() != other.train.tolist()
    assert val == sorted(val) != plain.val.tolist()


MALFORMED = ["", "9_10", "9_9_10_1", "a_b_c", "-1_9_10", "9.0_9_10", "9-9-10", " 9_9_10", "٣_٣_٣"]
OUT_OF_ORDER = ["5_4_10", "5_11_10", "0_0_0", "11_11_10"]


@pytest.mark.parametrize(
    ("count", "split", "message"),
    [(10, split, "must be three integers a_b_c, such as 9_9_10") for split in MALFORMED]
    + [(10, split, f"--data-split '{split}' must have a <= b <= c and c at least 1") for split in OUT_OF_ORDER]
    + [(n, f"{a}_9_10", f"leaves none of the {n} frames to train: set a to at least 1") for n, a in ((10, 0), (0, 9))],
)
def test_refused(count: int, split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data_split(count, split)
