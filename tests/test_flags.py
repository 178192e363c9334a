"""The command line: every field is a flag, errors are one line, --help imports no torch."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from hnerv.config import Config, LogConfig
from hnerv.errors import UserError
from hnerv.flags import SECTIONS, eval_parser, parse_train, train_parser
from hnerv.losses import LOSSES, formula
from hnerv.presets import PRESETS
from hnerv.schedule import SCHEDULES

ROOT = Path(__file__).parents[1]
FIELDS = [knob for section in SECTIONS.values() for knob in dataclasses.fields(section)]
LOGGING = {field.name for field in dataclasses.fields(LogConfig)}


def words(value: object) -> list[str]:
    return [str(part) for part in value] if isinstance(value, tuple) else [str(value)]


def refused(capsys, argv: list[str], parse=parse_train) -> str:
    """The line on stderr that refuses a command line."""
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == "" and err.endswith("\n") and err.count("\n") == 1
    return err.rstrip()


def help_of(parser) -> str:
    return " ".join(parser.format_help().split())


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_is_a_flag(field):
    """Its help has the text and the default of the field; it sets this field and no other."""
    (action,) = [action for action in train_parser()._actions if action.dest == field.name]
    hyphens = f"--{field.name.replace('_', '-')}"
    default = "not set" if field.default == "" else " ".join(words(field.default))
    assert hyphens in action.option_strings and action.choices == field.metadata["choices"]
    assert f"{field.metadata['help']} ({default})" in action.help % {}
    for flag in (hyphens, f"--{field.name}"):
        if isinstance(field.default, bool):
            value, argv = not field.default, [flag.replace("--", "--no-", 1) if field.default else flag]
        else:
            choices = field.metadata["choices"]
            value = choices[-1] if choices else field.default if field.default != "" else "some_text"
            argv = [flag, *words(value)]
        args = parse_train(["--exp-id", "a", *argv])
        settings, others = (args.logging, args.settings) if field.name in LOGGING else (args.settings, args.logging)
        assert settings == {field.name: value} and others == {}
        assert type(settings[field.name]) is type(field.default)


def test_no_metavar_repeats_its_flag():
    for parser in (train_parser(), eval_parser()):
        taking = [a for a in parser._actions if a.nargs != 0 and not a.choices and a.dest != "device"]
        assert all(a.metavar or isinstance(a, argparse.BooleanOptionalAction) for a in taking)
        assert not [a.dest for a in taking if str(a.metavar).lower() == a.dest != "path"]


def test_logging_is_not_part_of_the_configuration():
    """It may change on resume, and `{params}` does not include it."""
    words = ["--report-to", "none", "--images-freq", "3", "--no-projector", "--profile", "2:4", "--histogram-freq", "5"]
    args = parse_train(["--exp-id", "a", "--graph", *words])
    assert args.resolve(cuda=False) == parse_train(["--exp-id", "a"]).resolve(cuda=False)
    assert args.log == LogConfig("none", 3, 5, projector=False, graph=True, profile="2:4")
    assert not LOGGING & set(Config().flat())


def test_every_section_has_a_title_and_slow_flags_have_a_note():
    assert set(SECTIONS) == {f.name for f in dataclasses.fields(Config)} | {"log"}
    flat = help_of(train_parser())
    for words in ("every N epochs (slow)", "tracing the model takes seconds", "they take several times as long"):
        assert words in flat


def test_hyphens_and_underscores_also_before_an_equals_sign():
    args = parse_train(["--exp_id=a_b/{params}", "--data_split=1_1_2", "--pixel-loss_warmup-epochs", "3"])
    assert args.exp_id == "a_b/{params}"
    assert args.settings == {"data_split": "1_1_2", "pixel_loss_warmup_epochs": 3}


def test_only_flags_that_were_given_are_settings():
    args = parse_train(["--exp-id", "a"])
    assert args.settings == {}
    assert (args.preset, args.output, args.device, args.threads) == ("", Path("output"), "auto", 0)
    assert not args.overwrite and not args.debug


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "3"], "unknown argument '--epoch', did you mean --epochs?"),
        (["--epocs", "3"], "unknown argument '--epocs', did you mean --epochs?"),
        (["--data_splt=1_1_2"], "unknown argument '--data-splt=1_1_2', did you mean --data-split?"),
        (["--zzzzzzzz"], "unknown argument '--zzzzzzzz'"),
        (["--learning-rate", "1"], "unknown argument '--learning-rate'"),
        (["stray"], "unknown argument 'stray'"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--epochs", "3.5"], "argument --epochs: invalid int value: '3.5'"),
        (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--dec-strides"], "argument --dec-strides: expected at least one argument"),
        (["--exp-id", "a\nb", "--line\nbreak"], "unknown argument '--line\\nbreak'"),
    ],
)
def test_a_malformed_line_gets_one_line(capsys, argv, message):
    assert refused(capsys, ["--exp-id", "a", *argv]) == f"train_patch_dual.py: error: {message} (see --help)"


@pytest.mark.parametrize(
    "field", [field for field in FIELDS if field.metadata["choices"]], ids=lambda field: field.name
)
def test_an_unknown_choice_lists_the_choices(capsys, field):
    line = refused(capsys, ["--exp-id", "a", f"--{field.name}", "nonsense"])
    assert f"argument --{field.name.replace('_', '-')}: " in line and "'nonsense'" in line
    assert all(choice in line for choice in field.metadata["choices"])


def test_a_run_needs_a_name(capsys):
    assert "required: --exp-id" in refused(capsys, [])


def test_help_shows_every_loss_preset_and_schedule(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for loss in LOSSES:
        assert f"{loss} {formula(loss)}" in lines
    for name, settings in PRESETS.items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert all(f"{key}={' '.join(words(value))}" in line for key, value in settings.items())
    assert all(f"{form} {formula}" in lines for form, formula in SCHEDULES.items())


@pytest.mark.parametrize("script", ["train_patch_dual.py", "eval.py"])
def test_help_imports_nothing_heavy(script):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'open_clip', 'matplotlib', 'av', 'decord', 'PIL', 'tensorboard'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script}")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_the_defaults_and_flags_change_the_preset(name):
    args = parse_train(["--exp-id", "a", "--preset", name, "--modelsize", "0.123", "--seed", "5"])
    assert args.preset == name
    choice = args.resolve(cuda=False)
    assert choice.preset == name
    assert choice.config.flat() == Config().flat() | PRESETS[name] | {"modelsize": 0.123, "seed": 5}
    assert choice.base.flat() == Config().flat() | PRESETS[name]


def test_a_flag_overrides_the_preset_even_with_a_default():
    default = Config().model.modelsize
    args = parse_train(["--exp-id", "a", "--preset", "bunny-3m", "--modelsize", str(default)])
    assert PRESETS["bunny-3m"]["modelsize"] != default == args.resolve(cuda=False).config.model.modelsize
    choice = parse_train(["--exp-id", "a", "--data", "a.mp4", "--lr", "0.5"]).resolve(cuda=False)
    assert choice.base == Config() and choice.config == Config().replaced({"data": "a.mp4", "lr": 0.5})


def test_an_unknown_preset():
    args = parse_train(["--exp-id", "a", "--preset", "huge"])
    with pytest.raises(UserError, match="--preset 'huge' does not exist: choose from demo"):
        args.resolve(cuda=False)


@pytest.mark.parametrize(
    ("argv", "cuda", "expected"),
    [
        ([], True, "bunny-1.5m-fast"),
        ([], False, "demo"),
        (["--epochs", "3"], False, "demo"),
        (["--preset", "bunny-3m"], False, "bunny-3m"),
        (["--preset", "demo"], True, "demo"),
        (["--data", "a.mp4"], True, ""),
        (["--data", "bunny"], False, ""),
        (["--data", "a.mp4", "--preset", "demo"], True, "demo"),
    ],
)
def test_the_preset_of_a_command_line(argv, cuda, expected):
    assert parse_train(["--exp-id", "a", *argv]).resolve(cuda).preset == expected


def test_a_resumed_run_keeps_its_preset_on_another_machine(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"preset": "demo"}')
    words = ["--exp-id", "a", "--output", str(tmp_path)]
    assert parse_train(words).resolve(cuda=True).preset == "demo"
    assert parse_train([*words, "--overwrite"]).resolve(cuda=True).preset == "bunny-1.5m-fast"
    assert parse_train([*words, "--preset", "bunny-3m"]).resolve(cuda=True).preset == "bunny-3m"


@pytest.mark.parametrize("text", ["-10:", "-10:-1", "::2", "-1::-1", ":-3"])
def test_a_slice_may_begin_with_a_minus(text):
    assert parse_train(["--exp-id", "a", "--frames", text]).settings == {"frames": text}


def test_the_parser_of_eval(capsys):
    parse = eval_parser().parse_args
    args = parse(["runs/a_b"])
    assert args.path == Path("runs/a_b") and args.positions == "trained"
    assert (args.data, args.clip_targets, args.unseen, args.device, args.threads) == ("", "", "", "auto", 0)
    assert not (args.images or args.json or args.debug)
    assert parse(["a", "--clip_targets", "t"]).clip_targets == "t"
    assert parse(["a", "--positions", "fractional"]).positions == "fractional"
    assert "invalid choice" in refused(capsys, ["a", "--positions", "half"], parse)
    assert "required: PATH" in refused(capsys, [], parse)
    assert refused(capsys, ["a", "--jsn"], parse) == (
        "eval.py: error: unknown argument '--jsn', did you mean --json? (see --help)"
    )
