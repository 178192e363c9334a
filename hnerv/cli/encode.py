"""`hnerv encode`."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnerv.cli import add_device
from hnerv.errors import UserError
from hnerv.files import check_output
from hnerv.flags import Parser

if TYPE_CHECKING:
    import torch

    from hnerv.codec import Options
    from hnerv.runs import Chunk


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder (its latest.pt) or checkpoint")
    add("-o", "--output", type=Path, required=True, metavar="FILE.hnerv", help="file to write")
    bits = "bits per weight: 2 to 8, or 16 for half precision (8)"
    add("--weight-bits", type=int, default=8, metavar="BITS", help=bits)
    add("--latent-bits", type=int, default=8, metavar="BITS", help="bits per value of the stored embeddings (8)")
    steps = (
        "sensitivity: the bits are an average, allocated over the tensors to minimise distortion; symmetric: 2^bits "
        "- 1 levels around 0; minmax: as in HNeRV, 2^bits levels from minimum to maximum (sensitivity)"
    )
    add("--steps", default="sensitivity", choices=("sensitivity", "symmetric", "minmax"), help=steps)
    add("--per-channel", action="store_true", help="symmetric, minmax: one step per output channel, not per tensor")
    prune = "fraction of each weight tensor to set to 0, smallest first (0)"
    add("--prune", type=float, default=0.0, metavar="FRACTION", help=prune)
    epochs = "epochs of quantisation-aware fine-tuning; needs the video (0)"
    add("--finetune-epochs", type=int, default=0, metavar="N", help=epochs)
    lr = "peak learning rate of the fine-tuning (0.0002)"
    add("--finetune-lr", type=float, default=2e-4, metavar="RATE", help=lr)
    rate = "fine-tuning: loss weight of the bits per parameter (0)"
    add("--rate-weight", type=float, default=0.0, metavar="WEIGHT", help=rate)
    add("--learn-steps", action="store_true", help="fine-tuning: learn the quantisation steps too")
    target = "coarsen the steps until the file (or each segment) has at most this many bits per pixel; 0: off (0)"
    add("--target-bpp", type=float, default=0.0, metavar="BPP", help=target)
    add("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    add("--clip-targets", default="", metavar="FILE", help="the run's target file, if it has moved")
    add("--no-measure", action="store_true", help="skip the evaluation, which needs the video")
    add("--overwrite", action="store_true", help="replace an existing file")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the file, reads it back, and measures it. Raises UserError before anything is written."""
    from hnerv.codec import check_options, check_trained, join_files
    from hnerv.command import pick_device
    from hnerv.data.clip import warned_once
    from hnerv.runs import chunks_of

    device, options = pick_device(args.device), options_of(args)
    check_options(options)
    if args.output.suffix != ".hnerv":
        raise UserError(f"-o {args.output} does not end in .hnerv: choose a name that does")
    check_output(args.output, "-o", args.overwrite)
    if args.clip_targets == "none":
        raise UserError("--clip-targets none would leave out the CLIP head: pass the target file, or --no-measure")
    chunks = chunks_of(args.run)
    check_trained(chunks)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hnerv-", dir=args.output.parent) as folder, warned_once():
        files = [Path(folder, f"{number:05d}.hnerv") for number in range(len(chunks))]
        measures = [encode_chunk(args, chunk, options, device, file) for chunk, file in zip(chunks, files, strict=True)]
        join_files(args.output, files)
    print_result(args.output, measures)
    decoded = args.output.with_name(f"{args.output.stem}_decoded.mp4")
    print(f"play it:   {shlex.join(['hnerv', 'decode', str(args.output), '-o', str(decoded)])}")


def options_of(args: argparse.Namespace) -> Options:
    """The flags as options of the encoder."""
    from hnerv.codec import Options
    from hnerv.codec.allocation import Bits
    from hnerv.codec.finetune import Tuning

    return Options(
        bits=Bits(args.weight_bits, args.latent_bits),
        steps=args.steps,
        per_channel=args.per_channel,
        prune=args.prune,
        tuning=Tuning(args.finetune_epochs, args.finetune_lr, args.rate_weight, args.learn_steps),
        target_bpp=args.target_bpp,
    )


class ChunkMeasures(NamedTuple):
    """{Eval/ tag: value} of a chunk's model before and after coding; empty where it was not measured."""

    targets: str
    before: dict[str, float]
    after: dict[str, float]


def encode_chunk(
    args: argparse.Namespace, chunk: Chunk, options: Options, device: torch.device, output: Path
) -> ChunkMeasures:
    """Writes a chunk of a run as a file, reads it back and measures it. The video is opened only if it is needed."""
    import torch

    from hnerv.codec import encode_run, open_single_chunk, write_bitstream
    from hnerv.evaluation import eval_values, evaluate, open_run
    from hnerv.runs.opening import open_checkpoint

    if args.no_measure and not options.tuning.epochs:
        found = open_checkpoint(chunk.path)
        model, note = found.model.to(device, memory_format=torch.channels_last), progress_of(found)
        write_bitstream(output, [encode_run(model, found.record, options, None, note)])
        return ChunkMeasures("", {}, {})
    opened = open_run(chunk.path, device, data=args.data, clip_targets=chunk.clip_targets(args.clip_targets))
    before = {} if args.no_measure else eval_values(evaluate(opened.model, opened.store, progress=True))
    coded = encode_run(opened.model, opened.record, options, opened.store, progress_of(opened), progress=True)
    write_bitstream(output, [coded])
    if args.no_measure:
        return ChunkMeasures("", {}, {})
    after = eval_values(evaluate(open_single_chunk(output).model().to(device), opened.store, progress=True))
    return ChunkMeasures(opened.record.targets_label, before, after)


def progress_of(trained) -> dict[str, int]:
    """How far a checkpoint or an opened run was trained, to be noted in the file."""
    return {"epoch": trained.epoch, "step": trained.step}


def print_result(path: Path, measures: list[ChunkMeasures]) -> None:
    """The parts of the file, and the loss through coding over all chunks."""
    from hnerv.codec import BitstreamFile
    from hnerv.codec.description import parts_table
    from hnerv.evaluation import combine, table

    print(parts_table(BitstreamFile(path)))
    if measures[0].before:
        before, after = combine([m.before for m in measures]), combine([m.after for m in measures])
        print(f"\nfrom the file:\n{table(after, measures[0].targets)}\n{psnr_change(before, after)}")


def psnr_change(before: dict[str, float], after: dict[str, float]) -> str:
    """PSNR after coding relative to the model before it (and before its fine-tuning)."""
    tags = {name: f"Eval/Frame/{split}_psnr_frame" for name, split in (("training", "train"), ("unseen", "val"))}
    parts = [f"{name} {round(after[tag] - before[tag], 3) + 0.0:+.3f} dB" for name, tag in tags.items() if tag in after]
    return f"full-frame PSNR relative to the float model: {', '.join(parts)}"
