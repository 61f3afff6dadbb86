"""HierarchicalSampler: every combination of super-classes, shared evenly, as much of them as fits."""

from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.data import HierarchicalSampler
from tests.data.samplers.problems import Problem, batches, labels_of, problems

WIDE = Problem(labels_of([5] * 30), 8, 3)  # 3 super-classes of 10 classes


def shares(problem, drawn):
    """Classes that each super-class gives to each batch ``[T, S]``."""
    return torch.stack([row.bincount(minlength=3) for row in problem.labels[drawn, 1]]) // problem.samples_per_class


@pytest.mark.parametrize(("members", "repeats"), [(1, 2), (2, 1), (2, 5), (3, 4)])
def test_every_combination_gets_its_batches(members, repeats):
    options = {"super_classes_per_batch": members, "batches_per_tuple": repeats}
    given_by = shares(WIDE, batches(WIDE.sampler(HierarchicalSampler, **options)))
    assert len(given_by) == comb(3, members) * repeats
    tuples = sorted(tuple(row.nonzero().flatten().tolist()) for row in given_by)
    assert tuples == sorted(list(combinations(range(3), members)) * repeats)


def test_batches_are_in_random_order():
    given_by = shares(WIDE, batches(WIDE.sampler(HierarchicalSampler, batches_per_tuple=20)))
    changes = (given_by[1:] != given_by[:-1]).any(dim=1).sum()
    assert changes > 20  # 39 expected; 2 if the batches of a pair came one after the other


@given(data=st.data(), members=st.integers(2, 3))
@settings(deadline=None, max_examples=100)
def test_shares_are_even_unless_a_super_class_is_too_small(data, members):
    problem = data.draw(problems(HierarchicalSampler))
    sizes = problem.super_classes.bincount(minlength=3)
    if (sizes > 0).sum() < members or problem.classes_per_batch < members:
        return
    sampler = problem.sampler(HierarchicalSampler, super_classes_per_batch=members)
    for given_by in shares(problem, batches(sampler)):
        there = given_by > 0
        assert there.sum() == members
        full = given_by == sizes
        # Who has classes left gives as many as any other, but for the remainder.
        assert (given_by[there & ~full] >= given_by.max() - 1).all()


def test_a_remainder_goes_to_members_at_random():
    problem = WIDE._replace(classes_per_batch=7)
    given_by = shares(problem, batches(problem.sampler(HierarchicalSampler, batches_per_tuple=40)))
    assert sorted(given_by.unique().tolist()) == [0, 3, 4]
    assert ((given_by == 4).sum(dim=0) > 20).all()  # of 80 batches, 40 expected


def test_classes_and_images_repeat_only_after_all_others():
    sizes = [7] * 12
    labels = labels_of(sizes, [0] * 5 + [1] * 7)
    drawn = batches(HierarchicalSampler(labels, 6, 2, batches_per_tuple=9))
    images = labels[drawn.flatten(), 0]
    given_by = images[::2]
    for super_class, num_classes in ((0, 5), (1, 7)):
        classes = given_by[(given_by >= 5) == bool(super_class)]
        counts = classes.bincount()[5 if super_class else 0 :]
        assert len(counts) == num_classes
        assert counts.max() - counts.min() <= 1
    for label in range(12):
        shown = drawn.flatten()[images == label].tolist()
        for start in range(0, len(shown), 7):
            assert len(set(shown[start : start + 7])) == len(shown[start : start + 7])


def test_the_level_can_be_chosen():
    labels = labels_of([4] * 16, [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4)
    labels = torch.cat([labels, labels[:, 1:] // 2], dim=1)  # two families of two super-classes
    assert len(batches(HierarchicalSampler(labels, 4, 2))) == comb(4, 2) * 5
    assert len(batches(HierarchicalSampler(labels, 4, 2, level=2))) == 5


def test_numbers_on_stanford_online_products(sop_labels):
    """Those of the docstring."""
    sampler = HierarchicalSampler(sop_labels, 64, 4)
    sizes = torch.unique(sop_labels[:, 0], return_inverse=True, return_counts=True)
    size_of_image = sizes[2][sizes[1]]
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn = batches(sampler)
        assert drawn.shape == (330, 256)
        assert len(sop_labels[drawn.flatten(), 0].unique()) == 11_318
        assert len(drawn.unique()) == pytest.approx(51_680, abs=150)
        assert sum(256 - len(batch.unique()) for batch in drawn) / 330 == pytest.approx(34.6, abs=0.5)
        whole = [batch[size_of_image[batch] >= 4] for batch in drawn]
        assert all(len(images.unique()) == len(images) for images in whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 2}, "level is 2; the super-classes of labels with 2 levels are at 1 to 1"),
        ({"level": 0}, "level is 0"),
        ({"super_classes_per_batch": 4}, "super_classes_per_batch is 4; the split has 3 super-classes"),
        ({"super_classes_per_batch": 0}, "super_classes_per_batch is 0"),
        ({"classes_per_batch": 1}, "classes_per_batch is 1; super_classes_per_batch=2 needs at least 2"),
        ({"batches_per_tuple": 0}, "batches_per_tuple is 0; it must be at least 1"),
        ({"classes_per_batch": 5}, r"classes_per_batch is 5; .* only 1 \+ 3 classes, so it can be at most 4"),
    ],
)
def test_errors_name_the_argument(options, message):
    problem = Problem(labels_of([4] * 9, [0] + [1] * 5 + [2] * 3), 4, 2)
    assert len(list(problem.sampler(HierarchicalSampler))) == 3 * 5 * 8
    with pytest.raises(ValueError, match=message):
        HierarchicalSampler(**{**problem._asdict(), **options})


def test_a_class_of_two_super_classes_is_an_error():
    labels = torch.tensor([[0, 0], [1, 1], [2, 0], [1, 0], [2, 0], [0, 0]])
    with pytest.raises(ValueError, match="labels of level 1 split a class: image 3 has another"):
        HierarchicalSampler(labels, 2, 2)
