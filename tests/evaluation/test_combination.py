"""Combined values of chunks, against those of all frames evaluated at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnerv.evaluation import combine, eval_values
from hnerv.evaluation.health import EmbeddingHealth, Spread, StageFeatures
from hnerv.evaluation.measure import ClipMeasures, Report, SplitReport
from hnerv.evaluation.summary import PAIRED_GAP, PAIRED_GAP_ERROR

HEALTH = EmbeddingHealth(Spread(0, 0, 0, 0), Spread(0, 0, 0, 0), None, 0.0)


def split_of(frames: int, draw: torch.Generator) -> SplitReport | None:
    patches = [torch.rand(frames, 4, generator=draw) for _ in ClipMeasures._fields]
    pixels = [30 * torch.rand(frames, generator=draw) for _ in range(2)]
    measures = 20 + 10 * torch.rand(frames, 4, generator=draw), *pixels, ClipMeasures(*patches), HEALTH
    return SplitReport(torch.arange(frames), *measures) if frames else None


def joined(splits: list[SplitReport | None]) -> SplitReport | None:
    splits = [split for split in splits if split]
    if not splits:
        return None
    clip = ClipMeasures(*(torch.cat(column) for column in zip(*(split.clip for split in splits), strict=True)))
    return SplitReport(
        *(torch.cat(column) for column in zip(*(split[:4] for split in splits), strict=True)), clip, HEALTH
    )


def values_of(train: SplitReport, val: SplitReport | None) -> dict[str, float]:
    values = eval_values(Report(train, val, "", StageFeatures([1.0], [1.0])))
    return {tag: v for tag, v in values.items() if not tag.startswith(("Eval/Embedding/", "Model/", PAIRED_GAP))}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=4))
def test_as_if_evaluated_at_once(sizes):
    draw = torch.Generator().manual_seed(0)
    trains, vals = ([split_of(n, draw) for n in counts] for counts in zip(*sizes, strict=True))
    chunks = [values_of(train, val) for train, val in zip(trains, vals, strict=True)]
    assert combine(chunks) == {tag: pytest.approx(v) for tag, v in values_of(joined(trains), joined(vals)).items()}
    del chunks[-1]["Eval/Frame/train_clip_sim"]
    lacking = {"Eval/Frame/train_clip_sim", "Eval/Patch/train_clip_sim_std", "Eval/Gap/clip_sim_gap"}
    assert set(combine(chunks)) == set(values_of(joined(trains), joined(vals))) - lacking


def test_paired_gaps_of_independent_chunks():
    """The mean of both samples has the variance of one sample that holds both; a chunk without a gap does not count."""
    samples = [torch.randn(n, generator=torch.Generator().manual_seed(n)).double() for n in (4000, 1000)]
    chunks = [
        {
            "Eval/Info/num_val_frames": len(x),
            PAIRED_GAP: float(x.mean()),
            PAIRED_GAP_ERROR: float(x.std()) / len(x) ** 0.5,
        }
        for x in samples
    ]
    both = torch.cat(samples)
    found = combine([*chunks, {"Eval/Info/num_val_frames": 3}])
    assert found[PAIRED_GAP] == pytest.approx(float(both.mean()))
    assert found[PAIRED_GAP_ERROR] == pytest.approx(float(both.std()) / 5000**0.5, rel=0.01)
    assert PAIRED_GAP not in combine([{"Eval/Info/num_val_frames": 3}])


def test_costs_by_hand():
    parts = [({"decoder": 10}, 2.0, 1.0, 10.0, 7), ({"decoder": 20}, 5.0, 4.0, 40.0, 5)]
    keys = "coded_parameters", "bpp_estimate_8bit", "gmac_per_frame", "decode_fps", "epoch"
    summaries = [dict(zip(keys, part, strict=True)) for part in parts]
    # 20 frames at 10/s and 10 frames at 40/s take 2.25 s.
    expected = {"coded_parameters": {"decoder": 30}, "epoch": 5, "bpp_estimate_8bit": 3.0, "gmac_per_frame": 2.0}
    assert combine(summaries, [20, 10]) == expected | {"decode_fps": pytest.approx(30 / 2.25)}
    assert combine([*summaries, {}], [20, 10, 1]) == {} == combine(summaries)
