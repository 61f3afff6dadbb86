"""SameLabel, beside a look at every pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.metrics.relevant import SameLabel


def every_pair(gallery, labels, own):
    return [
        [query, item]
        for query, label in enumerate(labels)
        for item, other in enumerate(gallery)
        if label == other and item != own[query]
    ]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_pairs_are_those_of_one_label_but_the_image_itself(data):
    labels = st.lists(st.sampled_from([-3, 0, 1, 7, 2**40]), max_size=12)
    gallery, asked = data.draw(labels), data.draw(labels)
    own = [data.draw(st.integers(-1, len(gallery) - 1)) for _ in asked]
    query, item = SameLabel(torch.tensor(gallery, dtype=torch.long)).pairs(
        torch.tensor(asked, dtype=torch.long), torch.tensor(own, dtype=torch.long)
    )
    assert torch.stack([query, item], dim=1).tolist() == every_pair(gallery, asked, own)
    assert query.dtype == item.dtype == torch.long


def test_a_column_of_labels_will_do():
    labels = torch.tensor([[0, 5], [1, 5], [2, 6]])
    query, item = SameLabel(labels[:, 1]).pairs(labels[:, 1], torch.arange(3))
    assert query.tolist() == [0, 1]
    assert item.tolist() == [1, 0]


@pytest.mark.parametrize(("gallery", "asked"), [([], [1, 2]), ([1, 2], []), ([], [])], ids=str)
def test_nothing_makes_no_pairs(gallery, asked):
    gallery, asked = torch.tensor(gallery, dtype=torch.long), torch.tensor(asked, dtype=torch.long)
    query, item = SameLabel(gallery).pairs(asked, torch.full_like(asked, -1))
    assert len(query) == len(item) == 0


def test_labels_that_the_gallery_lacks_make_no_pairs():
    """Below, between and above those that it has."""
    query, item = SameLabel(torch.tensor([3, 5])).pairs(torch.tensor([0, 4, 9, 5]), torch.full((4,), -1))
    assert query.tolist() == [3]
    assert item.tolist() == [1]
