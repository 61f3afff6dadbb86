"""torchmetrics for retrieval."""

from dml.metrics.retrieval import RetrievalMetrics

__all__ = ["RetrievalMetrics"]
