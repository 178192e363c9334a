"""What README, docs and docstrings say is true: commands are accepted or run, links lead somewhere, pages are short."""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
import io
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from hnerv import api
from hnerv.cli import VERBS, build_parser
from hnerv.flags import SECTIONS, Parser, parse_train
from hnerv.presets import PRESETS
from hnerv.tracking import tags

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])]
LONG = ("flags.md", "tags.md", "format.md", "results.md")
"""Pages of docs/ that are looked up, not read."""
TABLES = sorted(ROOT.glob("benchmarks/data/*.csv"))
SCRIPTS = [*ROOT.glob("*.py"), *sorted(ROOT.glob("benchmarks/*.py")), *sorted(ROOT.glob("docs/*.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def commands_of(path: Path) -> list[str]:
    """The commands in the fenced blocks of a page, or in the docstring of a script, without comments, one by one."""
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text_of(path))) or ""
        blocks = re.findall(r"^ {4}((?:python|hnerv|pip|pytest|export) .*(?:\n {8,}.*)*)", text, re.M)
        blocks = [re.sub(r"\\?\n\s*", " ", block) for block in blocks]
    else:
        blocks = re.findall(r"^```sh\n(.*?)^```", text_of(path), re.S | re.M)
        blocks = [re.sub(r"(\\|\||&&)\n", r"\1 ", block) for block in blocks]
    lines = [re.sub(r"\s#.*", "", line) for block in blocks for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&& |\| (?=xargs)", line)]
    return [part for part in parts if part]


def commands_in(text: str) -> list[str]:
    """The commands among the spans of code in a text. A verb without arguments is its name."""
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    starts = r"(?:[A-Z_]+=\S+ )*(?:python (?!-)|hnerv \S+ [^-]|pytest |uv run |pip install -e|mkdocs )"
    return [part for span in spans for part in span.split(" && ") if re.match(starts, part)]


def mentioned_in(path: Path) -> list[str]:
    """The commands in the text of a page, or in the header and the column `command` of a table."""
    text = text_of(path)
    if path.suffix == ".csv":
        rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
        return re.findall(r"^# command: (.*)$", text, re.M) + [row["command"] for row in rows if "command" in row]
    return commands_in(text)


def rows_of(path: Path) -> list[tuple[str, list[str]]]:
    """(row, its commands) for the tables of a page.

    A row with a cell "as above" has the commands of the row above, one without commands those of the paragraph above
    the table.
    """
    rows = []
    paragraph = ""
    for block in text_of(path).split("\n\n"):
        if block.startswith("|"):
            above = shared = commands_in(paragraph)
            for row in block.splitlines()[2:]:
                above = commands_in(row) or (above if "| as above |" in row else shared)
                rows.append((row, above))
        paragraph = block
    return rows


COMMANDS = [(path, command) for path in [*PAGES, *SCRIPTS] for command in commands_of(path)]
COMMANDS += [(path, command) for path in [*PAGES, *TABLES] for command in mentioned_in(path)]


RESULTS = ROOT / "docs" / "results.md"
ROWS = rows_of(RESULTS)


class Accepted(Exception):
    """The parser took the words."""


@pytest.fixture
def accepts(monkeypatch):
    """accepts(script, words): the parser that it builds takes them. SystemExit where not."""

    def check(script: Path, words: list[str]) -> None:
        with monkeypatch.context() as patch:
            patch.syspath_prepend(ROOT / "benchmarks")
            patch.setattr(sys, "argv", [str(script), *words])
            for parser in (argparse.ArgumentParser, Parser):
                patch.setattr(parser, "parse_args", ending(parser.parse_args))
            with pytest.raises(Accepted):
                runpy.run_path(str(script), run_name="__main__")

    return check


def ending(parse):
    """`parse_args` that ends the script once it has parsed."""

    def parse_and_end(*args, **settings):
        parse(*args, **settings)
        raise Accepted

    return parse_and_end


def test_commands_are_found():
    """A fence of another name, or a docstring indented otherwise, would hide them."""
    for page in PAGES:
        assert set(re.findall(r"^```(\w+)", text_of(page), re.M)) <= {"sh", "python", "text", "bibtex"}, page.name
    silent = {path.name for path in SCRIPTS if "__main__" in text_of(path) and not commands_of(path)}
    assert silent == {"train_patch_dual.py", "eval.py", "generate.py"}
    words = {tuple(command.split()[:2]) for command in commands_of(ROOT / "README.md")}
    assert words >= {("python", "train_patch_dual.py"), ("python", "eval.py"), ("tensorboard", "--logdir")}
    assert words >= {("hnerv", verb) for verb in ("encode", "decode", "search")}


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_verbs_of_the_text_exist(path):
    assert set(re.findall(r"`hnerv ([a-z][a-z-]*)", text_of(path))) <= {*VERBS}


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[f"{p.name}: {c}" for p, c in COMMANDS])
def test_commands_are_accepted(path, command, accepts):
    words = shlex.split(re.sub(r"^(?:[A-Z_]+=\S+ )*", "", command))
    if words[:2] == ["uv", "run"]:
        extra = words[3:4] if words[2] == "--extra" else []
        assert set(extra) <= set(EXTRAS)
        words = words[2 + 2 * len(extra) :]
        words = ["python", *words] if words[0].endswith(".py") else words
    program, *rest = words
    match program:
        case "python" | "python3" if rest[0] == "-m":
            assert rest == ["-m", "venv", ".venv"]
        case "python" | "python3" if rest[0] == "train_patch_dual.py":
            assert parse_train(rest[1:]).resolve(cuda=False).config
        case "python" if rest == ["docs/generate.py"]:
            pass  # it takes no words
        case "python" | "python3":
            accepts(ROOT / rest[0], rest[1:])
            if rest[0] == "benchmarks/speed.py":
                assert runpy.run_path(str(ROOT / rest[0]))["parse"](rest[1:])[1].resolve(cuda=False).config
        case "hnerv":
            assert build_parser().parse_args(rest).verb == rest[0]
        case "xargs":
            inner = rest[rest.index("hnerv") :]
            assert build_parser().parse_args(inner[1:]).verb == inner[1]
        case "pip":
            extras = re.findall(r"\[(.*)\]", " ".join(rest))
            assert rest[0] in ("install", "download") and {e for x in extras for e in x.split(",")} <= set(EXTRAS)
        case "pytest":
            tests = [word for word in rest if word.startswith("tests")]
            assert all((ROOT / test).exists() for test in tests) and markers_of(rest) <= MARKERS
        case "tensorboard":
            assert rest[0] == "--logdir" and len(rest) == 2
        case "mkdocs":
            assert rest in (["serve"], ["build"], ["build", "--strict"])
        case "." | ".ci/run" | "find" | "export":
            assert program != ".ci/run" or (ROOT / program).is_file()
        case _:
            pytest.fail(f"{path.name} has a command that no test knows: {command}")


@pytest.mark.parametrize(("row", "commands"), ROWS, ids=[row[:60] for row, _ in ROWS])
def test_a_row_of_the_results_has_a_command(row, commands):
    """One that `test_commands_are_accepted` gives to its parser."""
    assert commands and {(RESULTS, command) for command in commands} <= {*COMMANDS}


def test_rows_and_their_commands(tmp_path):
    page = tmp_path / "page.md"
    table = "| a | command |\n|---|---|\n| 1 | `hnerv info x` |\n| 2 | as above |\n| 3 | |"
    page.write_text(f"`python a.py` and\n`--flag`:\n\n{table}\n\nNo command.\n\n{table}\n")
    found = [commands for _, commands in rows_of(page)]
    assert found == [["hnerv info x"], ["hnerv info x"], ["python a.py"], ["hnerv info x"], ["hnerv info x"], []]


EXTRAS = PROJECT["project"]["optional-dependencies"]
MARKERS = {line.split(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}


def markers_of(words: list[str]) -> set[str]:
    return {words[i + 1] for i, word in enumerate(words) if word == "-m"}


@pytest.fixture
def demo(clip_run, clip_weights, film, tmp_path, monkeypatch) -> Path:
    """The current folder: a run in miniature as output/demo, its video and weights, the files that pages name."""
    shutil.copytree(film, tmp_path / film.name)
    shutil.copy(clip_weights, tmp_path)
    for name in ("demo", "codec"):
        shutil.copytree(clip_run, tmp_path / "output" / name)
    shutil.copytree(clip_run, tmp_path / "output" / "other")
    Image.new("RGB", (40, 40)).save(tmp_path / "fridge.jpg")
    (tmp_path / "mine.txt").write_text("a wave\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("a wave\n"))
    return tmp_path


def test_commands_run(demo, evaluate, hnerv_main):
    """Page by page in one folder: no page writes what another one has written. Without those that take longer."""
    ran = 0
    for page in PAGES:
        for command in commands_of(page):
            words = shlex.split(command)
            long = words[:2] in (["hnerv", "fleet"], ["hnerv", "rate-distortion"])
            if long or "output/fleet" in command or "talk" in command:
                continue
            if words[0] == "hnerv":
                ends = (0, 1) if words[1] in ("doctor", "diagnose") else (0,)
                assert hnerv_main(*words[1:]) in ends, f"{page.name}: {command}"
                ran += 1
            elif words[:2] == ["python", "eval.py"]:
                assert evaluate(*words[2:]) == 0, f"{page.name}: {command}"
                ran += 1
    assert ran > 30


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)], ids=lambda page: page.name)
def test_python_blocks_run(page, demo, monkeypatch):
    """All of a page in order, in one namespace. `hnerv.train` checks its arguments and returns a finished run."""
    trained = api.open_video("output/demo")
    monkeypatch.setattr(api, "train_run", lambda arguments: (arguments.resolve(cuda=False), trained)[1])
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.S | re.M):
        exec(compile(block, page.name, "exec"), names)


def test_generated_pages_are_those_of_the_code():
    for name, text in runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]().items():
        assert text_of(ROOT / "docs" / name) == text, "run: python docs/generate.py"


def test_the_page_of_flags_has_every_field_with_its_default():
    (page,) = re.findall(r"^## train_patch_dual\.py\n(.*?)^## ", text_of(ROOT / "docs" / "flags.md"), re.S | re.M)
    rows = {name: row for row, name in re.findall(r"^(\| `--([\w-]+)[ `].*)$", page, re.M)}
    fields = [field for section in SECTIONS.values() for field in dataclasses.fields(section)]
    names = [field.name.replace("_", "-") for field in fields]
    assert [name for name in rows if name in names] == names
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows.values())
    for name, field in zip(names, fields, strict=True):
        value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        assert f"({value or 'not set'})" in rows[name]
        assert all(choice in rows[name] for choice in field.metadata["choices"] or ())


def test_the_page_of_tags_has_every_tag():
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| (.+?) \| (.+) \|$", text_of(ROOT / "docs" / "tags.md"), re.M)
    assert rows == [(tag.name, tag.kind, tag.when, tag.definition) for tag in tags().values()]


def test_links_lead_to_files():
    """As on a hosting site; `mkdocs build --strict` checks those of the built one, headings included."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text_of(page)):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_sizes():
    readme = text_of(ROOT / "README.md")
    assert 130 <= len(readme.splitlines()) <= 180 and len(readme.split()) <= 1200
    assert len(text_of(ROOT / "docs" / "results.md").splitlines()) <= 180
    for page in ROOT.glob("docs/*.md"):
        assert page.name in LONG or 200 <= len(text_of(page).split()) <= 700, page.name


def test_every_preset_and_verb_is_named():
    assert all(f"`{name}`" in text_of(ROOT / "docs" / "training.md") for name in PRESETS)
    assert all(re.search(rf"`(hnerv )?{verb}`", text_of(ROOT / "README.md")) for verb in VERBS)


def test_messages_of_the_troubleshooting_page_exist():
    """In the package's code, with anything for an ellipsis."""
    code = "\n".join(text_of(path) for path in sorted(ROOT.glob("hnerv/**/*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    messages = re.findall(r"^\| `([^|]+)` \|", text_of(ROOT / "docs" / "troubleshooting.md"), re.M)
    assert len(messages) >= 10
    for message in messages:
        assert re.search('"' + re.escape(message).replace("…", ".+?"), code), message
