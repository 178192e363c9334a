"""A Comparison as text and as a dictionary."""

from __future__ import annotations

from hnerv.semantics.comparing import Comparison, Row

LABELS = {"train": "training frames", "val": "unseen frames"}

COLUMNS = {
    "sim": "cosine", "centred": "centred", "found": "recall@1", "found5": "recall@5", "found10": "recall@10",
    "overlap": "overlap@10", "spearman": "Spearman",
}  # fmt: skip
"""Field of ClipMeasures -> head of its column."""

RETRIEVAL = ("found", "found5", "found10", "overlap", "spearman")


def text_of(comparison: Comparison) -> str:
    """A table per split, then the notes and what the targets are."""
    blocks = [_block(split, comparison) for split in LABELS if split in comparison.rows[0].splits]
    notes = "\n".join((*comparison.notes, f"the targets: {comparison.targets}"))
    return "\n\n".join((*blocks, notes))


def _block(split: str, comparison: Comparison) -> str:
    heads = "".join(f"{head:>11}" for head in COLUMNS.values())
    lines = [f"{LABELS[split]:20}{'bytes':>11}{'GMAC/patch':>12}{heads}"]
    return "\n".join(lines + [_line(row, split, comparison) for row in comparison.rows if split in row.splits])


def _line(row: Row, split: str, comparison: Comparison) -> str:
    guessed = row is comparison.rows[0] and not comparison.measured_bytes
    size = "-" if row.size is None else f"{'~' if guessed else ''}{row.size:,}"
    cells = "".join(f"{value:>11}" for value in _cells(row, split))
    return f"{row.name:20}{size:>11}{row.gmac:>12.6f}{cells}"


def _cells(row: Row, split: str) -> list[str]:
    values = row.splits[split]
    return ["-" if key in RETRIEVAL and not row.ranks else f"{values[key]:.4f}" for key in COLUMNS]


def as_dict(comparison: Comparison) -> dict[str, object]:
    """{'targets', 'bytes_are', 'notes', 'rows': [{'name', 'bytes', 'gmac_per_patch', 'splits'}]} for programs."""
    return {
        "targets": comparison.targets,
        "head_bytes_are": "measured" if comparison.measured_bytes else "estimated",
        "notes": comparison.notes,
        "rows": [_row_dict(row) for row in comparison.rows],
    }


def _row_dict(row: Row) -> dict[str, object]:
    splits = {
        split: {name: values[key] for key, name in COLUMNS.items() if row.ranks or key not in RETRIEVAL}
        for split, values in row.splits.items()
    }
    return {"name": row.name, "bytes": row.size, "gmac_per_patch": row.gmac, "splits": splits}
