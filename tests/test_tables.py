"""The text-table printer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hnerv.tables import Column, format_row, format_table

COLUMNS = [
    Column("part", "6"),
    Column("bytes", ">8", ","),
    Column("bpp", ">7", ".3f", gap=1),
    Column("note", "", gap=2),
]


def test_a_table_by_hand():
    rows = [("a", 12345, 0.25, ""), ("long name", None, None, "x")]
    assert format_table(COLUMNS, rows).splitlines() == [
        "part     bytes     bpp  note",
        "a       12,345   0.250",
        "long name       -       -  x",
    ]
    assert format_row(COLUMNS[:2], ["a", None], missing="–") == "a            –"


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 99)), max_size=5))
def test_columns_are_aligned_and_numbers_can_be_read_back(rows):
    head, *lines = format_table(COLUMNS[:3], [("", *row) for row in rows]).splitlines()
    for line, (size, rate) in zip(lines, rows, strict=True):
        assert head.endswith(" bpp") and len(line) == len(head) or size >= 10**6
        cells = line.split()
        assert int(cells[0].replace(",", "")) == size and abs(float(cells[1]) - rate) <= 5e-4
