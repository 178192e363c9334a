"""The one table of TensorBoard tags, `tags.tsv` beside this file. A tag that is not in it cannot be written."""

from __future__ import annotations

import functools
import re
from importlib import resources
from typing import NamedTuple

from hnerv.errors import UserError

KINDS = ("scalar", "histogram", "image", "text")


class Tag(NamedTuple):
    """kind: one of KINDS. `when` is its cadence, `definition` its exact meaning.

    A name may hold one `{placeholder}`: {n} for a number, any other for the rest of the name.
    """

    name: str
    kind: str
    when: str
    definition: str

    @property
    def pattern(self) -> str:
        """A regular expression that matches the tags of this row and no others."""
        parts = re.split(r"(\{\w+\})", self.name)
        return (
            "^"
            + "".join(_PLACEHOLDERS.get(part, r".+") if part[:1] == "{" else re.escape(part) for part in parts)
            + "$"
        )


_PLACEHOLDERS = {"{n}": r"\d+"}


@functools.cache
def tags() -> dict[str, Tag]:
    """{name: row} of the table, in its order."""
    return read_table(resources.files("hnerv.tracking").joinpath("tags.tsv").read_text(encoding="utf-8"))


def read_table(text: str) -> dict[str, Tag]:
    """Lines of four columns under a heading -> {name: row}. Raises UserError naming the first line that is no row."""
    found: dict[str, Tag] = {}
    for number, line in enumerate(text.split("\n")[1:], start=2):
        cells = line.split("\t")
        if line and not (len(cells) == len(Tag._fields) and all(cells) and cells[1] in KINDS and cells[0] not in found):
            raise UserError(f"line {number} of the tag table is not a valid row: restore hnerv/tracking/tags.tsv")
        if line:
            found[cells[0]] = Tag(*cells)
    return found


@functools.cache
def _templates() -> list[Tag]:
    return [tag for tag in tags().values() if "{" in tag.name]


def tag_of(name: str, kind: str) -> Tag:
    """The row of a tag. Raises KeyError for a name that the table does not hold, or holds as another kind."""
    tag = tags().get(name) or next((t for t in _templates() if re.fullmatch(t.pattern, name)), None)
    if tag is None:
        raise KeyError(f"{name} is not in the tag table")
    if tag.kind != kind:
        raise KeyError(f"{name} is a {tag.kind}, not a {kind}")
    return tag


def split_label(name: str, unseen: str) -> str:
    """'train' or 'val' -> the split in CSV files and file names; 'val-encoded' where the encoder saw the frames."""
    return "val-encoded" if name == "val" and unseen == "encode" else name


def split_name(name: str, unseen: str) -> str:
    """'train' or 'val' -> the split in tables, on the console and in pictures. `unseen` as in `split_label`."""
    return {"train": "training", "val": "unseen", "val-encoded": "unseen-encoded"}[split_label(name, unseen)]
