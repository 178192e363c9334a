"""A text, an image or an embedding -> the frames and patches that it describes, from a model alone."""

from hnerv.search.exporting import write_embeddings
from hnerv.search.index import Index, open_index
from hnerv.search.pictures import contact_sheet, heat_map
from hnerv.search.queries import Encoder, Query, embedding_query, read_image
from hnerv.search.ranking import Hit, find_hits, score_patches, z_scores
from hnerv.search.report import as_dict, hits_table, time_code

__all__ = [
    "Encoder",
    "Hit",
    "Index",
    "Query",
    "as_dict",
    "contact_sheet",
    "embedding_query",
    "find_hits",
    "heat_map",
    "hits_table",
    "open_index",
    "read_image",
    "score_patches",
    "time_code",
    "write_embeddings",
    "z_scores",
]
