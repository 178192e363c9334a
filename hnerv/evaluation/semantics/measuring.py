"""An opened run -> its Comparison, with everything that is at hand for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hnerv.data.clip import Teacher, load_teacher
from hnerv.errors import UserError
from hnerv.evaluation import OpenedRun
from hnerv.evaluation.semantics.comparing import ENCODER, Comparison, compare
from hnerv.evaluation.semantics.queries import default_queries

TEXTS = "text queries"


def measure(run: OpenedRun, queries: Sequence[str] = (), progress: bool = False) -> Comparison:
    """Of a run, a checkpoint or a file. `queries` are texts, the package's own where there are none.

    What is not at hand, the encoder of the targets say, is left out and named in the notes. Raises UserError where
    there is no CLIP head.
    """
    if run.model.clip_head is None:
        raise UserError(f"{run.checkpoint} has no CLIP head: train with CLIP targets, not --clip-weights none")
    at_hand = _at_hand(run, list(queries) or default_queries())
    found = compare(run, _head_bytes(run), at_hand.teacher, at_hand.texts, progress)
    found.notes.extend(at_hand.notes)
    return found


class _AtHand(NamedTuple):
    """texts (Q, D) of unit norm on the CPU; notes say why there is no teacher or no text."""

    teacher: Teacher | None
    texts: Tensor | None
    notes: list[str]


def _at_hand(run: OpenedRun, queries: list[str]) -> _AtHand:
    targets, clip = run.record.targets, run.config.clip
    if targets.kind == "file":
        why = "left out because the targets come from a file and their encoder is not available"
        return _AtHand(None, None, [f"{ENCODER}: {why}", f"{TEXTS}: {why}"])
    try:
        device = next(run.model.parameters()).device
        teacher = load_teacher(clip.clip_weights, clip.clip_model, device, run.config.train.seed)
    except UserError as error:
        return _AtHand(None, None, [f"{ENCODER}: left out, {error}", f"{TEXTS}: left out because there is no encoder"])
    if teacher.kind != "clip":
        return _AtHand(teacher, None, [f"{TEXTS}: left out because text has no meaning for the RANDOM encoder"])
    return _AtHand(teacher, torch.cat([teacher.encode_text([text]).cpu() for text in queries]), [])


def _head_bytes(run: OpenedRun) -> int:
    """Of the CLIP head's section of a file; 0 for a checkpoint, which has none."""
    if not run.coded_bytes:
        return 0
    from hnerv.codec import Bitstream
    from hnerv.codec.file import summed_by_part

    path: Path = run.checkpoint
    return {part.name: part.size for part in summed_by_part(Bitstream(path).parts())}["clip_head"]
