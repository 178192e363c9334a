"""The command line, generated from the fields of `hnerv.config`. Imports no torch: --help answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import sys
import typing
from collections.abc import Container
from pathlib import Path

from hnerv.config import Config, LogConfig, pixel_loss_help
from hnerv.data.chunks import CHUNK_INITS
from hnerv.errors import shortened
from hnerv.presets import PRESETS
from hnerv.schedule import SCHEDULES
from hnerv.training.arguments import TrainArguments
from hnerv.training.signals import ON_DIVERGENCE

TITLES = {
    "video": "video",
    "clip": "CLIP targets",
    "model": "model",
    "loss": "objective (total = pixel + lambda x CLIP)",
    "train": "training",
    "log": "logging (does not affect training; may change on resume)",
}
SECTIONS = {**{f.name: f.default_factory for f in dataclasses.fields(Config)}, "log": LogConfig}
"""Name -> dataclass of its flags: the sections of `Config`, then `LogConfig`."""
THREADS_HELP = "CPU threads of torch; 0: chosen by torch (0)"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and `--some_flag` read as `--some-flag`."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_args(self, args=None, namespace=None):
        """As argparse's; an unknown argument ends with status 2 and one line from the parser of the given verb."""
        words = _normalized(sys.argv[1:] if args is None else args)
        for word in words:
            if word.endswith("=--"):  # up to Python 3.12, argparse makes an empty list of this value
                self.error(f"argument {word.removesuffix('=--')}: '--' is not a value")
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            verb = self._verb_parser(parsed)
            verb.error(verb._unknown_argument(unknown[0]))
        return parsed

    def _check_value(self, action, value) -> None:
        """As argparse's; for an unknown verb, the closest one."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            close = difflib.get_close_matches(value, action.choices, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(action.choices)}"
            self.error(f"unknown verb {value!r}, {hint}")
        super()._check_value(action, value)

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {shortened(message)} (see --help)\n")

    def _verb_parser(self, parsed: argparse.Namespace) -> Parser:
        """The parser of the given verb, or this one if it has no verbs."""
        verbs = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return verbs[0].choices[getattr(parsed, verbs[0].dest)] if verbs else self

    def _unknown_argument(self, argument: str) -> str:
        flags = self._option_string_actions
        close = difflib.get_close_matches(argument.split("=")[0], flags, n=1, cutoff=0.65)
        hint = f", did you mean {close[0]}?" if close and not isinstance(flags[close[0]], RejectedFlag) else ""
        return f"unknown argument {argument!r}{hint}"


class RejectedFlag(argparse.Action):
    """A flag that another command has and this one lacks: the error gives `hint`, the alternative here."""

    def __init__(self, option_strings: list[str], dest: str, hint: str) -> None:
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.hint = hint

    def __call__(self, parser, namespace, values, option_string=None) -> typing.NoReturn:
        parser.error(f"{option_string} is not a flag of {parser.prog}: {self.hint}")


def _normalized(arguments: list[str]) -> list[str]:
    """Flags with hyphens. A slice with a leading minus is joined to its flag: --frames -10: -> --frames=-10:."""
    result: list[str] = []
    for argument in arguments:
        if result and result[-1].startswith("--") and re.fullmatch(r"-\d*:[\d:-]*", argument):
            result[-1] += f"={argument}"
        elif argument.startswith("--"):
            name, equals, value = argument.partition("=")
            result.append(name.replace("_", "-") + equals + value)
        else:
            result.append(argument)
    return result


def train_parser() -> Parser:
    """The parser of `train_patch_dual.py`."""
    schedules = "\n".join(f"  {form:34} {text}" for form, text in SCHEDULES.items())
    parser = Parser(
        prog="train_patch_dual.py",
        usage="%(prog)s --exp-id NAME [--preset NAME] [flags]",
        description="Overfit a patch-based dual-head HNeRV (RGB and CLIP) to one video. "
        "The same command resumes a run that was stopped. Defaults are in parentheses.",
        epilog=f"pixel losses:\n{pixel_loss_help()}\n\n"
        f"learning-rate schedules (factor of --lr at progress x, y = (x - UP)/(1 - UP)):\n{schedules}\n\n"
        f"presets:\n{_preset_help()}",
    )
    run = parser.add_argument_group("run")
    _add_run_folder(run)
    add_device(run)
    add_threads(run)
    add_arithmetic(run)
    run.add_argument("--overwrite", action="store_true", help="move an existing run of this name aside and start over")
    add_segments(run)
    add_limits(run)
    add_debug(run)
    add_config_flags(parser)
    return parser


def _add_run_folder(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--exp-id",
        required=True,
        metavar="NAME",
        help="run name and folder under --output; may contain / and {params} (preset and changed settings)",
    )
    group.add_argument("--preset", default="", metavar="NAME", help=f"one of {', '.join(PRESETS)}; flags override it")
    group.add_argument(
        "--output", type=Path, default=Path("output"), metavar="FOLDER", help="folder that holds all runs (output)"
    )


def add_arithmetic(group: argparse._ArgumentGroup) -> None:
    """`--deterministic` and `--compile`."""
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="bit-identical results on CUDA too, with the same GPU and versions; slower on CUDA, no effect on the CPU",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the network: a minute at each start, then less work per step",
    )


def add_limits(group: argparse._ArgumentGroup) -> None:
    """Flags that end a run early or handle its divergence."""
    group.add_argument(
        "--max-minutes",
        type=_minutes,
        default=0.0,
        metavar="N",
        help="save and exit with status 124 after N minutes; run the same command to resume; 0: no limit (0)",
    )
    group.add_argument(
        "--on-divergence",
        default="stop",
        choices=ON_DIVERGENCE,
        help="on a non-finite value, stop the run or roll back to the last good checkpoint and halve the learning "
        "rate, at most three times; rollback also reacts to a drop of Train/PSNR by 6 dB (stop)",
    )


def add_segments(run: argparse._ArgumentGroup) -> None:
    """The --segment- flags."""
    run.add_argument(
        "--segment-frames",
        type=int,
        default=0,
        metavar="N",
        help="split the video into segments of at most N frames, each with its own network; 0: no limit (0)",
    )
    run.add_argument(
        "--segment-scenes",
        action="store_true",
        help="start a new segment at every scene cut, detected from frame differences",
    )
    run.add_argument(
        "--segment-init",
        default="none",
        choices=CHUNK_INITS,
        help="previous: initialise each segment from the trained weights of the previous one (none)",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """`--device`, for commands that compute."""
    parser.add_argument("--device", default="auto", help="auto (CUDA if available), cpu, cuda or cuda:N (auto)")


def add_vmaf(parser: argparse._ActionsContainer) -> None:
    """`--vmaf`, for commands that measure quality."""
    parser.add_argument("--vmaf", action="store_true", help="also measure VMAF, by an ffmpeg with libvmaf on the PATH")


def add_threads(parser: argparse._ActionsContainer, help: str = THREADS_HELP) -> None:
    """`--threads`, for every command."""
    parser.add_argument("--threads", type=int, default=0, metavar="N", help=help)


def add_debug(parser: argparse._ActionsContainer) -> None:
    """`--debug`, for every command."""
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


def parse_train(argv: list[str] | None = None) -> TrainArguments:
    """The command line of `train_patch_dual.py`. Exits with status 2 and one line when it is malformed."""
    values = vars(train_parser().parse_args(argv))
    own = {f.name: values[f.name] for f in dataclasses.fields(TrainArguments) if f.name in values}
    settings, logging = split_settings(values)
    return TrainArguments(settings=settings, logging=logging, **own)


def add_config_flags(parser: Parser, rejected: dict[str, str] | None = None) -> None:
    """The flags of `Config` and `LogConfig`, one group per section; `split_settings` reads their values.

    `rejected` are fields that the command sets itself, {field: alternative}: their flags end with that hint.
    """
    rejected = rejected or {}
    for name, hint in rejected.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action=RejectedFlag, hint=hint)
    for name, section in SECTIONS.items():
        _add_section(parser.add_argument_group(TITLES[name]), section, rejected)


def split_settings(values: dict[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Parsed values -> (fields of `Config` that were given, fields of `LogConfig` that were given)."""
    logged = {field.name for field in dataclasses.fields(LogConfig)}
    known = set(Config().flat())
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in known}
    return settings, {key: value for key, value in values.items() if key in logged}


def _minutes(text: str) -> float:
    """A finite number of at least 0. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of minutes, at least 0")
    return value


def eval_parser() -> Parser:
    """The parser of `eval.py`."""
    parser = Parser(
        prog="eval.py", description="Evaluate a checkpoint, a run folder or a .hnerv file against its video."
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="checkpoint (.pt), run folder (its latest.pt), or .hnerv file"
    )
    parser.add_argument("--data", default="", help="video, if it has moved since training", metavar="PATH|CLIP")
    parser.add_argument(
        "--clip-targets",
        default="",
        help="the run's target file, if it has moved; none: evaluate pixels only",
        metavar="FILE|none",
    )
    parser.add_argument(
        "--unseen", default="", choices=("interpolate", "encode"), help="encoder: override the run's --unseen"
    )
    parser.add_argument(
        "--positions",
        default="trained",
        choices=("trained", "fractional"),
        help="fractional: also measure PSNR of patches shifted by half a patch to the right, down, and both (trained)",
    )
    add_device(parser)
    add_threads(parser)
    parser.add_argument("--images", action="store_true", help="write images of source and reconstruction side by side")
    add_vmaf(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
    add_debug(parser)
    return parser


def _add_section(group: argparse._ArgumentGroup, section: type, rejected: Container[str]) -> None:
    for knob in dataclasses.fields(section):
        if knob.name in rejected:
            continue
        flag = f"--{knob.name.replace('_', '-')}"
        text = f"{knob.metadata['help']} ({_formatted(knob.default)})".replace("%", "%%")
        options: dict = {"dest": knob.name, "default": argparse.SUPPRESS, "help": text}
        kind = type(knob.default)
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif kind is tuple:
            options |= {"type": int, "nargs": "+", "metavar": knob.metadata["metavar"] or "S"}
        else:
            options |= {"type": kind, "choices": knob.metadata["choices"], "metavar": knob.metadata["metavar"]}
        group.add_argument(flag, **options)


def _formatted(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "not set" if value == "" else str(value)


def _preset_help() -> str:
    rows = ((name, " ".join(f"{k}={_formatted(v)}" for k, v in row.items())) for name, row in PRESETS.items())
    return "\n".join(f"  {name:16} {text}" for name, text in rows)
