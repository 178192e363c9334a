"""A HeadComparison as text and as a dictionary."""

from __future__ import annotations

from collections.abc import Mapping

from hnerv.evaluation.head_comparison import RETRIEVAL, TEXTS, HeadComparison, HeadRow
from hnerv.tables import Column, format_table

_LABELS = {"train": "training frames", "val": "unseen frames"}
_NAMES = {
    "sim": "cosine",
    "centred": "centred",
    "found": "recall@1",
    "found5": "recall@5",
    "found10": "recall@10",
    "overlap": "overlap@10",
    "spearman": "Spearman",
}
"""Field of ClipMeasures -> name in tables and JSON."""


def head_table(comparison: HeadComparison) -> str:
    """One table per split, one of the text queries where there are any, then the notes and the label of the targets."""
    blocks = []
    for split, label in _LABELS.items():
        if split in comparison.rows[0].splits:
            values = {row.name: _measured(row, row.splits[split]) for row in comparison.rows if split in row.splits}
            blocks.append(_block(label, comparison, values))
    if comparison.queries:
        values = {row.name: row.texts for row in comparison.rows if row.texts}
        blocks.append(_block(f"{comparison.queries} {TEXTS}", comparison, values))
    return "\n\n".join((*blocks, "\n".join((*comparison.notes, f"targets: {comparison.targets}"))))


def _block(label: str, comparison: HeadComparison, values: Mapping[str, Mapping[str, float]]) -> str:
    """A line per row that has `values` {row's name: {field: value}}."""
    columns = [Column(label, "20"), Column("bytes", ">11"), Column("GMAC/patch", ">12", ".6f")]
    columns += [Column(name, ">11", ".4f") for name in _NAMES.values()]
    rows = []
    for row in comparison.rows:
        if row.name in values:
            estimated = row is comparison.rows[0] and not comparison.measured_bytes
            size = None if row.size is None else f"{'~' * estimated}{row.size:,}"
            rows.append((row.name, size, row.gmac, *map(values[row.name].get, _NAMES)))
    return format_table(columns, rows)


def _measured(row: HeadRow, values: Mapping[str, float]) -> dict[str, float]:
    return {field: value for field, value in values.items() if row.ranks or field not in RETRIEVAL}


def head_dict(comparison: HeadComparison) -> dict[str, object]:
    """{'targets', 'head_bytes_are', 'queries', 'notes', 'rows': [{'name', 'bytes', 'splits', ...}]} for JSON."""
    return {
        "targets": comparison.targets,
        "head_bytes_are": "measured" if comparison.measured_bytes else "estimated",
        "queries": comparison.queries,
        "notes": comparison.notes,
        "rows": [_row_dict(row) for row in comparison.rows],
    }


def _row_dict(row: HeadRow) -> dict[str, object]:
    splits = {split: _named(_measured(row, values)) for split, values in row.splits.items()}
    texts = {"texts": _named(row.texts)} if row.texts else {}
    return {"name": row.name, "bytes": row.size, "gmac_per_patch": row.gmac, "splits": splits, **texts}


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {_NAMES[field]: value for field, value in values.items()}
