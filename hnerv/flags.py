"""The command line, generated from the fields of `hnerv.config`. Imports no torch: --help answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from pathlib import Path

from hnerv.config import Config, pixel_loss_help
from hnerv.presets import PRESETS, preset

TITLES = {
    "video": "video",
    "clip": "CLIP targets",
    "model": "model",
    "loss": "objective: total = pixel + lambda x CLIP",
    "train": "training",
}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and `--some_flag` read as `--some-flag`."""

    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def parse_args(self, args=None, namespace=None):
        import sys

        words = [_hyphened(word) for word in (sys.argv[1:] if args is None else args)]
        known, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return known

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists every flag)\n")

    def _unknown(self, word: str) -> str:
        close = difflib.get_close_matches(word.split("=")[0], self._option_string_actions, n=1)
        return f"unknown argument {word!r}" + (f", did you mean {close[0]}?" if close else "")


def _hyphened(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What `train_patch_dual.py` was asked for. `settings` holds the flags that were given, `preset` may be empty."""

    exp_id: str
    preset: str
    settings: dict[str, object]
    output: Path
    device: str
    threads: int
    overwrite: bool
    debug: bool

    def preset_or_default(self, cuda: bool) -> str:
        """The preset named; for no preset and no --data, Bunny at the size that the machine can train."""
        if self.preset or "data" in self.settings:
            return self.preset
        return "bunny-1.5m" if cuda else "demo"

    def base_config(self, preset_name: str) -> Config:
        """Defaults, changed by the preset ('' for none)."""
        return Config().replaced(preset(preset_name)) if preset_name else Config()

    def config(self, preset_name: str) -> Config:
        """Defaults, changed by the preset ('' for none), changed by the flags that were given."""
        return self.base_config(preset_name).replaced(self.settings)


def train_parser() -> Parser:
    """The parser of `train_patch_dual.py`."""
    parser = Parser(
        prog="train_patch_dual.py",
        description="Overfit a patch-based dual-head HNeRV (RGB and CLIP) to one video. "
        "The same command resumes a run that was stopped.",
        epilog="pixel losses:\n" + pixel_loss_help() + "\n\npresets:\n" + _preset_help(),
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--exp-id", required=True, help="name of the run, its folder under --output; may hold / and {params}"
    )
    run.add_argument("--preset", default="", metavar="NAME", help=f"{', '.join(PRESETS)}; flags override it")
    run.add_argument("--output", type=Path, default=Path("output"), help="folder of all runs (output)")
    run.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:N")
    run.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0: its own choice")
    run.add_argument("--overwrite", action="store_true", help="move an existing run of this name aside and start anew")
    run.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for section in dataclasses.fields(Config):
        _add_section(parser.add_argument_group(TITLES[section.name]), section.default_factory)
    return parser


def parse_train(argv: list[str] | None = None) -> Invocation:
    """The command line of `train_patch_dual.py`. Exits with status 2 and one line when it is malformed."""
    given = vars(train_parser().parse_args(argv))
    own = {f.name: given.pop(f.name) for f in dataclasses.fields(Invocation) if f.name != "settings"}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return Invocation(settings=settings, **own)


def eval_parser() -> Parser:
    """The parser of `eval.py`."""
    parser = Parser(prog="eval.py", description="Evaluate a checkpoint or a run folder against its video.")
    parser.add_argument("path", type=Path, help="checkpoint (.pt) or run folder; a folder means its latest.pt")
    parser.add_argument(
        "--data", default="", help="video, if it is no longer where the run found it", metavar="PATH|CLIP"
    )
    parser.add_argument("--clip-targets", default="", help="the run's target file, if it moved", metavar="FILE")
    parser.add_argument("--unseen", default="", choices=("interpolate", "encode"), help="encoder: as in training flags")
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0: its own choice")
    parser.add_argument("--images", action="store_true", help="write ground truth and reconstruction side by side")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def markdown() -> str:
    """Every flag of the configuration, a table per group, as it stands in the README."""
    parts = []
    for section in dataclasses.fields(Config):
        rows = [f"**{TITLES[section.name]}**", "", "| flag | default | meaning |", "|---|---|---|"]
        for knob in dataclasses.fields(section.default_factory):
            text = knob.metadata["help"]
            if knob.metadata["choices"]:
                text += ": " + ", ".join(knob.metadata["choices"])
            cells = f"`--{knob.name.replace('_', '-')}`", f"`{_shown(knob.default)}`", text.replace("|", "\\|")
            rows.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _add_section(group: argparse._ArgumentGroup, section: type) -> None:
    hints = typing.get_type_hints(section)
    for knob in dataclasses.fields(section):
        flag = f"--{knob.name.replace('_', '-')}"
        text = f"{knob.metadata['help']} ({_shown(knob.default)})".replace("%", "%%")
        settings: dict = {"dest": knob.name, "default": argparse.SUPPRESS, "help": text}
        if hints[knob.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
            continue
        settings |= {"choices": knob.metadata["choices"], "metavar": knob.metadata["metavar"]}
        if hints[knob.name] == tuple[int, ...]:
            settings |= {"type": int, "nargs": "+", "metavar": "S"}
        else:
            settings["type"] = hints[knob.name]
        group.add_argument(flag, **settings)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value == "" else str(value)


def _preset_help() -> str:
    rows = ((name, " ".join(f"{k}={_shown(v)}" for k, v in row.items())) for name, row in PRESETS.items())
    return "\n".join(f"  {name:14} {text}" for name, text in rows)
