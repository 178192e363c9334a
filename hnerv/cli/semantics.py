"""`hnerv semantics RUN`: what the CLIP head is worth beside its baselines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.cli import add_device
from hnerv.errors import UserError
from hnerv.flags import Parser

if TYPE_CHECKING:
    import torch

    from hnerv.clip import Teacher
    from hnerv.evaluation import OpenedRun


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its latest.pt), checkpoint or .hnerv file")
    parser.add_argument("--data", default="", metavar="PATH|CLIP", help="video, if it is no longer where it was")
    parser.add_argument("--clip-targets", default="", metavar="FILE", help="the run's target file, if it moved")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    """Prints the table. Raises UserError."""
    from hnerv.codec import Bitstream, is_container, open_stream
    from hnerv.codec.file import summed_by_part
    from hnerv.command import pick_device
    from hnerv.evaluation import open_run
    from hnerv.semantics import as_dict, compare, text_of

    if ask.clip_targets == "none":
        raise UserError("--clip-targets none leaves out the CLIP head, which is what is compared: name the target file")
    device, coded = pick_device(ask.device), is_container(ask.run)
    opened = (open_stream if coded else open_run)(ask.run, device, data=ask.data, clip_targets=ask.clip_targets)
    sizes = {part.name: part.size for part in summed_by_part(Bitstream(ask.run).parts())} if coded else {}
    teacher, lack = find_teacher(opened, device)
    found = compare(opened, sizes.get("clip_head", 0), teacher, progress=True)
    found.notes.extend(lack)
    print(json.dumps(as_dict(found), indent=2) if ask.json else text_of(found))


def find_teacher(opened: OpenedRun, device: torch.device) -> tuple[Teacher | None, list[str]]:
    """The encoder of the run's targets, or None and a line that says why there is none."""
    from hnerv.clip import load_teacher
    from hnerv.semantics.comparing import ENCODER

    targets = opened.record["targets"]
    if targets is None or targets["kind"] == "file":
        return None, [f"{ENCODER}: left out, the targets come from a file and not from an encoder that is at hand"]
    clip = opened.config.clip
    try:
        return load_teacher(clip.clip_weights, clip.clip_model, device, opened.config.train.seed), []
    except UserError as error:
        return None, [f"{ENCODER}: left out, {error}"]
