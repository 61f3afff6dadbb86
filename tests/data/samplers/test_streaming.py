"""StreamingSampler: class-balanced batches of neighbours in storage."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data import ClassBalancedSampler, StreamingSampler
from tests.data.samplers.problems import Problem, batches, labels_of, like_sop, problems, repeated


def stored(sizes):
    """Labels ``[n]`` of classes that are stored one after the other."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@given(problem=problems(StreamingSampler), epoch=st.integers(0, 3), window=st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_every_batch_is_balanced_and_every_class_is_seen(problem, epoch, window):
    sampler = problem.sampler(StreamingSampler, epoch, images_per_window=window)
    drawn = batches(sampler)
    assert drawn.numel() == len(sampler) == len(problem.sampler(StreamingSampler, images_per_window=window))
    for batch in drawn:
        classes, counts = problem.labels[batch, 0].unique(return_counts=True)
        assert len(classes) == problem.classes_per_batch
        assert (counts == problem.samples_per_class).all()
        assert (problem.sizes[problem.labels[repeated(batch), 0]] < problem.samples_per_class).all()
    assert len(problem.labels[drawn.flatten(), 0].unique()) == len(problem.sizes)


def test_a_batch_has_neighbours_only():
    labels = stored([5, 3, 4, 4] * 50)  # 800 images of 200 classes
    sampler = StreamingSampler(labels, 10, 4, images_per_window=160)  # 5 windows of 40 classes
    met = torch.zeros(200, 200, dtype=torch.bool)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for batch in batches(sampler):
            classes = labels[batch].unique()
            # On a ring, a window of 40 classes leaves a gap of 160 out of 200.
            gaps = classes.roll(-1).sub(classes).remainder(200)
            assert gaps.max() > 200 - 40
            met[classes[:, None], classes] = True
    distance = (torch.arange(200)[:, None] - torch.arange(200)).remainder(200)
    near = distance.minimum(200 - distance) < 15
    assert met[near].float().mean() > 0.95  # the cuts change, so no neighbours are kept apart
    assert not met[distance.minimum(200 - distance) >= 40].any()


def test_classes_are_neighbours_by_where_they_appear_and_not_by_name():
    labels = stored([4] * 40)
    renamed = torch.randperm(40, generator=torch.Generator().manual_seed(0))[labels]
    spread = [
        labels[batch].unique().roll(-1).sub(labels[batch].unique()).remainder(40).max()
        for batch in batches(StreamingSampler(renamed, 4, 4, images_per_window=32))
    ]
    assert min(spread) > 40 - 8


def test_batches_of_a_window_follow_one_another():
    labels = stored([8] * 40)
    drawn = batches(StreamingSampler(labels, 4, 4, images_per_window=64, seed=1))
    windows = [frozenset(labels[some.flatten()].unique().tolist()) for some in drawn.split(4)]
    assert {len(window) for window in windows} == {8}  # 8 classes in 2 groups are 4 batches of 4
    assert len(frozenset.union(*windows)) == 40


def test_a_batch_needs_the_chunks_of_its_window():
    sizes = np.random.default_rng(0).integers(2, 13, 20_000).tolist()
    labels = stored(sizes)
    chunk = torch.arange(len(labels)) // 50  # 2,800 of them
    ours, theirs = (
        max(len(chunk[batch].unique()) for batch in batches(sampler))
        for sampler in (StreamingSampler(labels, 64, 4, images_per_window=2000), ClassBalancedSampler(labels, 64, 4))
    )
    assert ours < 1.2 * 2000 / 50
    assert theirs > 60  # nearly each class in another


def test_a_window_shows_as_much_as_a_class_balanced_epoch_of_it():
    sizes = np.random.default_rng(0).integers(1, 30, 4000).tolist()
    labels = stored(sizes)
    ours, theirs = StreamingSampler(labels, 64, 4, images_per_window=5_000), ClassBalancedSampler(labels, 64, 4)
    assert len(theirs) * 0.99 < len(ours) <= len(theirs)
    seen = batches(ours).unique()
    assert len(seen) > 0.97 * len(labels)


def test_one_window_if_all_fits_it():
    problem = Problem(labels_of([4, 9, 4, 7, 5, 8, 6, 5, 12, 4]), 4, 4)
    assert len(problem.sampler(StreamingSampler)) == len(problem.sampler(ClassBalancedSampler))


@pytest.mark.parametrize("num_replicas", [2, 4])
def test_processes_share_the_global_batches(num_replicas):
    labels = stored([4, 9, 4, 7, 5, 8, 6, 5, 12, 4])
    options = {"images_per_window": 20, "seed": 3}
    whole = batches(StreamingSampler(labels, 2, 4, **options))
    parts = [
        batches(StreamingSampler(labels, 2, 4, **options, num_replicas=num_replicas, rank=rank))
        for rank in range(num_replicas)
    ]
    assert torch.equal(torch.stack(parts, dim=2).flatten(1), whole)


def test_epochs_and_seeds_differ_and_repeat():
    labels = stored([4, 9, 4, 7, 5, 8, 6, 5, 12, 4])

    def draw(seed, epoch):
        sampler = StreamingSampler(labels, 2, 4, images_per_window=20, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert draw(0, 0) == draw(0, 0)
    assert len({draw(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_a_large_dataset_is_drawn_quickly_enough_to_matter():
    problem = like_sop()
    start = time.perf_counter()
    count = len(list(problem.sampler(StreamingSampler)))
    assert count > len(problem.labels) * 0.6
    assert time.perf_counter() - start < 5


def test_window_below_one():
    with pytest.raises(ValueError, match="images_per_window is 0; it must be at least 1"):
        StreamingSampler(stored([4] * 4), 2, 2, images_per_window=0)
