import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dml.ranking.exact import exact_ranks
from dml.ranking.measures import SoftRecall
from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.steps import Sigmoid
from tests.ranking.rankings import rankings


def ranks_of(*rank_of_each_query):
    """Ranks of the relevant items of each query."""
    query = [query for query, rank in enumerate(rank_of_each_query) for _ in rank]
    rank = torch.tensor([value for rank in rank_of_each_query for value in rank], dtype=torch.float64)
    ones = torch.ones_like(rank)
    return Ranks(torch.tensor(query, dtype=torch.long), ones, rank, ones, ones, len(rank_of_each_query))


def logistic(value):
    return 1 / (1 + math.exp(-value))


def assert_values(actual, *expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-10, atol=1e-10)


def test_a_worked_example():
    ranks = ranks_of([1, 3], [], [2])
    at_1, at_2 = logistic(0) + logistic(-2), (logistic(1) + logistic(-1)) / 2
    assert_values(SoftRecall((1,))(ranks), at_1, 0, logistic(-1))
    assert_values(SoftRecall((1, 2))(ranks), (at_1 + at_2) / 2, 0, (logistic(-1) + logistic(0)) / 2)
    assert_values(SoftRecall((5,), temperature=0.5)(ranks), (logistic(8) + logistic(4)) / 2, 0, logistic(6))


def test_an_item_at_the_last_place_counts_half():
    assert_values(SoftRecall((4,), temperature=0.01)(ranks_of([4])), 0.5)


def test_of_many_relevant_items_there_is_room_for_k():
    ranks = ranks_of([1, 2, 3, 4, 5])
    assert_values(SoftRecall((3,), temperature=1e-3)(ranks), (1 + 1 + 0.5) / 3)
    assert_values(SoftRecall((8,), temperature=1e-3)(ranks), 1)


def test_items_just_behind_the_last_place_add_up_unless_capped():
    ranks = ranks_of([2, 2, 2, 2], [2])
    assert_values(SoftRecall((1,))(ranks), 4 * logistic(-1), logistic(-1))
    assert_values(SoftRecall((1,), capped=True)(ranks), 1, logistic(-1))


def test_each_share_is_capped_before_the_mean():
    ranks = ranks_of([2, 2, 2, 2])
    at_3 = 4 * logistic(1) / 3  # below 1
    assert_values(SoftRecall((1, 3), capped=True)(ranks), (1 + at_3) / 2)
    assert_values(SoftRecall((1, 3))(ranks), (4 * logistic(-1) + at_3) / 2)


def test_there_is_no_gradient_beyond_the_cap():
    ranks = ranks_of([2, 2, 2, 2], [2])
    ranks = ranks._replace(rank=ranks.rank.requires_grad_())
    SoftRecall((1,), capped=True)(ranks).sum().backward()
    assert ranks.rank.grad.tolist()[:4] == [0] * 4
    assert ranks.rank.grad[4].item() == pytest.approx(-logistic(-1) * logistic(1))


@pytest.mark.parametrize("capped", [False, True])
@settings(max_examples=100, deadline=None)
@given(
    rank_of_each_query=st.lists(st.lists(st.floats(1, 20), max_size=6), min_size=1, max_size=4),
    at_k=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    temperature=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_matches_its_formula(capped, rank_of_each_query, at_k, temperature):
    expected = []
    for rank in rank_of_each_query:
        shares = [sum(logistic((k - r) / temperature) for r in rank) / max(1, min(k, len(rank))) for k in at_k]
        expected.append(sum(min(share, 1) if capped else share for share in shares) / len(at_k))
    assert_values(SoftRecall(tuple(at_k), temperature, capped)(ranks_of(*rank_of_each_query)), *expected)


@settings(max_examples=50, deadline=None)
@given(ranking=rankings(), k=st.integers(1, 10), capped=st.booleans())
def test_it_tends_to_the_share_of_what_can_be_found(ranking, k, capped):
    ranks = exact_ranks(*ranking)
    assume(not (ranks.rank == k).any())
    found = np.bincount(ranks.query[ranks.rank < k], minlength=ranks.num_queries)
    num_relevant = np.bincount(ranks.query, minlength=ranks.num_queries)
    expected = found / np.maximum(1, np.minimum(k, num_relevant))
    assert_values(SoftRecall((k,), temperature=1e-3, capped=capped)(ranks), *expected.tolist())


def test_nothing_to_retrieve_is_zero_with_a_zero_gradient():
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], requires_grad=True)
    relevance, step = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), Sigmoid(0.1)
    ranks = pairwise_ranks(scores, relevance, torch.ones(2, 3).bool(), positive_step=step, negative_step=step)
    recall = SoftRecall((1, 2))(ranks)
    assert recall[0] == 0
    recall.sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad[0].any()
    assert scores.grad[1].any()


def test_no_query_has_no_recall():
    assert SoftRecall((1, 2))(ranks_of()).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_has_the_precision_of_the_ranks(dtype):
    scores, everything = torch.rand(3, 5).to(dtype), torch.ones(3, 5, dtype=torch.bool)
    assert SoftRecall((1, 4))(exact_ranks(scores, scores > 0.5, everything)).dtype == dtype


@pytest.mark.parametrize("at_k", [(), (0,), (4, -1), (1, 0, 2)], ids=str)
def test_there_must_be_places(at_k):
    with pytest.raises(ValueError, match=rf"at_k is \[{', '.join(map(str, at_k))}\];"):
        SoftRecall(at_k)


@pytest.mark.parametrize("temperature", [0.0, -0.5, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature};"):
        SoftRecall((1,), temperature)
