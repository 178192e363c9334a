"""Scores of patches, and the hits among them: pure functions.

N frames, P patches, D embedding dimensions, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

VALLEY = 1.0
"""Standard deviations by which the score of a patch must fall between two hits for them to be two."""


class Hit(NamedTuple):
    """A patch around the frame where its score peaks; it stays near the peak from frame `first` to `last`.

    `also` are the other patches, best first, whose score comes within VALLEY deviations of it during these frames.
    """

    frame: int
    patch: int
    score: float
    z: float
    first: int
    last: int
    also: tuple[int, ...] = ()

    def touches(self, other: Hit) -> bool:
        """Whether the frames of both overlap or follow one another without a gap."""
        return self.first <= other.last + 1 and other.first <= self.last + 1


def score_patches(embeddings: Tensor, wanted: Tensor, unwanted: Tensor | None = None) -> Tensor:
    """embeddings (N, P, D), wanted (Q, D), unwanted (Q', D), all of unit norm -> (N, P), in [-2, 2].

    The mean of the cosines with the wanted ones, less the mean of those with the unwanted ones.
    """
    return embeddings @ direction_of(wanted, unwanted)


def direction_of(wanted: Tensor, unwanted: Tensor | None = None) -> Tensor:
    """(D,) whose inner product with an embedding is its score."""
    return wanted.mean(0) if unwanted is None or not len(unwanted) else wanted.mean(0) - unwanted.mean(0)


def z_scores(scores: np.ndarray) -> np.ndarray:
    """Scores (N, P) -> deviations from the mean of all patches in standard deviations; 0 where all are equal."""
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)


def find_hits(scores: np.ndarray, top: int, per_patch: bool = False) -> list[Hit]:
    """Scores (N, P) -> at most `top` hits, best first; equal ones in the order of the video.

    One hit per shot: of all peaks, best first, each is a hit unless its frames touch those of a better hit, which then
    stands for it. With `per_patch` every peak is a hit, and has no `also`.
    """
    hits: list[Hit] = []
    for peak in _peaks(scores.astype(np.float64)):
        if len(hits) == top:
            break
        if per_patch:
            hits.append(peak)
        elif not any(peak.touches(hit) for hit in hits):
            hits.append(peak._replace(also=_also(scores, peak)))
    return hits


def _peaks(scores: np.ndarray) -> Iterator[Hit]:
    """Scores (N, P) in fp64 -> the peaks of each patch over time, best first.

    Neighbouring frames are one peak, and so are two maxima of a patch unless its score falls by VALLEY standard
    deviations (of all scores) below the lower one between them.
    """
    z, depth = z_scores(scores), VALLEY * scores.std()
    before = np.pad(scores, ((1, 0), (0, 0)), constant_values=-np.inf)[:-1]
    after = np.pad(scores, ((0, 1), (0, 0)), constant_values=-np.inf)[1:]
    frames, patches = np.nonzero((scores > before) & (scores >= after))
    for k in np.argsort(-scores[frames, patches], kind="stable"):
        frame, patch = int(frames[k]), int(patches[k])
        if _stands_out(scores[:, patch], frame, depth):
            first, last = _stretch(scores[:, patch], frame, depth)
            yield Hit(frame, patch, float(scores[frame, patch]), float(z[frame, patch]), first, last)


def _also(scores: np.ndarray, hit: Hit) -> tuple[int, ...]:
    """`Hit.also` of a hit among scores (N, P)."""
    best = scores[hit.first : hit.last + 1].astype(np.float64).max(0)
    near = best > hit.score - VALLEY * scores.astype(np.float64).std()
    order = np.argsort(-best, kind="stable")
    return tuple(int(patch) for patch in order if near[patch] and patch != hit.patch)


def _stands_out(line: np.ndarray, frame: int, depth: float) -> bool:
    """Whether `line` (N,) falls by `depth` between its value at `frame` and any that ranks above it."""
    sides = line[:frame][::-1] >= line[frame], line[frame + 1 :] > line[frame]
    reach = [int(side.argmax()) if side.any() else -1 for side in sides]
    valleys = [
        -np.inf if reach[0] < 0 else line[frame - 1 - reach[0] : frame + 1].min(),
        -np.inf if reach[1] < 0 else line[frame : frame + 2 + reach[1]].min(),
    ]
    return line[frame] - max(valleys) >= depth


def _stretch(line: np.ndarray, frame: int, depth: float) -> tuple[int, int]:
    """First and last frame around `frame` through which `line` stays less than `depth` below its value there."""
    low = line <= line[frame] - depth
    low[frame] = False
    left, right = low[:frame][::-1], low[frame + 1 :]
    first = frame - int(left.argmax()) if left.any() else 0
    last = frame + int(right.argmax()) if right.any() else len(line) - 1
    return first, last
