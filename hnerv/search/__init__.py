"""Search by text, image or embedding for frames and patches; needs the model alone, not the video."""

from hnerv.search.collection import Collection, find_across, members_of, open_collection
from hnerv.search.export import Embeddings
from hnerv.search.hits import SearchHit, collection_hits_table, hits_table
from hnerv.search.index import Index, open_index
from hnerv.search.pictures import contact_sheet, heat_map
from hnerv.search.queries import Encoder, Query, QueryLike, embedding_query, query_vectors, read_image
from hnerv.search.ranking import Hit, find_hits, score_patches, z_scores

__all__ = [
    "Collection",
    "Embeddings",
    "Encoder",
    "Hit",
    "Index",
    "Query",
    "QueryLike",
    "SearchHit",
    "collection_hits_table",
    "contact_sheet",
    "embedding_query",
    "find_across",
    "find_hits",
    "heat_map",
    "hits_table",
    "members_of",
    "open_collection",
    "open_index",
    "query_vectors",
    "read_image",
    "score_patches",
    "z_scores",
]
