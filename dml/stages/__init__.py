"""What may be done to embeddings and scores between the model and the metric, at test time."""

from dml.stages.base import Stage
from dml.stages.expansion import DatabaseAugmentation, QueryExpansion
from dml.stages.rerank import KReciprocal, Reranker
from dml.stages.whitening import PCAWhitening

__all__ = ["DatabaseAugmentation", "KReciprocal", "PCAWhitening", "QueryExpansion", "Reranker", "Stage"]
