"""No word of the dialect that this project once spoke, in what a user reads (`hnerv`, scripts, docs): a floor."""

from __future__ import annotations

import ast
import re
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
