"""Datasets, samplers and the data module."""

from dml.data.datamodule import RetrievalDataModule
from dml.data.dataset import Batch, Item, RetrievalDataset, UnreadableImageError
from dml.data.sampler import ClassBalancedSampler

__all__ = ["Batch", "ClassBalancedSampler", "Item", "RetrievalDataModule", "RetrievalDataset", "UnreadableImageError"]
