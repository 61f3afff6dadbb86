"""ClassBalancedSampler: what a batch holds, what an epoch shows, and that every process agrees."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data import ClassBalancedSampler


def labels_of(sizes):
    """Shuffled labels of classes with the given sizes."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def batches(sampler):
    return torch.tensor(list(sampler)).reshape(-1, sampler.local_batch_size)


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=14))
    return sizes, draw(st.integers(1, len(sizes))), draw(st.integers(1, 5)), draw(st.integers(0, 3))


@given(problems())
@settings(deadline=None, max_examples=200)
def test_batches_are_balanced_and_epochs_complete(problem):
    sizes, num_classes, num_samples, epoch = problem
    labels = labels_of(sizes)
    sampler = ClassBalancedSampler(labels, num_classes, num_samples)
    sampler.set_epoch(epoch)
    drawn = batches(sampler)
    assert drawn.numel() == len(sampler)
    for batch in drawn:
        classes, counts = labels[batch].unique(return_counts=True)
        assert len(classes) == num_classes
        assert (counts == num_samples).all()
        for label in classes:
            images, repeats = batch[labels[batch] == label].unique(return_counts=True)
            # No image twice, unless the class is smaller than the group; then as evenly as it goes.
            assert len(images) == min(num_samples, sizes[label])
            assert repeats.max() - repeats.min() <= 1
    assert set(labels[drawn.flatten()].tolist()) == set(range(len(sizes)))


def test_every_image_is_seen_when_the_groups_fill_the_batches():
    labels = labels_of([5, 8, 6, 7] * 4)  # 2 groups of 4 in each of 16 classes: 8 batches of 4 classes
    drawn = batches(ClassBalancedSampler(labels, 4, 4))
    assert len(drawn) == 8
    assert set(drawn.flatten().tolist()) == set(range(len(labels)))


def test_one_large_class_does_not_hide_the_small_ones():
    labels = labels_of([500, 3, 1, 4, 2])
    drawn = batches(ClassBalancedSampler(labels, 2, 4))
    assert set(labels[drawn.flatten()].tolist()) == set(range(5))


def test_more_classes_than_the_groups_fill_appear_all():
    labels = labels_of([4] * 10)  # 10 groups, batches of 4 classes: 2 full ones would leave 2 classes out
    drawn = batches(ClassBalancedSampler(labels, 4, 4))
    assert len(drawn) == 3
    assert set(labels[drawn.flatten()].tolist()) == set(range(10))


def test_epochs_and_seeds_differ_and_repeat():
    labels = labels_of([8] * 20)

    def draw(seed, epoch):
        sampler = ClassBalancedSampler(labels, 5, 4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(0, 0) == draw(0, 0)
    assert len({tuple(draw(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_classes_of_a_batch_are_not_those_of_the_next():
    """Groups of one class must not travel together: that would shrink the negatives an epoch shows."""
    labels = labels_of([16] * 100)
    drawn = labels[batches(ClassBalancedSampler(labels, 10, 4))]
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in pairwise(drawn)]
    assert np.mean(shared) < 2.5  # 1 by chance; 10 if groups travelled together


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_processes_share_the_global_batches(num_replicas):
    labels = labels_of([3, 9, 4, 7, 5, 8])
    whole = batches(ClassBalancedSampler(labels, 4, 4, seed=3))
    parts = [
        batches(ClassBalancedSampler(labels, 4, 4, seed=3, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    assert torch.equal(torch.stack(parts, dim=2).flatten(1), whole)


def test_an_epoch_goes_on_at_any_batch():
    sampler = ClassBalancedSampler(labels_of([8] * 20), 5, 4)
    whole = batches(sampler)
    sampler.first_batch = 3
    assert torch.equal(batches(sampler), whole[3:])


def test_a_large_dataset_is_drawn_quickly_enough_to_matter():
    """The shape of Stanford Online Products: 59,551 images of 11,318 classes, B = 4096."""
    sizes = np.random.default_rng(0).integers(2, 13, 11318)
    sampler = ClassBalancedSampler(labels_of(sizes.tolist()), 1024, 4)
    start = time.perf_counter()
    count = len(list(sampler))
    assert count > 59_551 * 0.9
    assert time.perf_counter() - start < 5  # two orders of magnitude of slack: a quadratic loop would not pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes_per_batch": 7, "samples_per_class": 4}, "classes_per_batch is 7; the split has 6 classes"),
        ({"classes_per_batch": 0, "samples_per_class": 4}, "classes_per_batch is 0"),
        ({"classes_per_batch": 2, "samples_per_class": 0}, "samples_per_class is 0"),
        ({"classes_per_batch": 3, "samples_per_class": 3, "num_replicas": 2}, "9, which 2 processes cannot share"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassBalancedSampler(labels_of([4] * 6), **arguments)
