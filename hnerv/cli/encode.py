"""`hnerv encode`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hnerv.cli import add_device
from hnerv.errors import UserError
from hnerv.flags import Parser


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder (its latest.pt) or checkpoint")
    add("-o", "--output", type=Path, required=True, metavar="FILE.hnerv", help="file to write")
    add("--weight-bits", type=int, default=8, help="bits per weight, 2 to 8, or 16 for half floats (8)")
    add("--latent-bits", type=int, default=8, help="bits per number of the stored embeddings (8)")
    add(
        "--steps", default="sensitivity", choices=("sensitivity", "symmetric", "minmax"),
        help="sensitivity: the bits are a mean, spread over the tensors so that the picture suffers least; "
        "symmetric: 2^bits - 1 levels around 0; minmax: HNeRV's, 2^bits levels from least to greatest (sensitivity)",
    )  # fmt: skip
    add("--per-channel", action="store_true", help="symmetric, minmax: a step per output channel, not per tensor")
    add("--prune", type=float, default=0.0, help="share of each weight tensor that is set to 0, smallest first (0)")
    add("--finetune-epochs", type=int, default=0, help="quantisation-aware epochs, which need the video (0)")
    add("--finetune-lr", type=float, default=2e-4, help="peak learning rate of these (0.0002)")
    add("--rate-weight", type=float, default=0.0, help="pixel loss that a bit per parameter is worth in these (0)")
    add("--target-bpp", type=float, default=0.0, help="coarsen the steps until the whole file takes no more; 0: as is")
    add("--data", default="", metavar="PATH|CLIP", help="video, if it is no longer where the run found it")
    add("--clip-targets", default="", metavar="FILE", help="the run's target file, if it moved")
    add("--no-measure", action="store_true", help="leave out the evaluation, and so the video")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    import torch

    from hnerv.codec import Bitstream, Options, check_options, encode_run, write_container
    from hnerv.codec.allocation import Bits
    from hnerv.codec.describing import parts_table
    from hnerv.codec.finetune import Tuning
    from hnerv.command import pick_device
    from hnerv.dataset import targets_label
    from hnerv.evaluation import eval_values, evaluate, table
    from hnerv.evaluation.opening import checkpoint_of, open_checkpoint, open_run

    device = pick_device(ask.device)
    options = Options(
        bits=Bits(ask.weight_bits, ask.latent_bits),
        steps=ask.steps,
        per_channel=ask.per_channel,
        prune=ask.prune,
        tuning=Tuning(ask.finetune_epochs, ask.finetune_lr, ask.rate_weight),
        target_bpp=ask.target_bpp,
    )
    check_options(options)
    refuse_output(ask.output)
    opened = None
    if options.tuning.epochs or not ask.no_measure:
        opened = open_run(ask.run, device, data=ask.data, clip_targets=ask.clip_targets)
        model, record, note = opened.model, opened.record, {"epoch": opened.epoch, "step": opened.step}
    else:
        found = open_checkpoint(checkpoint_of(ask.run))
        model, record, note = found.model.to(device), found.record, {"epoch": found.epoch, "step": found.step}
    torch.manual_seed(0)
    before = None if ask.no_measure else evaluate(model, opened.store, progress=True)
    data = encode_run(model, record, options, opened and opened.store, note, progress=True)
    write_container(ask.output, data)
    stream = Bitstream(ask.output)
    coded = stream.model().to(device)  # reads every section back
    print(parts_table(stream))
    if before is not None:
        report = evaluate(coded, opened.store, progress=True)
        print(f"\nfrom the file:\n{table(eval_values(report), targets_label(record))}")
        print(lost(eval_values(before), eval_values(report)))
    print(f"play it:   hnerv decode {ask.output} -o {ask.output.with_suffix('.mp4')}")


def lost(before: dict[str, float], after: dict[str, float]) -> str:
    """What coding cost, against the model before it (and before its fine-tuning)."""
    tags = {name: f"Eval/Frame/{split}_psnr_frame" for name, split in (("seen", "train"), ("unseen", "val"))}
    parts = [f"{name} {after[tag] - before[tag]:+.3f} dB" for name, tag in tags.items() if tag in after]
    return f"against the float model, PSNR of the frame: {', '.join(parts)}"


def refuse_output(path: Path) -> None:
    """Before minutes go into what cannot be written. Raises UserError."""
    if path.suffix != ".hnerv":
        raise UserError(f"-o {path} does not end in .hnerv: name it so")
    if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
        raise UserError(f"-o {path} is no place for a file: choose another")
