"""SmoothAPSampler: the published order, with what it misses."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data import SmoothAPSampler
from tests.data.samplers.problems import Problem, batches, labels_of


def published(sizes, order, num_classes, num_samples):
    """Classes of each batch, when the list of classes is in this order."""
    unused, epoch = dict(enumerate(sizes)), []
    while True:
        batch = [label for label in order if unused[label] >= num_samples][:num_classes]
        if len(batch) < num_classes:
            return epoch
        for label in batch:
            unused[label] -= num_samples
        epoch.append(tuple(sorted(batch)))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.data())
@settings(deadline=None, max_examples=100)
def test_an_epoch_is_one_that_was_published(sizes, data):
    num_samples = data.draw(st.integers(1, min(3, max(sizes))))
    num_classes = data.draw(st.integers(1, sum(size >= num_samples for size in sizes)))
    problem = Problem(labels_of(sizes), num_classes, num_samples)
    epochs = [published(sizes, order, num_classes, num_samples) for order in permutations(range(len(sizes)))]
    for epoch in range(3):
        drawn = batches(problem.sampler(SmoothAPSampler, epoch))
        assert len(drawn.unique()) == drawn.numel()  # no image is used twice
        ours = [tuple(sorted(set(row))) for row in problem.labels[drawn, 0].tolist()]
        assert any(_within(ours, theirs) for theirs in epochs)


def _within(ours, theirs):
    return all(ours.count(batch) <= theirs.count(batch) for batch in set(ours))


def test_as_many_batches_as_half_of_all_lists_give():
    """Two long classes give 9 batches if they come first, and fewer if they come late."""
    sizes = [40, 36, *[4] * 8]
    problem = Problem(labels_of(sizes), 2, 4)
    lengths = sorted(len(published(sizes, order, 2, 4)) for order in _some_orders(len(sizes)))
    middle = len(lengths) // 2
    for seed in range(5):
        num_batches = len(batches(problem.sampler(SmoothAPSampler, seed=seed)))
        assert lengths[middle // 2] <= num_batches <= lengths[middle + middle // 2]
        for epoch in range(10):
            assert len(batches(problem.sampler(SmoothAPSampler, epoch, seed=seed))) == num_batches
    assert lengths[0] < lengths[-1]


def _some_orders(count):
    orders = (list(range(count)) for _ in range(count * count))
    for number, order in enumerate(orders):
        first, second = divmod(number, count)
        order[0], order[first] = order[first], order[0]
        order[1], order[second] = order[second], order[1]
        yield order


def test_batches_are_shuffled():
    """A walk takes a class again and again until it is used up."""
    labels = labels_of([40] * 4 + [4] * 40)
    drawn = labels[batches(SmoothAPSampler(labels, 4, 4)), 0]
    shows = [(drawn == label).any(dim=1).nonzero().flatten() for label in range(4)]
    assert any(len(where) > 1 and where[-1] - where[0] >= len(where) for where in shows)


@pytest.mark.parametrize(
    ("batch_size", "num_batches", "num_classes"), [(256, 163, 7280), (384, 108, 7245), (4000, 10, 7225)]
)
def test_numbers_on_stanford_online_products(sop_labels, batch_size, num_batches, num_classes):
    """Those of the docstring."""
    sizes = sop_labels[:, 0].bincount()
    assert (len(sizes[sizes > 0]), len(sizes[(sizes > 0) & (sizes < 4)])) == (11_318, 4_019)
    sampler = SmoothAPSampler(sop_labels, batch_size // 4, 4)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn = batches(sampler)
        assert drawn.shape == (num_batches, batch_size)
        assert len(drawn.unique()) == drawn.numel()
        seen = sop_labels[drawn.flatten(), 0].unique()
        assert len(seen) == pytest.approx(num_classes, abs=40)
        assert sizes[seen].min() == 4


def test_numbers_on_classes_as_in_cub():
    labels = labels_of([59] * 100)
    sampler = SmoothAPSampler(labels, 64, 4)
    seen = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        drawn = batches(sampler)
        assert len(drawn) == 14
        seen.append(tuple(labels[drawn.flatten(), 0].unique().tolist()))
    assert {len(classes) for classes in seen} == {64}
    assert len(set(seen)) == 5  # other ones in each epoch


def test_errors_name_the_argument():
    message = "classes_per_batch is 3; only 2 of the 4 classes have samples_per_class=4 images or more"
    with pytest.raises(ValueError, match=message):
        SmoothAPSampler(labels_of([3, 4, 9, 1]), 3, 4)
