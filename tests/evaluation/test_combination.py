"""The values of parts, put together, against those of all frames at once."""

from __future__ import annotations

import pytest
import torch

from hnerv.evaluation.combination import combine
from hnerv.evaluation.health import StageFeatures
from hnerv.evaluation.measure import ClipMeasures, Report, SplitReport
from hnerv.evaluation.summary import eval_values


def split_of(frames: int, seed: int) -> SplitReport:
    draw = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    clip = ClipMeasures(*(numbers(frames, 4) for _ in ClipMeasures._fields))
    where = torch.arange(frames)
    return SplitReport(where, 20 + 10 * numbers(frames, 4), 30 * numbers(frames), numbers(frames), clip, None)


def joined(splits: list[SplitReport]) -> SplitReport:
    clip = ClipMeasures(*(torch.cat(column) for column in zip(*(s.clip for s in splits), strict=True)))
    columns = [torch.cat([getattr(s, name) for s in splits]) for name in ("positions", "psnr", "psnr_frame", "ms_ssim")]
    return SplitReport(*columns, clip, None)


def values_of(train: SplitReport, val: SplitReport | None) -> dict[str, float]:
    found = eval_values(Report(train, val, "", StageFeatures(*([] for _ in StageFeatures._fields))))
    return {tag: value for tag, value in found.items() if "health" not in tag}


@pytest.fixture
def no_health(monkeypatch):
    monkeypatch.setattr("hnerv.evaluation.summary._health_values", lambda *_: {})


def test_as_if_measured_at_once(no_health):
    trains, vals = [split_of(n, n) for n in (3, 8, 5)], [split_of(n, 50 + n) for n in (1, 2, 4)]
    parts = [values_of(t, v) for t, v in zip(trains, vals, strict=True)]
    assert combine(parts) == {tag: pytest.approx(v) for tag, v in values_of(joined(trains), joined(vals)).items()}


def test_parts_without_unseen_frames(no_health):
    trains, val = [split_of(4, 1), split_of(6, 2)], split_of(2, 3)
    parts = [values_of(trains[0], None), values_of(trains[1], val)]
    assert combine(parts) == {tag: pytest.approx(v) for tag, v in values_of(joined(trains), val).items()}
    alone = combine(parts[:1])
    assert not any("/val_" in tag or "_val_" in tag or "Gap" in tag for tag in alone)


def test_what_one_part_lacks_is_left_out(no_health):
    parts = [values_of(split_of(4, 1), None), values_of(split_of(6, 2), None)]
    del parts[1]["Eval/Frame/train_clip_sim"]
    found = combine(parts)
    assert "Eval/Frame/train_clip_sim" not in found and "Eval/Patch/train_clip_sim_std" not in found
    assert "Eval/Frame/train_psnr" in found
