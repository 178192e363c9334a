"""The console script `hnerv`: one module per verb, each with `add_arguments(parser)` and `run(args)`.

A verb imports torch only when it runs, so that `hnerv --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from hnerv import __version__
from hnerv.command import one_line_errors, set_up_torch
from hnerv.flags import THREADS_HELP, Parser, add_debug, add_threads
from hnerv.flags import add_device as add_device
from hnerv.storage import is_remote

VERBS: dict[str, str] = {
    "encode": "compress a trained run into a .hnerv file",
    "info": "list the parts of a .hnerv file with their bytes and bits per pixel",
    "decode": "decode a .hnerv file to a video file or a folder of images",
    "search": "search a video by text, image or embedding, without decoding it",
    "embed": "write all embeddings predicted by the CLIP head to a safetensors file",
    "compare": "compare .hnerv files with x264, x265 and SVT-AV1 on the same frames",
    "rate-distortion": "train and encode a rate-distortion curve, and compare it with x264, x265 and SVT-AV1",
    "semantics": "compare the CLIP head with baselines, such as a PCA table of the same size",
    "report": "write an HTML page on one run or several side by side: tables, curves, frames, findings",
    "diagnose": "explain the curves of a run in words; exit status 1 if there is a warning",
    "fleet": "train many videos on this machine or a Ray cluster, with retries after failures",
    "doctor": "check this machine and explain how to fix what does not work",
}
"""Verb -> help; its module is `hnerv.cli.<verb>`, with _ for -."""


def main(argv: list[str] | None = None) -> None:
    """Run one verb. Errors end with one line and a status (`hnerv.command`)."""
    args = build_parser().parse_args(argv)
    with one_line_errors(f"hnerv {args.verb}", args.debug):
        module = module_of(args.verb)
        if getattr(module, "USES_TORCH", True):
            set_up_torch(args.threads)
        module.run(args)


def build_parser() -> Parser:
    """The parser of every verb."""
    parser = Parser(prog="hnerv", description="Compress, decode, search and analyse videos as neural representations.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, line in VERBS.items():
        sub = verbs.add_parser(verb, help=line, description=line[0].upper() + line[1:] + ".")
        module = module_of(verb)
        module.add_arguments(sub)
        add_threads(sub, getattr(module, "THREADS_HELP", THREADS_HELP))
        add_debug(sub)
    return parser


def module_of(verb: str):
    """The module of a verb. Importing it does not import torch."""
    return importlib.import_module(f"hnerv.cli.{verb.replace('-', '_')}")


def add_model(parser: Parser, more: str = "") -> None:
    """The model that a verb reads. `more` completes the help text."""
    parser.add_argument(
        "path", type=local, metavar="PATH", help=f".hnerv file, checkpoint, or run folder (its latest.pt){more}"
    )


def place(text: str) -> Path | str:
    """The type of an argument that is a path, or an address, which a Path would change."""
    return text if is_remote(text) else Path(text)


def local(text: str) -> Path:
    """The type of an argument that is a path only."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} is an address: copy it to this machine and pass the copy")
    return Path(text)


def add_bitstream(parser: Parser) -> None:
    """The bitstream file that a verb reads."""
    parser.add_argument("file", type=local, metavar="FILE.hnerv", help="file written by `hnerv encode`")
