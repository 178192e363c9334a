"""The README says what is true now: its tables are those of the code, its commands are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hnerv.flags import eval_parser, markdown, parse_train
from hnerv.presets import PRESETS
from hnerv.tracking import tags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0] for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]


def test_the_tag_table_is_the_one_of_the_code():
    text = (ROOT / "docs" / "TAGS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:Train|Train_Batch|Model|Eval)/\S+)` \| (\w+) \| (.+?) \| (.+) \|$", text, re.M)
    assert rows == [tuple(tag) for tag in tags().values()]


def test_the_flag_tables_are_those_of_the_configuration():
    assert markdown() in (ROOT / "docs" / "FLAGS.md").read_text(encoding="utf-8")


def test_every_preset_is_named():
    assert all(f"`{name}`" in README for name in PRESETS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train_patch_dual.py" in c])
def test_training_commands_are_accepted(command):
    words = shlex.split(command)
    ask = parse_train(words[words.index("train_patch_dual.py") + 1 :])
    assert ask.resolve(cuda=False).config


@pytest.mark.parametrize("command", [c for c in COMMANDS if "eval.py" in c])
def test_evaluation_commands_are_accepted(command):
    words = shlex.split(command)
    assert eval_parser().parse_args(words[words.index("eval.py") + 1 :]).path.name


def test_both_kinds_of_command_were_found():
    assert any("train_patch_dual.py" in c for c in COMMANDS) and any("eval.py" in c for c in COMMANDS)
