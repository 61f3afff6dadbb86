"""Samplers of large training batches."""

from dml.data.samplers.balanced import BalancedSampler
from dml.data.samplers.base import GlobalBatchSampler
from dml.data.samplers.class_balanced import ClassBalancedSampler
from dml.data.samplers.hierarchical import HierarchicalSampler
from dml.data.samplers.smooth_ap import SmoothAPSampler
from dml.data.samplers.streaming import StreamingSampler

__all__ = [
    "BalancedSampler",
    "ClassBalancedSampler",
    "GlobalBatchSampler",
    "HierarchicalSampler",
    "SmoothAPSampler",
    "StreamingSampler",
]
