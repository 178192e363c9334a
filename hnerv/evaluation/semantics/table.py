"""A Comparison as text and as a dictionary."""

from __future__ import annotations

from hnerv.evaluation.semantics.comparing import RETRIEVAL, Comparison, Row

LABELS = {"train": "training frames", "val": "unseen frames"}

COLUMNS = {
    "sim": "cosine", "centred": "centred", "found": "recall@1", "found5": "recall@5", "found10": "recall@10",
    "overlap": "overlap@10", "spearman": "Spearman",
}  # fmt: skip
"""Field of ClipMeasures -> head of its column."""


def text_of(comparison: Comparison) -> str:
    """A table per split, one of the text queries where there are any, then the notes and what the targets are."""
    blocks = [
        _block(label, comparison, {row.name: row.splits[split] for row in comparison.rows if split in row.splits})
        for split, label in LABELS.items()
        if split in comparison.rows[0].splits
    ]
    if comparison.queries:
        cells = {row.name: row.texts for row in comparison.rows if row.texts}
        blocks.append(_block(f"{comparison.queries} text queries", comparison, cells))
    notes = "\n".join((*comparison.notes, f"targets: {comparison.targets}"))
    return "\n\n".join((*blocks, notes))


def _block(label: str, comparison: Comparison, values: dict[str, dict[str, float]]) -> str:
    """A line per row that has `values` {row's name: {measure: value}}."""
    heads = "".join(f"{head:>11}" for head in COLUMNS.values())
    lines = [f"{label:20}{'bytes':>11}{'GMAC/patch':>12}{heads}"]
    for row in comparison.rows:
        if row.name in values:
            lines.append(_line(row, values[row.name], comparison))
    return "\n".join(lines)


def _line(row: Row, values: dict[str, float], comparison: Comparison) -> str:
    guessed = row is comparison.rows[0] and not comparison.measured_bytes
    size = "-" if row.size is None else f"{'~' if guessed else ''}{row.size:,}"
    cells = "".join(f"{value:>11}" for value in _cells(row, values))
    return f"{row.name:20}{size:>11}{row.gmac:>12.6f}{cells}"


def _cells(row: Row, values: dict[str, float]) -> list[str]:
    measured = {key: value for key, value in values.items() if row.ranks or key not in RETRIEVAL}
    return [f"{measured[key]:.4f}" if key in measured else "-" for key in COLUMNS]


def as_dict(comparison: Comparison) -> dict[str, object]:
    """{'targets', 'head_bytes_are', 'queries', 'notes', 'rows': [{'name', 'bytes', 'splits', ...}]} for programs."""
    return {
        "targets": comparison.targets,
        "head_bytes_are": "measured" if comparison.measured_bytes else "estimated",
        "queries": comparison.queries,
        "notes": comparison.notes,
        "rows": [_row_dict(row) for row in comparison.rows],
    }


def _row_dict(row: Row) -> dict[str, object]:
    splits = {
        split: {name: values[key] for key, name in COLUMNS.items() if row.ranks or key not in RETRIEVAL}
        for split, values in row.splits.items()
    }
    texts = {"texts": {COLUMNS[key]: value for key, value in row.texts.items()}} if row.texts else {}
    return {"name": row.name, "bytes": row.size, "gmac_per_patch": row.gmac, "splits": splits, **texts}
