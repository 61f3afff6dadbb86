"""Search: an index of images by their embeddings, and a page to look around in it. Needs the extra ``search``."""

from dml.search.build import build_index
from dml.search.embedded import Embedded, read_embeddings
from dml.search.index import SearchIndex
from dml.search.kinds import HNSW, IVFPQ, Flat

__all__ = ["HNSW", "IVFPQ", "Embedded", "Flat", "SearchIndex", "build_index", "read_embeddings"]
