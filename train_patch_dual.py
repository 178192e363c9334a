"""Train a patch-based dual-head HNeRV on one video. The same command resumes a run that was stopped.

`hnerv.training.chunks.train_chunk` has the steps: load frames and CLIP embeddings, build model and optimiser, fit,
evaluate. In Python, `hnerv.train` does the same.
"""

from __future__ import annotations

from hnerv.command import next_commands, one_line_errors
from hnerv.flags import parse_train


def main() -> None:
    """Parse the command line, train, and print the last evaluation; an error ends the process with one line."""
    args = parse_train()
    with one_line_errors("train_patch_dual.py", args.debug):
        args.check()  # before the seconds that importing torch takes
        from hnerv.api import train_run
        from hnerv.evaluation import table

        run = train_run(args)
        print(table(run.values, run.targets, run.config.model.unseen))
        print(next_commands(run.path))


if __name__ == "__main__":
    main()
