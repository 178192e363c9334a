"""Words that the style guide replaces are absent from strings and pages, and from comments and names of the package."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIALECT = re.compile(
    r"\b(mend\w*|anew|told|tells?|sa(y|ys|ying|id)|wish\w*|go(es|ing|ne)? on|beside|films?|whose|of which|nobody"
    r"|harm\w*|at their time(?! stamp)|stands? in|is no more|no checkpoint of|hold\w* against|whole|besides"
    r"|ground truth|teacher|rivals?)\b",
    re.I,
)
PACKAGE_DIALECT = re.compile(
    r"(?<![a-z])(mend(s|ed|ing)?|anew|told|tells?|wish(es|ed)?|letters?(?!, digits)|harm\w*|films?|asks?|asked|whose"
    r"|of which|beside|whole)(?![a-z])",
    re.I,
)
"""Also matches the parts of a name: `_told`, `mend_end`."""
READ = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
READ += [*ROOT.glob("data/*.md"), *ROOT.glob("hnerv/**/*.html"), *ROOT.glob("hnerv/**/*.tsv")]
CODE = [path for folder in (".", "benchmarks", "docs", "hnerv/**") for path in ROOT.glob(f"{folder}/*.py")]


def strings_of(path: Path) -> Iterator[str]:
    """Strings of several words, f-strings in one piece. Of docstrings only that of a module that prints it."""
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    skipped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    if "__doc__" in text:
        skipped.remove(id(nodes[0].body[0].value))
    skipped |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        text = node.value if isinstance(node, ast.Constant) and id(node) not in skipped else None
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        if isinstance(text, str) and " " in text.strip():
            yield text


PROMPTS = "hnerv/search/queries.py"
"""Its sentences around a text are input of the encoder, where a film is a film."""


@pytest.mark.parametrize("path", [*READ, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_english(path):
    texts = strings_of(path) if path.suffix == ".py" else path.read_text(encoding="utf-8").splitlines()
    found = [text for text in texts if DIALECT.search(text)]
    assert [text for text in found if not (path == ROOT / PROMPTS and "{}" in text)] == []


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each comment, name and docstring line, docstrings of attributes included."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    for token in tokens:
        is_docstring = token.type == tokenize.STRING and token.string.startswith('"""')
        if (
            is_docstring or token.type in (tokenize.COMMENT, tokenize.NAME) and token.string != "tell"
        ):  # a file's method
            yield from enumerate(token.string.splitlines(), start=token.start[0])


@pytest.mark.parametrize("path", sorted(ROOT.glob("hnerv/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_and_names(path):
    assert [f"{line}: {text.strip()}" for line, text in words_of(path) if PACKAGE_DIALECT.search(text)] == []


@pytest.mark.parametrize(
    ("text", "matches"),
    [("ask", True), ("_told", True), ("mend_end", True), ("# as told", True), ("Wishes", True)]
    + [("task", False), ("mask", False), ("recommend", False), ("foretold", False)],
)
def test_words_within_names(text, matches):
    assert bool(PACKAGE_DIALECT.search(text)) is matches
