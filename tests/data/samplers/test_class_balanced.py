"""ClassBalancedSampler: an epoch shows all it can."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings

from dml.data import ClassBalancedSampler
from tests.data.samplers.problems import Problem, batches, labels_of, problems


def test_every_image_is_seen_when_the_groups_fill_the_batches():
    labels = labels_of([5, 8, 6, 7] * 4)  # 2 groups of 4 in each of 16 classes: 8 batches of 4 classes
    drawn = batches(ClassBalancedSampler(labels, 4, 4))
    assert len(drawn) == 8
    assert set(drawn.flatten().tolist()) == set(range(len(labels)))


@given(problems(ClassBalancedSampler))
@settings(deadline=None)
def test_images_of_a_small_class_are_repeated_evenly(problem):
    for batch in batches(problem.sampler(ClassBalancedSampler)):
        for label in problem.labels[batch, 0].unique():
            images, repeats = batch[problem.labels[batch, 0] == label].unique(return_counts=True)
            assert len(images) == min(problem.samples_per_class, problem.sizes[label])
            assert repeats.max() - repeats.min() <= 1


def test_one_large_class_does_not_hide_the_small_ones():
    labels = labels_of([500, 3, 1, 4, 2])
    drawn = batches(ClassBalancedSampler(labels, 2, 4))
    assert set(labels[drawn.flatten(), 0].tolist()) == set(range(5))


def test_more_classes_than_the_groups_fill_appear_all():
    labels = labels_of([4] * 10)  # 10 groups, batches of 4 classes: 2 full ones would leave 2 classes out
    drawn = batches(ClassBalancedSampler(labels, 4, 4))
    assert len(drawn) == 3
    assert set(labels[drawn.flatten(), 0].tolist()) == set(range(10))


def test_classes_of_a_batch_are_not_those_of_the_next():
    """Groups of one class must not travel together: that would shrink the negatives an epoch shows."""
    labels = labels_of([16] * 100)
    drawn = labels[batches(ClassBalancedSampler(labels, 10, 4)), 0]
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in pairwise(drawn)]
    assert np.mean(shared) < 2.5  # 1 by chance; 10 if groups travelled together


def test_a_seed_goes_on_meaning_the_same_batches():
    """What a run drew is what its resume and its repetition draw, in later versions too."""
    sampler = Problem(labels_of([3, 9, 4, 7, 5, 8]), 4, 4).sampler(ClassBalancedSampler, seed=3)
    assert batches(sampler)[0].tolist() == [18, 7, 33, 25, 22, 27, 30, 22, 12, 15, 1, 11, 31, 35, 10, 19]
