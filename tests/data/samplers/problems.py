"""Splits of any class sizes, for all samplers alike."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from dml.data import BalancedSampler, ClassBalancedSampler, HierarchicalSampler, SmoothAPSampler

SAMPLERS = [BalancedSampler, ClassBalancedSampler, HierarchicalSampler, SmoothAPSampler]


class Problem(NamedTuple):
    """A split with shuffled labels of two levels ``[n, 2]``, and batches that the sampler can draw from it."""

    labels: torch.Tensor
    classes_per_batch: int
    samples_per_class: int

    @property
    def sizes(self):
        return self.labels[:, 0].bincount()

    @property
    def super_classes(self):
        """Super-class of each class."""
        pairs = self.labels.unique(dim=0)
        return pairs[:, 1]

    def sampler(self, kind, epoch=0, **options):
        sampler = kind(*self, **options)
        sampler.set_epoch(epoch)
        return sampler


def labels_of(sizes, super_classes=None):
    """Shuffled labels ``[n, 2]`` of classes with the given sizes, by default in super-classes 0, 1, 2, 0, 1, ..."""
    super_classes = torch.arange(len(sizes)) % 3 if super_classes is None else torch.tensor(super_classes)
    labels = torch.stack([torch.arange(len(sizes)), super_classes], dim=1)
    labels = labels.repeat_interleave(torch.tensor(sizes), dim=0)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def like_sop():
    """The shape of Stanford Online Products, 11,318 classes in 12 categories, with batches of 4096."""
    sizes = np.random.default_rng(0).integers(2, 13, 11_318)
    return Problem(labels_of(sizes.tolist(), (np.arange(11_318) % 12).tolist()), 1024, 4)


def batches(sampler):
    """All batches of one process, ``[T, local_batch_size]``."""
    return torch.tensor(list(sampler)).reshape(-1, sampler.local_batch_size)


def repeated(batch):
    """Images that a batch shows more than once."""
    images, counts = batch.unique(return_counts=True)
    return images[counts > 1]


@st.composite
def problems(draw, kind):
    sizes = draw(st.lists(st.integers(1, 12), min_size=4, max_size=14))
    super_classes = [*range(2), *draw(st.lists(st.integers(0, 2), min_size=len(sizes) - 2, max_size=len(sizes) - 2))]
    # Names without gaps, whichever of the three are there.
    super_classes = np.unique(super_classes, return_inverse=True)[1]
    samples = draw(st.integers(1, 5))
    fewest, most = 1, len(sizes)
    if kind is HierarchicalSampler:
        fewest, most = 2, int(np.sort(np.bincount(super_classes))[:2].sum())
    if kind is SmoothAPSampler:
        samples = min(samples, max(sizes))
        most = sum(size >= samples for size in sizes)
    if kind is BalancedSampler:
        samples = min(samples, sum(sizes))
        most = min(most, sum(sizes) // samples)
    return Problem(labels_of(sizes, super_classes.tolist()), draw(st.integers(fewest, most)), samples)
