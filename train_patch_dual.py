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
    """Choose, train, report: the run itself is `hnerv.training.train_run`, of each segment where there are some."""
    in_segments = ask.in_segments
    ask.resolve(cuda=False)  # a wrong setting is refused before seconds go into importing torch
    log = ask.log
    set_up_torch(ask.threads, ask.deterministic, benchmark=True)

    from hnerv.evaluation import table
    from hnerv.training import How, Limits, RunFolder, train_run, train_segments

    limits = Limits.of(ask)
    device = pick_device(ask.device)
    choice = ask.resolve(cuda=device.type == "cuda")
    if in_segments:
        folder, record, values = train_segments(ask, choice, device, limits)
    else:
        folder = RunFolder.at(ask.output, ask.exp_id, choice, ask.overwrite)
        record, values, _ = train_run(choice, folder, How(device, log, limits, compile=ask.compile))
    print(table(values, record.targets_label, choice.config.model.unseen))
    print(folder.next_commands())


if __name__ == "__main__":
    main()
