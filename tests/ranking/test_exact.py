import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.ranking.exact import exact_ranks, ranks_of_pairs
from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.reference import reference_ranks
from dml.ranking.steps import heaviside
from tests.ranking.rankings import LEVELS, assert_same_ranks, rankings, untied_ranking
from tests.ranking.restated_steps import restated_heaviside


def large_ranking(num_queries, num_items, levels, dtype=torch.float64, num_scores=40):
    """A ranking with ties in every row, some queries with nothing to retrieve, and every tenth item left out."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-num_scores, num_scores, (num_queries, num_items), generator=generator) / num_scores
    relevance = torch.tensor(levels)[torch.randint(0, len(levels), scores.shape, generator=generator)]
    relevance[::5] = 0
    return scores.to(dtype), relevance.to(dtype), torch.rand(scores.shape, generator=generator) > 0.1


@pytest.mark.parametrize("levels", [[0.0, 1.0], LEVELS, [1.0]], ids=["binary", "graded", "all relevant"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_matches_the_definition(levels, data):
    ranking = data.draw(rankings(levels))
    expected = reference_ranks(*ranking, positive_step=restated_heaviside, negative_step=restated_heaviside)
    assert_same_ranks(exact_ranks(*ranking), expected)


@pytest.mark.parametrize("levels", [[0.0, 1.0], LEVELS], ids=["binary", "graded"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_matches_pairwise_ranks_with_heaviside_steps(levels, data):
    ranking = data.draw(rankings(levels, dtype=np.float32))
    expected = pairwise_ranks(*ranking, positive_step=heaviside, negative_step=heaviside)
    assert_same_ranks(exact_ranks(*ranking), expected, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [[0.0] * 299 + [1.0], [0.0] * 500 + LEVELS], ids=["binary", "graded"])
def test_large_rankings_match_counting(levels, dtype):
    """Large enough to be walked in several blocks."""
    scores, relevance, valid = large_ranking(160, 3000, levels, dtype)
    actual = exact_ranks(scores, relevance, valid)
    query, item = ((relevance > 0) & valid).nonzero(as_tuple=True)
    own = relevance[query, item]
    above = (scores[query] >= scores[query, item].unsqueeze(1)) & valid[query]  # [M, N], the item itself included
    assert torch.equal(actual.query, query)
    assert torch.equal(actual.relevance, own)
    assert torch.equal(actual.rank.long(), above.sum(dim=1))
    torch.testing.assert_close(actual.hrank, (above * torch.minimum(relevance[query], own.unsqueeze(1))).sum(dim=1))


def test_many_relevant_items_match_counting():
    scores, relevance, valid = large_ranking(3, 5000, [0.0, 1.0], torch.float32, num_scores=1000)
    actual = exact_ranks(scores, relevance, valid)
    query, item = ((relevance > 0) & valid).nonzero(as_tuple=True)
    for pair in range(0, len(query), 97):
        row = query[pair]
        above = (scores[row] >= scores[row, item[pair]]) & valid[row]
        assert actual.rank[pair] == above.sum()
        assert actual.hrank[pair] == (above & (relevance[row] > 0)).sum()


def test_a_worked_example():
    # query 0: an irrelevant and a relevant item tie at 0.9; query 1 has nothing to retrieve
    # query 2: all tie, and the last is not in the gallery
    scores = torch.tensor([[0.9, 0.9, -0.5, -0.7], [0.3, 0.2, 0.1, 0.0], [0.1, 0.1, 0.1, 0.1]])
    relevance = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1], [1, 0, 1, 1]]).bool()
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    ranks = exact_ranks(scores, relevance, valid)
    assert ranks.num_queries == 3
    assert ranks.query.tolist() == [0, 0, 2, 2]
    assert ranks.rank.tolist() == [2, 4, 3, 3]
    assert ranks.hrank.tolist() == [1, 2, 2, 2]
    assert ranks.relevance.tolist() == [1, 1, 1, 1]
    assert ranks.weight.tolist() == [1, 1, 1, 1]


def test_boolean_relevance_is_binary_relevance():
    scores, relevance, valid = large_ranking(10, 30, [0.0, 1.0])
    assert_same_ranks(exact_ranks(scores, relevance.bool(), valid), exact_ranks(scores, relevance, valid))


def test_neighbouring_floats_are_not_tied():
    low = torch.tensor(0.5)
    scores = torch.stack([low, torch.nextafter(low, torch.tensor(1.0)), -low, torch.nextafter(-low, torch.tensor(1.0))])
    ranks = exact_ranks(scores[None], torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool))
    assert ranks.rank.tolist() == [2, 1, 4, 3]


@pytest.mark.parametrize("masked", [-torch.inf, torch.inf, torch.nan, 1e30])
def test_scores_outside_the_gallery_are_not_looked_at(masked):
    scores, relevance, valid = large_ranking(10, 30, LEVELS)
    hidden = scores.masked_fill(~valid, masked)
    assert_same_ranks(exact_ranks(hidden, relevance, valid), exact_ranks(scores, relevance, valid))


def test_there_is_no_gradient():
    scores, relevance, valid = large_ranking(4, 6, [0.0, 1.0])
    ranks = exact_ranks(scores.requires_grad_(), relevance, valid)
    assert not ranks.rank.requires_grad
    assert not ranks.hrank.requires_grad


@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4)], ids=str)
def test_no_pair_is_empty(shape):
    ranks = exact_ranks(torch.randn(shape), torch.zeros(shape), torch.ones(shape, dtype=torch.bool))
    assert ranks.num_queries == shape[0]
    assert [len(values) for values in ranks[:5]] == [0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_have_the_precision_of_the_scores(dtype):
    scores, relevance, valid = large_ranking(4, 6, [0.0, 1.0], dtype)
    ranks = exact_ranks(scores, relevance.bool(), valid)
    assert ranks.rank.dtype == ranks.hrank.dtype == ranks.weight.dtype == dtype


def test_inputs_are_left_alone():
    inputs = large_ranking(4, 6, LEVELS)
    copies = [tensor.clone() for tensor in inputs]
    exact_ranks(*inputs)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_without_ties_it_does_not_matter_what_they_get():
    scores, relevance, valid = untied_ranking(20, 90)
    ranks = exact_ranks(scores, relevance, valid)
    assert_same_ranks(exact_ranks(scores, relevance, valid, ties="optimistic"), ranks)
    expected = exact_ranks(scores, relevance, valid, ties="expected")
    for row in range(20):  # in order of rank
        assert expected.rank[expected.query == row].tolist() == sorted(ranks.rank[ranks.query == row].tolist())
    assert (expected.weight == 1).all()


def test_a_worked_example_of_ties():
    # 0.9: relevant; 0.5: two irrelevant items and one of relevance 1/2 and one of 1
    scores = torch.tensor([[0.5, 0.5, 0.9, 0.5, 0.5]], dtype=torch.float64)
    relevance = torch.tensor([[0.0, 0.5, 1.0, 0.0, 1.0]], dtype=torch.float64)
    valid = torch.ones_like(scores, dtype=torch.bool)
    ranks = exact_ranks(scores, relevance, valid, ties="optimistic")
    assert ranks.rank.tolist() == [3, 1, 2]
    assert ranks.hrank.tolist() == [1.5, 1, 2]
    ranks = exact_ranks(scores, relevance, valid, ties="expected")
    of_last = (ranks.relevance == 1) & (ranks.rank > 1)
    assert ranks.rank[of_last].tolist() == [2, 3, 4, 5]
    assert ranks.weight[of_last].tolist() == [0.25] * 4
    # The item of relevance 1/2 is before it never, with probability 1/3, 2/3, and always.
    torch.testing.assert_close(ranks.hrank[of_last], 2 + 0.5 * torch.arange(4, dtype=torch.float64) / 3)


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "expected"])
def test_queries_are_ranked_apart(ties):
    """Rows with many relevant items, which are sorted, beside rows with few, which are counted, and with none."""
    scores, relevance, valid = large_ranking(30, 120, [0.0, 1.0], num_scores=9)
    relevance *= (
        torch.rand(relevance.shape, generator=torch.Generator().manual_seed(1)) < torch.arange(30)[:, None] / 30
    )
    together = exact_ranks(scores, relevance, valid, ties=ties)
    for row in range(30):
        alone = exact_ranks(scores[row, None], relevance[row, None], valid[row, None], ties=ties)
        for name in ("relevance", "rank", "hrank", "weight"):
            torch.testing.assert_close(getattr(together, name)[together.query == row], getattr(alone, name), msg=name)


def test_given_pairs_are_ranked_in_any_number_and_order_of_items():
    scores = torch.tensor([[0.1, 0.4, 0.4, -0.3], [0.9, 0.8, 0.8, 0.8]])
    ranks = ranks_of_pairs(scores, torch.tensor([0, 0, 1]), torch.tensor([3, 1, 2]))
    assert ranks.rank.tolist() == [4, 2, 4]
    assert ranks.hrank.tolist() == [2, 1, 1]


def test_the_scores_of_pairs_are_left_alone():
    """Though sorting takes place in memory that is there already."""
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    copy, pair = scores.clone(), torch.arange(150)
    ranks = ranks_of_pairs(scores, pair // 50, pair % 50)
    assert torch.equal(scores, copy)
    assert torch.equal(ranks.rank.view(3, 50).long(), 1 + scores.argsort(descending=True).argsort())


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "expected"])
def test_zeros_of_both_signs_tie(ties):
    scores, zeros = torch.tensor([[0.0, -0.0] * 20]), torch.zeros(1, 40)
    relevance = (torch.arange(40) % 4 < 3).float()[None]
    actual = exact_ranks(scores, relevance, relevance >= 0, ties=ties)
    assert_same_ranks(actual, exact_ranks(zeros, relevance, relevance >= 0, ties=ties))
