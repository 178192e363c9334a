"""Train a patch-based dual-head HNeRV on one video. The same command resumes a run that was stopped."""

from __future__ import annotations

from hnerv.command import one_line_errors, pick_device, set_threads
from hnerv.flags import Invocation, parse_train


def main() -> None:
    ask = parse_train()
    with one_line_errors("train_patch_dual.py", ask.debug):
        train(ask)


def train(ask: Invocation) -> None:
    import torch

    from hnerv.dataset import FrameStore, load_material, targets_label
    from hnerv.evaluation import table
    from hnerv.model import build_model
    from hnerv.tracking.console import Console
    from hnerv.training import RunFolder, Trainer, announce, check_scene, check_settings, run_record

    device = pick_device(ask.device)
    set_threads(ask.threads)
    preset = ask.preset_or_default(device.type == "cuda")
    config = ask.config(preset)
    check_settings(config)
    folder = RunFolder.at(ask.output, ask.exp_id, preset, config, ask.base_config(preset), ask.overwrite)

    material = load_material(folder.pinned(config), device, progress=True)
    check_scene(material.scene)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, material.scene)
    record = run_record(preset, config, material, model)
    print(announce(record, device), flush=True)
    state = folder.claim(record)

    with folder.logger(state) as logger:
        trainer = Trainer(model, FrameStore(material, device), config, folder, record, logger)
        trainer.begin(state)
        with Console(config.train.epochs, trainer.steps_per_epoch, trainer.global_step) as console:
            trainer.fit(console)

    print(table(trainer.evaluation, targets_label(record), config.model.unseen))
    print(folder.next_commands())


if __name__ == "__main__":
    main()
