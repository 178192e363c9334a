"""Scores of patches and the hits among them, as pure functions.

N frames, P patches, D embedding dimensions, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hnerv.errors import UserError

MIN_PROMINENCE = 1.0
"""Prominence of a peak, in standard deviations of all scores, from which on it is a hit of its own."""


class Hit(NamedTuple):
    """A patch and the frame where its score peaks. From `first` to `last` the score stays close to the peak.

    `also` lists other patches, best first, with a score within MIN_PROMINENCE deviations of the peak in these frames.
    """

    frame: int
    patch: int
    score: float
    z: float
    first: int
    last: int
    also: tuple[int, ...] = ()

    def touches(self, other: Hit) -> bool:
        """True if the frames of both hits overlap or are adjacent."""
        return self.first <= other.last + 1 and other.first <= self.last + 1


def score_patches(embeddings: Tensor, wanted: Tensor, unwanted: Tensor | None = None) -> Tensor:
    """embeddings (N, P, D), wanted (Q, D), unwanted (Q', D), all of unit norm -> (N, P), in [-2, 2].

    Mean cosine with the wanted queries minus mean cosine with the unwanted ones.
    """
    return embeddings @ query_direction(wanted, unwanted)


def query_direction(wanted: Tensor, unwanted: Tensor | None = None) -> Tensor:
    """(D,). The score is linear in the embedding, so all queries reduce to one inner product with this vector."""
    return wanted.mean(0) if unwanted is None or not len(unwanted) else wanted.mean(0) - unwanted.mean(0)


def z_scores(scores: np.ndarray) -> np.ndarray:
    """Scores (N, P) standardised over all frames and patches; 0 if all scores are equal."""
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)


def check_top(top: int) -> None:
    """Raises UserError for a number of hits below 1."""
    if top < 1:
        raise UserError(f"--top {top} must be at least 1")


def find_hits(scores: np.ndarray, top: int, per_patch: bool = False) -> list[Hit]:
    """Scores (N, P) -> at most `top` hits, best first; ties in the order of the video.

    One hit per shot, by non-maximum suppression in time: a peak is dropped if its frames touch those of a better hit.
    With `per_patch` every peak is a hit and `also` is empty. Raises UserError.
    """
    check_top(top)
    hits: list[Hit] = []
    for peak in _peaks(scores.astype(np.float64)):
        if len(hits) == top:
            break
        if per_patch:
            hits.append(peak)
        elif not any(peak.touches(hit) for hit in hits):
            hits.append(peak._replace(also=_other_patches(scores, peak)))
    return hits


def _peaks(scores: np.ndarray) -> Iterator[Hit]:
    """Scores (N, P) in fp64 -> the prominent peaks of each patch over time, best first.

    Two maxima of a patch are one peak unless the score between them falls MIN_PROMINENCE standard deviations (of all
    scores) below the lower one. A plateau is one peak, at its first frame.
    """
    z, depth = z_scores(scores), MIN_PROMINENCE * scores.std()
    before = np.pad(scores, ((1, 0), (0, 0)), constant_values=-np.inf)[:-1]
    after = np.pad(scores, ((0, 1), (0, 0)), constant_values=-np.inf)[1:]
    frames, patches = np.nonzero((scores > before) & (scores >= after))
    for k in np.argsort(-scores[frames, patches], kind="stable"):
        frame, patch = int(frames[k]), int(patches[k])
        if _is_prominent(scores[:, patch], frame, depth):
            first, last = _extent(scores[:, patch], frame, depth)
            yield Hit(frame, patch, float(scores[frame, patch]), float(z[frame, patch]), first, last)


def _other_patches(scores: np.ndarray, hit: Hit) -> tuple[int, ...]:
    """`Hit.also` for a hit in scores (N, P)."""
    best = scores[hit.first : hit.last + 1].astype(np.float64).max(0)
    near = best > hit.score - MIN_PROMINENCE * scores.astype(np.float64).std()
    order = np.argsort(-best, kind="stable")
    return tuple(int(patch) for patch in order if near[patch] and patch != hit.patch)


def _is_prominent(line: np.ndarray, frame: int, depth: float) -> bool:
    """True if the topographic prominence of the maximum of `line` (N,) at `frame` is at least `depth`."""
    # Walk from the peak to the nearest value that ranks above it, on each side; on a tie the earlier frame ranks above.
    # The lowest value on the way is the valley of that side. The prominence is the height above the higher valley.
    sides = line[:frame][::-1] >= line[frame], line[frame + 1 :] > line[frame]
    reach = [int(side.argmax()) if side.any() else -1 for side in sides]
    valleys = [
        -np.inf if reach[0] < 0 else line[frame - 1 - reach[0] : frame + 1].min(),
        -np.inf if reach[1] < 0 else line[frame : frame + 2 + reach[1]].min(),
    ]
    return line[frame] - max(valleys) >= depth


def _extent(line: np.ndarray, frame: int, depth: float) -> tuple[int, int]:
    """(first, last) frame of the interval around `frame` in which `line` stays less than `depth` below its peak."""
    low = line <= line[frame] - depth
    low[frame] = False
    left, right = low[:frame][::-1], low[frame + 1 :]
    first = frame - int(left.argmax()) if left.any() else 0
    last = frame + int(right.argmax()) if right.any() else len(line) - 1
    return first, last
