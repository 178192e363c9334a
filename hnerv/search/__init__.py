"""Search by text, image or embedding for frames and patches; needs the model alone, not the video."""

from hnerv.search.collection import Collection, CollectionHit, find_across, members_of, open_collection
from hnerv.search.export import write_embeddings
from hnerv.search.hit_table import collection_hit_dict, collection_hits_table, hit_dict, hits_table
from hnerv.search.index import Index, open_index
from hnerv.search.pictures import contact_sheet, contact_sheet_across, heat_map
from hnerv.search.queries import Encoder, Query, embedding_query, read_image
from hnerv.search.ranking import Hit, find_hits, score_patches, z_scores

__all__ = [
    "Collection",
    "CollectionHit",
    "Encoder",
    "Hit",
    "Index",
    "Query",
    "collection_hit_dict",
    "collection_hits_table",
    "contact_sheet",
    "contact_sheet_across",
    "embedding_query",
    "find_across",
    "find_hits",
    "heat_map",
    "hit_dict",
    "hits_table",
    "members_of",
    "open_collection",
    "open_index",
    "read_image",
    "score_patches",
    "write_embeddings",
    "z_scores",
]
