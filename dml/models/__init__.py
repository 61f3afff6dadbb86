"""Embedders."""

from dml.models.embedder import TimmEmbedder

__all__ = ["TimmEmbedder"]
