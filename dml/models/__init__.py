"""Embedders."""

from dml.models.embedder import TimmEmbedder
from dml.models.pooling import GeM
from dml.models.whitening import Whitening

__all__ = ["GeM", "TimmEmbedder", "Whitening"]
