"""BalancedSampler: how often it shows a class, and what it leaves out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data import BalancedSampler
from tests.data.samplers.problems import Problem, batches, labels_of, problems


def targets(sizes, balance, images_per_class):
    return np.array([int(0.5 + images_per_class**balance * size ** (1 - balance)) for size in sizes])


@given(problems(BalancedSampler), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([None, 1, 3.3, 20]))
@settings(deadline=None, max_examples=200)
def test_classes_are_shown_as_often_as_stated(problem, balance, images_per_class):
    sizes = problem.sizes.numpy()
    sampler = problem.sampler(BalancedSampler, balance=balance, images_per_class=images_per_class)
    drawn = batches(sampler)
    target = targets(sizes, balance, np.median(sizes) if images_per_class is None else images_per_class)
    shown = problem.labels[drawn.flatten(), 0].bincount().numpy()
    wanted = np.minimum(target, sizes * len(drawn))
    if drawn.numel() <= wanted.sum():
        assert (shown <= wanted).all()
        assert wanted.sum() - shown.sum() < sampler.batch_size
        assert len(drawn.unique()) > np.minimum(target, sizes).sum() - sampler.batch_size
    else:  # as many batches as it takes to show every class
        assert (shown >= wanted).all()
        assert len(drawn) == -(-len(sizes) // sampler.batch_size)
    for label, size in enumerate(sizes):
        counts = drawn[problem.labels[drawn, 0] == label].bincount(minlength=len(problem.labels))
        counts = counts[problem.labels[:, 0] == label]
        assert len(counts) == size
        assert counts.max() - counts.min() <= 1
    for batch in drawn:
        assert len(batch.unique()) == len(batch)


def test_a_half_is_rounded_up():
    problem = Problem(labels_of([4, 5]), 2, 1)  # the median is 4.5
    assert problem.labels[batches(problem.sampler(BalancedSampler)).flatten(), 0].bincount().tolist() == [5, 5]


def test_without_balance_every_image_is_seen_once():
    problem = Problem(labels_of([10, 20, 2, 5, 3]), 5, 2)
    drawn = batches(problem.sampler(BalancedSampler, balance=0.0))
    assert sorted(drawn.flatten().tolist()) == list(range(40))


def test_with_full_balance_every_class_is_seen_equally_often():
    problem = Problem(labels_of([10, 20, 2, 5, 3]), 5, 1)
    drawn = batches(problem.sampler(BalancedSampler))
    assert problem.labels[drawn.flatten(), 0].bincount().tolist() == [5] * 5


def test_copies_of_images_do_not_travel_together():
    """Two images of different classes that are each in many batches must not be in the same ones."""
    problem = Problem(labels_of([1] * 40), 10, 1)
    drawn = batches(problem.sampler(BalancedSampler, images_per_class=10))
    assert drawn.shape == (40, 10)
    assert (drawn.flatten().bincount() == 10).all()
    shows = torch.zeros(40, 40)
    shows.scatter_(1, drawn, 1.0)
    together = (shows.T @ shows)[~torch.eye(40, dtype=torch.bool)]
    assert together.mean() == pytest.approx(10 * 9 / 39)
    assert together.max() < 8  # 10 if two travelled together


def test_no_batch_shows_an_image_twice_however_often_it_is_shown():
    for epoch in range(20):
        problem = Problem(labels_of([1, 1, 2, 30]), 4, 3)
        drawn = batches(problem.sampler(BalancedSampler, epoch, images_per_class=30))
        assert len(drawn) == 3  # in 4 batches the small classes can show 16 images, and the large one 30: fewer than 48
        assert all(len(batch.unique()) == 12 for batch in drawn)


def test_numbers_on_stanford_online_products(sop_labels):
    """Those of the docstring."""
    sampler = BalancedSampler(sop_labels, 64, 4)
    assert sampler.images_per_class == 4
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn = batches(sampler)
        assert drawn.shape == (176, 256)
        assert len(sop_labels[drawn.flatten(), 0].unique()) == 11_318
        assert len(drawn.unique()) == pytest.approx(38_980, abs=30)
        assert all(len(batch.unique()) == 256 for batch in drawn)
    assert sop_labels[:, 0].bincount().clamp(max=4).sum() == 39_115


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_class": 5}, r"classes_per_batch \* samples_per_class is 15; the split has 12 images"),
        ({"balance": 1.1}, "balance is 1.1; it must be from 0"),
        ({"balance": -0.1}, "balance is -0.1"),
        ({"balance": float("nan")}, "balance is nan"),
        ({"images_per_class": 0.5}, "images_per_class is 0.5; it must be at least 1"),
        ({"images_per_class": float("nan")}, "images_per_class is nan"),
    ],
)
def test_errors_name_the_argument(options, message):
    problem = Problem(labels_of([4] * 3), 3, 4)
    assert len(list(problem.sampler(BalancedSampler))) == 12
    with pytest.raises(ValueError, match=message):
        BalancedSampler(**{**problem._asdict(), **options})
