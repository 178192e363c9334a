"""Train a patch-based dual-head HNeRV on one video. The same command resumes a run that was stopped."""

from __future__ import annotations

from hnerv.command import one_line_errors, pick_device, set_up_torch
from hnerv.flags import Invocation, parse_train


def main() -> None:
    """The command: parse, train, end with one line when it fails."""
    ask = parse_train()
    with one_line_errors("train_patch_dual.py", ask.debug):
        train(ask)


def train(ask: Invocation) -> None:
    """Load, build, fit, report."""
    ask.resolve(cuda=False)  # a wrong setting is refused before seconds go into importing torch
    log = ask.log
    set_up_torch(ask.threads, ask.deterministic)
    import torch

    from hnerv import training
    from hnerv.dataset import FrameStore, load_material, targets_label
    from hnerv.evaluation import table
    from hnerv.model import build_model
    from hnerv.tracking.console import Console

    limits = training.Limits.of(ask)
    device = pick_device(ask.device)
    choice = ask.resolve(cuda=device.type == "cuda")
    config = choice.config
    training.check_settings(config, log)
    folder = training.RunFolder.at(ask.output, ask.exp_id, choice, ask.overwrite)

    material = load_material(folder.pinned(config), device, progress=True)
    training.check_scene(material.scene)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, material.scene)
    record = training.run_record(choice.preset, config, material, model)
    print(training.announce(record, device), flush=True)
    with training.device_errors(config, folder.latest), folder.locked():
        trainer = training.Trainer(model, FrameStore(material, device), config, folder, record, log, limits)
        state = folder.saved_state(record)
        if state:
            trainer.load_state(state)
            print(f"resumed  {trainer.epoch} of {config.train.epochs} epochs were done", flush=True)

        with Console(config.train.epochs, trainer.steps_per_epoch, trainer.global_step) as console:
            training.fit(trainer, folder.claim(record, state, log.report_to), console, log.report_to)

    print(table(trainer.evaluation, targets_label(record), config.model.unseen))
    print(folder.next_commands())


if __name__ == "__main__":
    main()
