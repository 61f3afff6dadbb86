"""torchmetrics for retrieval."""

from dml.metrics.clustering import ClusteringMetrics, clustering_metrics
from dml.metrics.evaluation import EvaluatedDataset, Evaluation, Images
from dml.metrics.hierarchical import HierarchicalMetrics
from dml.metrics.landmarks import GoogleLandmarkMetrics, LandmarkMetrics
from dml.metrics.reidentification import ReidentificationMetrics
from dml.metrics.retrieval import RetrievalMetrics
from dml.metrics.search import Search
from dml.metrics.uncertainty import Interval, PairedTest, bootstrap, bootstrap_all, paired_test
from dml.metrics.verification import TemplateDataset, TemplateMetrics

__all__ = [
    "ClusteringMetrics",
    "EvaluatedDataset",
    "Evaluation",
    "GoogleLandmarkMetrics",
    "HierarchicalMetrics",
    "Images",
    "Interval",
    "LandmarkMetrics",
    "PairedTest",
    "ReidentificationMetrics",
    "RetrievalMetrics",
    "Search",
    "TemplateDataset",
    "TemplateMetrics",
    "bootstrap",
    "bootstrap_all",
    "clustering_metrics",
    "paired_test",
]
