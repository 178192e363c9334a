"""A HeadComparison as text."""

from __future__ import annotations

from collections.abc import Mapping

from hnerv.evaluation.head_comparison import NAMES, TEXTS, HeadComparison
from hnerv.tables import Column, format_table


def head_table(comparison: HeadComparison) -> str:
    """One table per split, one of the text queries where there are any, then the notes and the label of the targets."""
    rows, blocks = comparison.rows, []
    for split, label in (("train", "training frames"), ("val", "unseen frames")):
        if split in rows[0].splits:
            blocks.append(_block(label, comparison, {row.name: row.splits.get(split) for row in rows}))
    if comparison.queries:
        blocks.append(_block(f"{comparison.queries} {TEXTS}", comparison, {row.name: row.texts for row in rows}))
    return "\n\n".join((*blocks, "\n".join((*comparison.notes, f"targets: {comparison.targets}"))))


def _block(label: str, comparison: HeadComparison, values: Mapping[str, Mapping[str, float] | None]) -> str:
    """A line per row that has `values` {row's name: {name of the measure: mean}}."""
    columns = [Column(label, "20"), Column("bytes", ">11"), Column("GMAC/patch", ">12", ".6f")]
    columns += [Column(name, ">11", ".4f") for name in NAMES.values()]
    lines = []
    for number, row in enumerate(comparison.rows):
        if measured := values[row.name]:
            about = "~" * (number == 0 and comparison.head_bytes_are == "estimated")
            size = None if row.bytes is None else f"{about}{row.bytes:,}"
            lines.append((row.name, size, row.gmac_per_patch, *map(measured.get, NAMES.values())))
    return format_table(columns, lines)
