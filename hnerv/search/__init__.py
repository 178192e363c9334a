"""A text, an image or an embedding -> the frames and patches that it describes, from a model alone."""

from hnerv.search.across import Found, find_across, found_dict, found_table
from hnerv.search.collection import Collection, open_collection
from hnerv.search.exporting import write_embeddings
from hnerv.search.index import Index, open_index
from hnerv.search.members import is_collection, members_of
from hnerv.search.pictures import contact_sheet, contact_sheet_across, heat_map
from hnerv.search.queries import Encoder, Query, embedding_query, read_image
from hnerv.search.ranking import Hit, find_hits, score_patches, z_scores
from hnerv.search.report import as_dict, hits_table

__all__ = [
    "Collection",
    "Encoder",
    "Found",
    "Hit",
    "Index",
    "Query",
    "as_dict",
    "contact_sheet",
    "contact_sheet_across",
    "embedding_query",
    "find_across",
    "find_hits",
    "found_dict",
    "found_table",
    "heat_map",
    "hits_table",
    "is_collection",
    "members_of",
    "open_collection",
    "open_index",
    "read_image",
    "score_patches",
    "write_embeddings",
    "z_scores",
]
