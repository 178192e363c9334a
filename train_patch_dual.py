"""Train a patch-based dual-head HNeRV on one video. The same command resumes a run that was stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.flags import TrainArguments, parse_train

if TYPE_CHECKING:
    from hnerv.training.run import ChunkRun, Result, RuntimeOptions


def main() -> None:
    """Parses the command line and trains; an error ends the process with one line."""
    args = parse_train()
    with one_line_errors("train_patch_dual.py", args.debug):
        train(args)


def train(args: TrainArguments) -> None:
    """Trains the chunks of the video, one unless the --segment- flags divide it, and reports."""
    args.check()  # before the seconds that importing torch takes
    set_up_torch(args.threads, args.deterministic, benchmark=True)
    from hnerv.evaluation import table
    from hnerv.training.chunks import prepare_run
    from hnerv.training.run import RuntimeOptions, check_settings
    from hnerv.training.signals import Limits

    device = pick_device(args.device)
    options = RuntimeOptions(device, args.log, Limits.of(args.max_minutes, args.on_divergence), args.compile)
    choice = args.resolve(cuda=device.type == "cuda")
    check_settings(choice.config, args.log)

    with prepare_run(args.output, args.exp_id, choice, args.chunks, args.overwrite) as run:
        for chunk in run.chunks():
            run.add(train_chunk(chunk, options))
        values = run.close(args.log.report_to)
    print(table(values, run.record.targets_label, choice.config.model.unseen))
    print(run.folder.next_commands())


def train_chunk(chunk: ChunkRun, options: RuntimeOptions) -> Result:
    """One network from its video to its last evaluation. Video and model are released on return."""
    import torch

    from hnerv.data.store import load_material
    from hnerv.model import build_model
    from hnerv.training.optim import build_optimizer
    from hnerv.training.run import check_material, device_errors, fit

    config, device = chunk.config, options.device
    # The frames, their split into training and unseen ones, and the CLIP embedding of every patch.
    material = load_material(config, device, progress=True)
    check_material(chunk, material)
    with device_errors(config, chunk.folder.latest):
        # Embedding of a frame's time -> decoder stages -> RGB head; the CLIP head reads the features of one stage.
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, material.scene).to(device, memory_format=torch.channels_last)
        # Muon for the kernels, Adam for everything else; the knots of a grid learn faster.
        optimizer = build_optimizer(model, config.train)
        # Minimises the pixel loss, after the warm-up pixel + lambda x CLIP, with --rate-weight also the size of the
        # file; with logs, evaluations and checkpoints.
        return fit(chunk, material, model, optimizer, options)


if __name__ == "__main__":
    main()
