"""`hnerv embed`: export the embeddings of the CLIP head."""

from __future__ import annotations

import argparse
from pathlib import Path

from hnerv.cli import add_device, add_model
from hnerv.errors import UserError
from hnerv.files import check_output
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="file to write: tensors embeddings (N, P, D), frame (N,), patch (P,) and time (N,) in seconds",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Write the file. Raises UserError, if possible before anything is computed."""
    if args.output.suffix != ".safetensors":
        raise UserError(f"-o {args.output} does not end in .safetensors: choose a name that does")
    check_output(args.output, "-o", args.overwrite)
    import hnerv

    embeddings = hnerv.open(args.path, args.device).embeddings
    embeddings.save(args.output)
    frames, patches, dim = embeddings.shape
    print(f"{frames} frames of {patches} patches, {dim} dimensions each, written to {args.output}")
    print(f"targets: {embeddings.targets}")
