"""What is logged or saved each epoch."""

from dml.callbacks.artifacts import LogArtifacts
from dml.callbacks.diagnostics import LogDiagnostics
from dml.callbacks.embeddings import WriteEmbeddings
from dml.callbacks.last import SaveLast
from dml.callbacks.metrics import LogRetrievalMetrics
from dml.callbacks.per_query import LogIntervals, WritePerQuery
from dml.callbacks.picture import RetrievalPicture
from dml.callbacks.run import DescribeRun, LogConfig
from dml.callbacks.similarities import LogSimilarities
from dml.callbacks.table import MetricsTable
from dml.callbacks.whitening import LearnWhitening

__all__ = [
    "DescribeRun",
    "LearnWhitening",
    "LogArtifacts",
    "LogConfig",
    "LogDiagnostics",
    "LogIntervals",
    "LogRetrievalMetrics",
    "LogSimilarities",
    "MetricsTable",
    "RetrievalPicture",
    "SaveLast",
    "WriteEmbeddings",
    "WritePerQuery",
]
