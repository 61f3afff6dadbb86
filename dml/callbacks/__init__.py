"""What is logged or saved each epoch."""

from dml.callbacks.embeddings import WriteEmbeddings
from dml.callbacks.last import SaveLast
from dml.callbacks.metrics import LogRetrievalMetrics
from dml.callbacks.picture import RetrievalPicture
from dml.callbacks.run import DescribeRun, LogConfig
from dml.callbacks.table import MetricsTable

__all__ = [
    "DescribeRun",
    "LogConfig",
    "LogRetrievalMetrics",
    "MetricsTable",
    "RetrievalPicture",
    "SaveLast",
    "WriteEmbeddings",
]
