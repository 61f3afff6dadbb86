"""torchmetrics for retrieval."""

from dml.metrics.landmarks import GoogleLandmarkMetrics, LandmarkMetrics
from dml.metrics.reidentification import ReidentificationMetrics
from dml.metrics.retrieval import EvaluatedDataset, RetrievalMetrics
from dml.metrics.verification import TemplateDataset, TemplateMetrics

__all__ = [
    "EvaluatedDataset",
    "GoogleLandmarkMetrics",
    "LandmarkMetrics",
    "ReidentificationMetrics",
    "RetrievalMetrics",
    "TemplateDataset",
    "TemplateMetrics",
]
