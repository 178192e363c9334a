"""What the CLIP head is worth: its embeddings beside what the same bytes, or other means, would give."""

from hnerv.evaluation.semantics.baselines import interpolated, mean_embedding, pca_table
from hnerv.evaluation.semantics.comparing import Comparison, compare
from hnerv.evaluation.semantics.measuring import measure
from hnerv.evaluation.semantics.queries import default_queries, read_queries
from hnerv.evaluation.semantics.table import as_dict, text_of

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
