"""Text tables with columns of fixed width: the one printer of the package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """Format of one column of a text table.

    `align` is the format of a cell's text, such as '<24' or '>12'; `form` that of its numbers, such as ',' or '.3f'.
    `gap` spaces separate the column from the one before it, even where a cell is wider than its column.
    """

    head: str
    align: str
    form: str = ""
    gap: int = 0


def format_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> str:
    """The heads of the columns, then one line per row, see `format_row`."""
    return "\n".join(
        [format_row(columns, [column.head for column in columns]), *(format_row(columns, r) for r in rows)]
    )


def format_row(columns: Sequence[Column], cells: Sequence[object], missing: str = "-") -> str:
    """Strings as they are, numbers in the format of their column, `missing` for None; no spaces at the end."""
    line = ""
    for column, cell in zip(columns, cells, strict=True):
        text = missing if cell is None else cell if isinstance(cell, str) else format(cell, column.form)
        line += " " * column.gap + format(text, column.align)
    return line.rstrip()
