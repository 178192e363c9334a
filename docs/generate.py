"""Write docs/flags.md from the parsers and docs/tags.md from the table of tags: `python docs/generate.py`.

A test fails if a page is out of date.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hnerv.cli import build_parser
from hnerv.flags import TITLES, eval_parser, train_parser
from hnerv.tracking import tags

FOLDER = Path(__file__).resolve().parent
FLAGS = """# Flags

Generated from the parsers by `docs/generate.py`. Defaults are in parentheses. Hyphens and underscores are
interchangeable.
"""
TAGS = """# Tags

Generated from `hnerv/tracking/tags.tsv` by `docs/generate.py`. A name in braces stands for many tags.
[TensorBoard](tensorboard.md) explains where they appear and how to read them.
"""


def main() -> None:
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """{file name: text} of the generated pages."""
    return {"flags.md": "\n".join([FLAGS, *flags_of_commands()]) + "\n", "tags.md": f"{TAGS}\n{tag_table()}\n"}


def flags_of_commands() -> list[str]:
    """A section per command: the scripts, then the subcommands of `hnerv`."""
    train = train_parser()
    parts = ["## train_patch_dual.py\n", *tables_of(train), f"```text\n{train.epilog}\n```\n"]
    parts += ["## eval.py\n", *tables_of(eval_parser())]
    (verbs,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for verb, parser in verbs.choices.items():
        parts += [f"## hnerv {verb}\n\n{parser.description}\n", *tables_of(parser, without=tuple(TITLES.values()))]
        if any(group.title in TITLES.values() for group in parser._action_groups):
            parts.append("It also takes the configuration flags of [train_patch_dual.py](#train_patch_dualpy).\n")
    return parts


def tables_of(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> list[str]:
    """A table of the arguments outside of named groups, then one for each group that is not in `without`."""
    unnamed, *named = parser._action_groups[1:]
    groups = {"": parser._action_groups[0]._group_actions + unnamed._group_actions}
    groups |= {f"**{group.title}**\n\n": group._group_actions for group in named if group.title not in without}
    tables = []
    for title, actions in groups.items():
        rows = [row(a) for a in actions if a.dest != "help" and a.help != argparse.SUPPRESS]
        tables += [title + "\n".join(["| flag | meaning |", "|---|---|", *rows]) + "\n"] * bool(rows)
    return tables


def row(action: argparse.Action) -> str:
    """| `-o`, `--output FILE` | help |."""
    names = list(action.option_strings)
    value = "" if action.nargs == 0 else action.metavar or "|".join(action.choices or ()) or action.dest.upper()
    value += " ..." if action.nargs in ("+", "*") else ""
    names = [*names[:-1], f"{names[-1]} {value}".strip()] if names else [value]
    cells = ", ".join(f"`{name}`" for name in names), action.help.replace("%%", "%")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def tag_table() -> str:
    """A row per tag. No text of a tag contains |."""
    rows = [f"| `{t.name}` | {t.kind} | {t.when} | {t.definition} |" for t in tags().values()]
    return "\n".join(["| tag | kind | when | definition |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    main()
