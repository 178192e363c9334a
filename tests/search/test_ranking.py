"""Scores against a loop; peaks against a flood that sinks through the scores of each patch; shots against both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import normalize

from hnerv.search import Hit, find_hits, score_patches, z_scores
from hnerv.search.ranking import MIN_PROMINENCE


def waves(frames: int, patches: int, seed: int) -> np.ndarray:
    """Scores (N, P) that rise and fall over several frames."""
    noise = np.random.default_rng(seed).normal(size=(frames + 4, patches))
    return sum(noise[k : k + frames] for k in range(5)).astype(np.float32)


def flooded(scores: np.ndarray) -> list[tuple[int, int]]:
    """(frame, patch) of the peaks that are MIN_PROMINENCE deviations above the saddle to a higher one, best first."""
    depth, found = MIN_PROMINENCE * scores.astype(np.float64).std(), []
    for patch in range(scores.shape[1]):
        line, owner = scores[:, patch].astype(np.float64), {}
        for frame in sorted(range(len(line)), key=lambda f: (-line[f], f)):
            peaks = sorted({owner[f] for f in (frame - 1, frame + 1) if f in owner}, key=lambda f: (-line[f], f))
            owner[frame] = peaks[0] if peaks else frame
            if len(peaks) == 2:
                if line[peaks[1]] - line[frame] >= depth:
                    found.append((peaks[1], patch))
                owner = {f: peaks[0] if peak == peaks[1] else peak for f, peak in owner.items()}
        found.append((int(line.argmax()), patch))
    return sorted(found, key=lambda place: (-scores[place], place))


@pytest.mark.parametrize("seed", range(6))
def test_hits_are_the_peaks_of_the_flood(seed):
    scores = waves(60, 3, seed)
    expected = flooded(scores)
    assert len(expected) > 3
    hits = find_hits(scores, 1000, per_patch=True)
    assert [(hit.frame, hit.patch) for hit in hits] == expected
    assert find_hits(scores, 2, per_patch=True) == hits[:2]


def test_levels_are_one_peak():
    scores = np.array([[0, 1, 1, 0, 1, 0, 0, 2, 2]], dtype=np.float32).T
    assert [(h.frame, h.patch) for h in find_hits(scores, 9)] == flooded(scores) == [(7, 0), (1, 0), (4, 0)]


def test_of_equal_peaks_without_a_valley_the_earlier_is_the_hit():
    scores = np.array([[0, 5, 4.9, 5, 0, 5, 0]], dtype=np.float32).T
    assert [(h.frame, h.patch) for h in find_hits(scores, 9)] == flooded(scores) == [(1, 0), (5, 0)]


def test_neighbouring_frames_are_one_hit_and_another_shot_is_another():
    scores = np.zeros((100, 2), dtype=np.float32)
    scores[10:34, 0] = 0.5 + 0.01 * np.sin(np.arange(24))
    scores[60:70, 0] = 0.4
    hits = find_hits(scores, 2)
    assert [(hit.patch, hit.first, hit.last) for hit in hits] == [(0, 10, 33), (0, 60, 69)]
    assert 10 <= hits[0].frame <= 33 and hits[0].score == scores.max()


SCORES = arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(-20, 20).map(float))


@settings(deadline=None, max_examples=300)
@given(SCORES)
def test_a_shot_is_one_hit(scores):
    """No two hits touch in time, every peak of a patch is a hit or touches a better one, and best comes first."""
    peaks, hits = find_hits(scores, 10_000, per_patch=True), find_hits(scores, 10_000)
    frames = [set(range(hit.first, hit.last + 1)) for hit in hits]
    reach = [shot | {min(shot) - 1, max(shot) + 1} for shot in frames]
    assert not any(reach[i] & frames[j] for i in range(len(hits)) for j in range(i))
    shown = [hit._replace(also=()) for hit in hits]
    assert set(shown) <= set(peaks) and shown[0] == peaks[0]
    for peak in peaks:
        of_peak = set(range(peak.first, peak.last + 1))
        better = [hit for hit, shot in zip(shown, reach, strict=True) if shot & of_peak and hit.score >= peak.score]
        assert better and (peak in better) == (peak in shown)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(find_hits(scores, top) == hits[:top] for top in (1, 2, 3))


@settings(deadline=None, max_examples=300)
@given(SCORES)
def test_other_patches_of_a_hit_are_those_that_come_near_it(scores):
    for hit in find_hits(scores, 10_000):
        best = {p: scores[hit.first : hit.last + 1, p].max() for p in range(scores.shape[1]) if p != hit.patch}
        near = [p for p in best if best[p] > hit.score - MIN_PROMINENCE * scores.std()]
        assert hit.also == tuple(sorted(near, key=lambda p: (-best[p], p)))
    assert all(hit.also == () for hit in find_hits(scores, 10_000, per_patch=True))


def test_patches_of_two_shots():
    scores = np.zeros((60, 4), dtype=np.float32)
    scores[10:20, 1], scores[12:22, 3], scores[15, 2] = 0.9, 0.8, 0.3
    scores[40:50, 2], scores[50:52, 0] = 0.7, 0.6  # the latter follows at once: the same shot, but not in its frames
    first, second = find_hits(scores, 2)
    assert (first.patch, first.first, first.last, first.also) == (1, 10, 19, (3,))
    assert (second.patch, second.first, second.last, second.also) == (2, 40, 49, ())
    apart = find_hits(scores, 9, per_patch=True)
    assert [hit.patch for hit in apart[:5]] == [1, 3, 2, 0, 2]


def test_where_all_is_equal_there_is_one_hit_or_one_a_patch_and_no_standing():
    scores = np.full((5, 3), 0.25, dtype=np.float32)
    assert find_hits(scores, 10) == [Hit(0, 0, 0.25, 0.0, 0, 0)]
    hits = find_hits(scores, 10, per_patch=True)
    assert [(hit.frame, hit.patch, hit.z, hit.first, hit.last) for hit in hits] == [(0, p, 0.0, 0, 0) for p in range(3)]


def test_one_frame():
    assert [(h.frame, h.patch, h.first, h.last) for h in find_hits(np.array([[0.1, 0.9]]), 5, True)] == [
        (0, 1, 0, 0),
        (0, 0, 0, 0),
    ]


def test_standing():
    scores = np.array([[1.0, 2.0], [3.0, 6.0]])
    assert z_scores(scores) == pytest.approx((scores - 3) / np.sqrt(14 / 4))
    assert find_hits(scores, 1)[0].z == pytest.approx(3 / np.sqrt(3.5))


@pytest.mark.parametrize(("wanted", "unwanted"), [(1, 0), (3, 0), (2, 2)])
def test_scores_are_means_of_cosines(wanted, unwanted):
    draw = torch.Generator().manual_seed(0)
    e, a, b = (normalize(torch.randn(*shape, 7, generator=draw), dim=-1) for shape in ((4, 3), (wanted,), (unwanted,)))
    found = score_patches(e, a, b if unwanted else None)
    for n in range(4):
        for p in range(3):
            expected = sum(float(torch.dot(e[n, p], q)) for q in a) / wanted
            expected -= sum(float(torch.dot(e[n, p], q)) for q in b) / max(unwanted, 1)
            assert float(found[n, p]) == pytest.approx(expected, abs=1e-6)
