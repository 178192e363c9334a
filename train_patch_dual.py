"""Train a patch-based dual-head HNeRV on one video. The same command resumes a run that was stopped."""

from __future__ import annotations

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.flags import TrainArguments, parse_train


def main() -> None:
    """Parses the command line and trains; an error ends the process with one line."""
    args = parse_train()
    with one_line_errors("train_patch_dual.py", args.debug):
        train(args)


def train(args: TrainArguments) -> None:
    """Loads, builds, fits and reports: once, or for each chunk of a video that the --segment- flags divide."""
    args.check()  # before the seconds that importing torch takes
    set_up_torch(args.threads, args.deterministic, benchmark=True)

    import torch

    from hnerv.data.store import load_material
    from hnerv.evaluation import table
    from hnerv.model import build_model
    from hnerv.training.chunks import open_run
    from hnerv.training.optim import build_optimizer
    from hnerv.training.run import RuntimeOptions, check_settings, device_errors, fit
    from hnerv.training.signals import Limits

    device = pick_device(args.device)
    options = RuntimeOptions(device, args.log, Limits.of(args.max_minutes, args.on_divergence), args.compile)
    choice = args.resolve(cuda=device.type == "cuda")
    check_settings(choice.config, args.log)

    with open_run(args.output, args.exp_id, choice, args.chunks, args.overwrite) as run:
        for chunk in run.chunks():
            config = chunk.config
            # Frames, their split into training and unseen ones, and the CLIP embeddings of all patches.
            material = load_material(config, device, progress=True)
            with device_errors(config, chunk.folder.latest):
                # Embedding of the frame's time -> decoder -> RGB head, and CLIP head on the features of one stage.
                torch.manual_seed(config.train.seed)
                model = build_model(config.model, material.scene).to(device, memory_format=torch.channels_last)
                # Muon for the kernels, Adam for everything else; the knots of a grid learn faster.
                optimizer = build_optimizer(model, config.train)
                # total = pixel, after the warm-up pixel + lambda x CLIP; logs, evaluations, checkpoints.
                run.add(fit(chunk, material, model, optimizer, options))
        values = run.close(args.log.report_to)
    print(table(values, run.record.targets_label, choice.config.model.unseen))
    print(run.folder.next_commands())


if __name__ == "__main__":
    main()
