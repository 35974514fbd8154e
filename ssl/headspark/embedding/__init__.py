"""Vectors of whole scans: what a frozen encoder says of the tiles that cover a head, pooled, in one table."""

from headspark.embedding.table import Embeddings, embed_corpus, read_embeddings
from headspark.embedding.vectors import Embedded, Pooling, embed_scans

__all__ = ["Embedded", "Embeddings", "Pooling", "embed_corpus", "embed_scans", "read_embeddings"]
