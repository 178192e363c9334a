"""What the CLIP head is worth: its embeddings beside what the same bytes, or other means, would give."""

from hnerv.semantics.baselines import interpolated, mean_embedding, pca_table
from hnerv.semantics.comparing import Comparison, compare
from hnerv.semantics.measuring import measure
from hnerv.semantics.queries import default_queries, read_queries
from hnerv.semantics.table import as_dict, text_of

__all__ = [
    "Comparison",
    "as_dict",
    "compare",
    "default_queries",
    "interpolated",
    "mean_embedding",
    "measure",
    "pca_table",
    "read_queries",
    "text_of",
]
