"""Datasets, samplers and the data module."""

from dml.data.buckets import AspectBuckets
from dml.data.datamodule import RetrievalDataModule
from dml.data.dataset import Batch, Item, RetrievalDataset
from dml.data.images import UnreadableImageError
from dml.data.samplers import (
    BalancedSampler,
    ClassBalancedSampler,
    GlobalBatchSampler,
    HierarchicalSampler,
    SmoothAPSampler,
    StreamingSampler,
)

__all__ = [
    "AspectBuckets",
    "BalancedSampler",
    "Batch",
    "ClassBalancedSampler",
    "GlobalBatchSampler",
    "HierarchicalSampler",
    "Item",
    "RetrievalDataModule",
    "RetrievalDataset",
    "SmoothAPSampler",
    "StreamingSampler",
    "UnreadableImageError",
]
