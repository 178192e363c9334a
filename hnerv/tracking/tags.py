"""The table of TensorBoard tags, `tags.tsv` in this folder. The logger refuses every other tag."""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import NamedTuple

KINDS = ("scalar", "histogram", "image", "text")


class Tag(NamedTuple):
    """A row of the table. kind: one of KINDS; `when`: how often it is written; `definition`: its exact meaning.

    A name may contain one `{placeholder}`: {n} matches a number, any other the rest of the name.
    """

    name: str
    kind: str
    when: str
    definition: str

    @property
    def pattern(self) -> str:
        """A regular expression that matches the tags of this row and no others."""
        escaped = re.escape(self.name)  # {n} -> \{n\}
        return "^" + re.sub(r"\\\{(\w+)\\\}", lambda match: r"\d+" if match[1] == "n" else ".+", escaped) + "$"


@functools.cache
def tags() -> dict[str, Tag]:
    """{name: row} in the order of the table."""
    text = resources.files("hnerv.tracking").joinpath("tags.tsv").read_text(encoding="utf-8")
    rows = [Tag(*line.split("\t")) for line in text.splitlines()[1:]]
    return {row.name: row for row in rows}


@functools.cache
def _templates() -> list[Tag]:
    return [tag for tag in tags().values() if "{" in tag.name]


def tag_of(name: str, kind: str) -> Tag:
    """The row of a tag. Raises KeyError for a name that is not in the table, or is there with another kind."""
    tag = tags().get(name) or next((row for row in _templates() if re.fullmatch(row.pattern, name)), None)
    if tag is None:
        raise KeyError(f"{name} is not in the tag table")
    if tag.kind != kind:
        raise KeyError(f"{name} is a {tag.kind}, not a {kind}")
    return tag


def split_label(name: str, unseen: str) -> str:
    """'train' or 'val' -> the split in CSV and file names; 'val-encoded' where the encoder saw the unseen frames."""
    return "val-encoded" if name == "val" and unseen == "encode" else name


def split_name(name: str, unseen: str) -> str:
    """'train' or 'val' -> the split in tables, on the console and in pictures. `unseen` as in `split_label`."""
    return {"train": "training", "val": "unseen", "val-encoded": "unseen-encoded"}[split_label(name, unseen)]
