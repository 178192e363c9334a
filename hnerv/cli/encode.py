"""`hnerv encode`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnerv.cli import add_device
from hnerv.errors import UserError
from hnerv.files import check_output
from hnerv.flags import Parser

if TYPE_CHECKING:
    import torch

    from hnerv.codec import Options
    from hnerv.runs import Part as RunPart


def add_arguments(parser: Parser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder (its latest.pt) or checkpoint")
    add("-o", "--output", type=Path, required=True, metavar="FILE.hnerv", help="file to write")
    add(
        "--weight-bits", type=int, default=8, metavar="BITS",
        help="bits per weight: 2 to 8, or 16 for half precision (8)",
    )  # fmt: skip
    add("--latent-bits", type=int, default=8, metavar="BITS", help="bits per value of the stored embeddings (8)")
    add(
        "--steps", default="sensitivity", choices=("sensitivity", "symmetric", "minmax"),
        help="sensitivity: the bits are an average, allocated over the tensors to minimise distortion; symmetric: "
        "2^bits - 1 levels around 0; minmax: as in HNeRV, 2^bits levels from minimum to maximum (sensitivity)",
    )  # fmt: skip
    add("--per-channel", action="store_true", help="symmetric, minmax: one step per output channel, not per tensor")
    add(
        "--prune", type=float, default=0.0, metavar="FRACTION",
        help="fraction of each weight tensor to set to 0, smallest first (0)",
    )  # fmt: skip
    add(
        "--finetune-epochs", type=int, default=0, metavar="N",
        help="epochs of quantisation-aware fine-tuning; needs the video (0)",
    )  # fmt: skip
    add(
        "--finetune-lr", type=float, default=2e-4, metavar="RATE",
        help="peak learning rate of the fine-tuning (0.0002)",
    )  # fmt: skip
    add(
        "--rate-weight", type=float, default=0.0, metavar="WEIGHT",
        help="fine-tuning: loss weight of the bits per parameter (0)",
    )  # fmt: skip
    add("--learn-steps", action="store_true", help="fine-tuning: learn the quantisation steps too")
    add(
        "--target-bpp", type=float, default=0.0, metavar="BPP",
        help="coarsen the steps until the file (or each segment) has at most this many bits per pixel; 0: off (0)",
    )  # fmt: skip
    add("--data", default="", metavar="PATH|CLIP", help="video, if it has moved since training")
    add("--clip-targets", default="", metavar="FILE", help="the run's target file, if it has moved")
    add("--no-measure", action="store_true", help="skip the evaluation, which needs the video")
    add("--overwrite", action="store_true", help="replace an existing file")
    add_device(parser)


def run(ask: argparse.Namespace) -> None:
    """Writes the file, reads it back, and measures what was read. Raises UserError before anything is written."""
    from hnerv.codec import check_options, check_trained, write_film
    from hnerv.command import pick_device
    from hnerv.data.clip import warned_once
    from hnerv.runs import parts_of

    device, options = pick_device(ask.device), options_of(ask)
    check_options(options)
    if ask.output.suffix != ".hnerv":
        raise UserError(f"-o {ask.output} does not end in .hnerv: choose a name that does")
    check_output(ask.output, "-o", ask.overwrite)
    if ask.clip_targets == "none":
        raise UserError("--clip-targets none would leave out the CLIP head: pass the target file, or --no-measure")
    parts = parts_of(ask.run)
    check_trained(parts)
    if len(parts) == 1:
        show_all([code(ask, parts[0], options, device, ask.output)], ask.output)
    else:
        with working_folder(ask.output) as folder, warned_once():
            files = [folder / f"{number:05d}.hnerv" for number in range(len(parts))]
            coded = [code(ask, part, options, device, file) for part, file in zip(parts, files, strict=True)]
            write_film(ask.output, files)
        show_all(coded, ask.output)
    played = ask.output.with_name(f"{ask.output.stem}_decoded.mp4")
    print(f"play it:   {shlex.join(['hnerv', 'decode', str(ask.output), '-o', str(played)])}")


def options_of(ask: argparse.Namespace) -> Options:
    """What the flags ask for."""
    from hnerv.codec import Options
    from hnerv.codec.allocation import Bits
    from hnerv.codec.finetune import Tuning

    return Options(
        bits=Bits(ask.weight_bits, ask.latent_bits),
        steps=ask.steps,
        per_channel=ask.per_channel,
        prune=ask.prune,
        tuning=Tuning(ask.finetune_epochs, ask.finetune_lr, ask.rate_weight, ask.learn_steps),
        target_bpp=ask.target_bpp,
    )


@contextlib.contextmanager
def working_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside the file, gone afterwards. Raises UserError."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".hnerv-", dir=output.parent)
    except OSError as error:
        raise UserError(f"cannot write next to {output} ({error.strerror}): choose another -o") from error
    with made as folder:
        yield Path(folder)


class Coded(NamedTuple):
    """What became of a run: {Eval/ tag: value} of its model before, and as it is in the file; empty if not measured."""

    targets: str
    before: dict[str, float]
    after: dict[str, float]


def code(ask: argparse.Namespace, part: RunPart, options: Options, device: torch.device, output: Path) -> Coded:
    """Writes the file of a run, or of a segment of one, reads it back and measures that, unless it was asked not to."""
    if ask.no_measure and not options.tuning.epochs:
        return code_alone(part.path, options, device, output)
    return code_and_measure(ask, part, options, device, output)


def code_alone(run: Path, options: Options, device: torch.device, output: Path) -> Coded:
    """From the checkpoint alone, without its video."""
    import torch

    from hnerv.codec import encode_run, write_container
    from hnerv.runs.opening import checkpoint_of, open_checkpoint

    found = open_checkpoint(checkpoint_of(run))
    model, note = found.model.to(device, memory_format=torch.channels_last), {"epoch": found.epoch, "step": found.step}
    write_container(output, encode_run(model, found.record, options, None, note))
    return Coded("", {}, {})


def code_and_measure(
    ask: argparse.Namespace, part: RunPart, options: Options, device: torch.device, output: Path
) -> Coded:
    """With the video: to fine-tune on, and to measure against."""
    from hnerv.codec import Bitstream, encode_run, write_container
    from hnerv.evaluation import eval_values, evaluate, open_run
    from hnerv.runs import targets_of

    run = open_run(part.path, device, data=ask.data, clip_targets=targets_of(ask.clip_targets, part.first, part.count))
    before = {} if ask.no_measure else eval_values(evaluate(run.model, run.store, progress=True))
    note = {"epoch": run.epoch, "step": run.step}
    write_container(output, encode_run(run.model, run.record, options, run.store, note, progress=True))
    after = eval_values(evaluate(Bitstream(output).model().to(device), run.store, progress=True)) if before else {}
    return Coded(run.record.targets_label, before, after)


def show_all(coded: list[Coded], path: Path) -> None:
    """What is in the file, and what coding cost, over all segments."""
    from hnerv.codec import open_film
    from hnerv.codec.describing import parts_table
    from hnerv.evaluation import combine, table

    print(parts_table(open_film(path)))
    if coded[0].before:
        before, after = combine([run.before for run in coded]), combine([run.after for run in coded])
        print(f"\nfrom the file:\n{table(after, coded[0].targets)}\n{lost(before, after)}")


def lost(before: dict[str, float], after: dict[str, float]) -> str:
    """What coding cost, against the model before it (and before its fine-tuning)."""
    tags = {name: f"Eval/Frame/{split}_psnr_frame" for name, split in (("training", "train"), ("unseen", "val"))}
    parts = [f"{name} {round(after[tag] - before[tag], 3) + 0.0:+.3f} dB" for name, tag in tags.items() if tag in after]
    return f"full-frame PSNR relative to the float model: {', '.join(parts)}"
