"""Selection of frames by a Python slice, and their split into training and validation frames, as in HNeRV."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.errors import UserError

_MANY = 1_000_000_000


class DataSplit(NamedTuple):
    """Frame positions, int64, sorted and disjoint. `val` may be empty."""

    train: Tensor
    val: Tensor


def data_split(count: int, split: str, shuffle_seed: int | None = None) -> DataSplit:
    """Split `count` frames by 'a_b_c': position i is for training if i mod c < a, for validation if i mod c >= b.

    Positions between a and b are unused. Position i is frame i, or, with a seed, frame i of a random permutation.
    Raises UserError if the text is malformed, unless a <= b <= c and c >= 1, and if no frame is left to train.
    Source: the data split of HNeRV (Chen et al., CVPR 2023).
    """
    match = re.fullmatch(r"(\d{1,9})_(\d{1,9})_(\d{1,9})", split, flags=re.ASCII)
    if not match:
        raise UserError(f"--data-split {split!r} must be three integers a_b_c, such as 9_9_10")
    train, val, cycle = (int(number) for number in match.groups())
    if not (cycle >= 1 and train <= val <= cycle):
        raise UserError(
            f"--data-split {split!r} must have a <= b <= c and c at least 1, such as 9_9_10: of every c frames, the "
            "first a are training frames and those from b on are unseen"
        )
    frames, phase = torch.arange(count), torch.arange(count) % cycle
    if shuffle_seed is not None:
        frames = torch.randperm(count, generator=torch.Generator().manual_seed(shuffle_seed))
    parts = DataSplit(frames[phase < train].sort().values, frames[phase >= val].sort().values)
    if not len(parts.train):
        raise UserError(
            f"--data-split {split!r} leaves none of the {count} frames to train: set a to at least 1, as in 9_9_10"
        )
    return parts


def slice_positions(frames: str, count: int) -> range:
    """Positions that --frames START:STOP:STEP selects out of `count`, all for ''. Raises UserError if malformed."""
    match = re.fullmatch(r"(-?\d{1,18})?:(-?\d{1,18})?(?::(-?\d{1,18})?)?", frames or ":", flags=re.ASCII)
    if not match or int(match[3] or 1) == 0:
        raise UserError(f"--frames {frames!r} must be start:stop:step with a step other than 0, such as 0:100 or ::2")
    return range(count)[slice(*(int(text) if text else None for text in match.groups()))]


def ends_before(frames: str, count: int) -> bool:
    """Whether the slice selects the same positions however many frames follow the first `count`."""
    return slice_positions(frames, count) == slice_positions(frames, count + _MANY)
