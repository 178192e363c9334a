"""`hnerv encode`."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hnerv.cli import add_device, place
from hnerv.command import line_and_status
from hnerv.errors import RunError, UserError
from hnerv.files import check_output
from hnerv.flags import Parser

if TYPE_CHECKING:
    from hnerv.api import Encoding
    from hnerv.storage import Storage


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    runs = "run folder (its latest.pt) or checkpoint; or a fleet folder, at a path or an address: all its finished runs"
    add("run", type=place, metavar="RUN", help=runs)
    output = "file to write; of a fleet, each run's is next to its folder"
    add("-o", "--output", type=Path, metavar="FILE.hnerv", help=output)
    bits = "bits per weight: 2 to 8, or 16 for half precision (8)"
    add("--weight-bits", type=int, default=8, metavar="BITS", help=bits)
    add("--latent-bits", type=int, default=8, metavar="BITS", help="bits per value of the stored embeddings (8)")
    steps = (
        "sensitivity: the bits are an average, allocated over the tensors to minimise distortion; symmetric: 2^bits "
        "- 1 levels around 0; minmax: as in HNeRV, 2^bits levels from minimum to maximum; learned: those of a run "
        "trained with --rate-weight (learned where the run has them, else sensitivity)"
    )
    add("--steps", default="", choices=("learned", "sensitivity", "symmetric", "minmax"), help=steps)
    add("--per-channel", action="store_true", help="symmetric, minmax: one step per output channel, not per tensor")
    prune = "fraction of each weight tensor to set to 0, smallest first (0)"
    add("--prune", type=float, default=0.0, metavar="FRACTION", help=prune)
    epochs = "epochs of quantisation-aware fine-tuning; needs the video (0)"
    add("--finetune-epochs", type=int, default=0, metavar="N", help=epochs)
    lr = "peak learning rate of the fine-tuning (0.0002)"
    add("--finetune-lr", type=float, default=2e-4, metavar="RATE", help=lr)
    target = "coarsen the steps until the file (or each segment) has at most this many bits per pixel; 0: off (0)"
    add("--target-bpp", type=float, default=0.0, metavar="BPP", help=target)
    add("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    add("--clip-targets", default="", metavar="FILE", help="the run's target file, if it has moved")
    add("--no-measure", action="store_true", help="skip the evaluation, which needs the video")
    add("--overwrite", action="store_true", help="replace an existing file")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the file, reads it back, and measures it. Raises UserError before anything is written."""
    from hnerv.codec import Options
    from hnerv.fleet.status import is_fleet

    Options.of(**coding_options(args))  # before a fleet is read
    if is_fleet(args.run):
        for flag, value in (("-o", args.output), ("--data", args.data), ("--clip-targets", args.clip_targets)):
            if value:
                raise UserError(f"{flag} is for a single run: remove it, or pass a run of the fleet")
        encode_fleet(args)
        return
    if not args.output:
        raise UserError("-o is missing: pass the file to write, FILE.hnerv")
    if args.output.suffix != ".hnerv":
        raise UserError(f"-o {args.output} does not end in .hnerv: choose a name that does")
    check_output(args.output, "-o", args.overwrite)
    print_result(encode_folder(args, args.run, args.output, args.overwrite))
    decoded = args.output.with_name(f"{args.output.stem}_decoded.mp4")
    print(f"play it:   {shlex.join(['hnerv', 'decode', str(args.output), '-o', str(decoded)])}")


def encode_fleet(args: argparse.Namespace) -> None:
    """A file for each finished run that has none yet. Raises RunError if some could not be encoded."""
    from hnerv.fleet.status import fleet_statuses
    from hnerv.storage import Storage

    storage, failed = Storage(str(args.run)), {}
    names = [name for name, status in fleet_statuses(storage).items() if status.state == "finished"]
    if not names:
        raise UserError(f"{storage.address} has no finished run yet: see hnerv fleet --status")
    for name in names:
        try:
            result = encode_member(args, storage, name)
        except (UserError, RunError, OSError) as error:
            failed[name] = line_and_status(error)[0]
            result = f"failed: {failed[name]}"
        print(f"{name}.hnerv  {result}", flush=True)
    if failed:
        name, cause = next(iter(failed.items()))
        raise RunError(f"{len(failed)} of {len(names)} runs could not be encoded, for example {name}: {cause}")


def encode_member(args: argparse.Namespace, storage: Storage, name: str) -> str:
    """Writes NAME.hnerv next to the run folder NAME of a fleet, unless it exists -> a line on it. Raises UserError."""
    from hnerv.runs import RUN_FILES

    if not args.overwrite and storage.exists(f"{name}.hnerv"):
        return "exists: --overwrite replaces it"
    with tempfile.TemporaryDirectory(prefix="hnerv-") as scratch:
        folder = storage.path / name if storage.path else storage.fetch(name, RUN_FILES, Path(scratch))
        output = Path(scratch, "coded.hnerv")
        coded = encode_folder(args, folder, output, overwrite=False)
        storage.write(f"{name}.hnerv", output.read_bytes())
        size = f"{output.stat().st_size} bytes"
    return f"{size}  {psnr_change(coded.before, coded.after)}" if coded.before else size


def encode_folder(args: argparse.Namespace, folder: Path, output: Path, overwrite: bool) -> Encoding:
    """Write the file of a run. Raises UserError."""
    import hnerv

    return hnerv.open(folder, args.device).encode(
        output,
        **coding_options(args),
        data=args.data,
        clip_targets=args.clip_targets,
        measure=not args.no_measure,
        overwrite=overwrite,
    )


def coding_options(args: argparse.Namespace) -> dict[str, object]:
    """The flags that are keywords of `NeuralVideo.encode`."""
    names = ("weight_bits", "latent_bits", "steps", "per_channel", "prune", "finetune_epochs", "finetune_lr")
    return {name: getattr(args, name) for name in (*names, "target_bpp")}


def print_result(coded: Encoding) -> None:
    """The parts of the file, and the loss through coding over all chunks."""
    from hnerv.evaluation import table

    print(coded.video.parts_table)
    if coded.before:
        print(f"\nfrom the file:\n{table(coded.after, coded.video.targets)}\n{psnr_change(coded.before, coded.after)}")


def psnr_change(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """PSNR after coding relative to the model before it (and before its fine-tuning)."""
    tags = {name: f"Eval/Frame/{split}_psnr_frame" for name, split in (("training", "train"), ("unseen", "val"))}
    parts = [f"{name} {round(after[tag] - before[tag], 3) + 0.0:+.3f} dB" for name, tag in tags.items() if tag in after]
    return f"full-frame PSNR relative to the float model: {', '.join(parts)}"
