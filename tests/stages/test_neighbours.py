"""Nearest neighbours, beside a search in a loop."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.stages.neighbours import nearest
from tests.stages.galleries import embeddings, outside, search


@pytest.mark.parametrize("k", [1, 7, 40, 100])
def test_equals_a_search_in_a_loop(k):
    queries, gallery = embeddings(300, seed=1), embeddings(40)
    own = torch.where(torch.arange(300) % 3 == 0, torch.arange(300) % 40, -1)
    found = nearest(queries, gallery, k, own)
    assert found.item.shape == (300, min(k, 40))
    for row, query in enumerate(queries.double().numpy()):
        items, similarity = search(query, gallery.double().numpy(), k, own[row])
        assert found.item[row, : len(items)].tolist() == items
        np.testing.assert_allclose(found.similarity[row, : len(items)], similarity, atol=1e-6)
        assert found.lowest[row] == pytest.approx((gallery.double().numpy() @ query).min(), abs=1e-6)


def test_its_own_item_is_last_and_infinitely_far_if_there_is_nothing_else():
    gallery = embeddings(3)
    found = nearest(gallery, gallery, 3, torch.arange(3))
    assert found.item[:, 2].tolist() == [0, 1, 2]
    assert (found.similarity[:, 2] == -torch.inf).all()
    assert found.similarity[:, :2].isfinite().all()


@pytest.mark.parametrize("k", [1, 3, 4, 5, 12])
def test_the_first_of_equal_items_are_found_in_order(k):
    one, other = embeddings(2)
    gallery = torch.stack([other, one, other, one, one, other] * 2)
    found = nearest(one[None], gallery, k, torch.tensor([3]))
    assert found.item[0].tolist() == [1, 4, 7, 9, 10, 0, 2, 5, 6, 8, 11, 3][:k]


def test_of_many_equal_items_the_first_are_found():
    gallery = embeddings(1).expand(5000, 8)
    found = nearest(gallery[:2], gallery, 4, torch.tensor([-1, 2]))
    assert found.item.tolist() == [[0, 1, 2, 3], [0, 1, 3, 4]]


def test_products_are_float32_under_autocast():
    queries, gallery = embeddings(5, 64, seed=1), embeddings(30, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nearest(queries, gallery, 4, outside(queries))
    expected = nearest(queries, gallery, 4, outside(queries))
    assert torch.equal(inside.similarity, expected.similarity)
    assert torch.equal(inside.item, expected.item)


def test_memory_does_not_grow_with_the_square():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    gallery = normalize(torch.randn(6000, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    with Watch():
        nearest(gallery, gallery, 5, torch.arange(6000))
    assert largest < 6000 * 6000 / 4


def test_nothing_to_find_or_to_ask():
    gallery = embeddings(4)
    assert nearest(gallery, gallery[:0], 3, outside(gallery)).item.shape == (4, 0)
    assert nearest(gallery[:0], gallery, 3, outside(gallery[:0])).item.shape == (0, 3)
