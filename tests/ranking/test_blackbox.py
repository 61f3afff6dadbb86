import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.ranking.blackbox import blackbox_ranks
from dml.ranking.exact import exact_ranks
from dml.ranking.measures import average_precision
from tests.ranking.rankings import LEVELS, assert_same_ranks, class_batch, gradient, rankings, untied_ranking

every_interpolation = pytest.mark.parametrize("interpolation", [1e-3, 0.1, 4.0, 50.0])


def sorted_ranks(scores):
    """Place of each score ``[n]`` in their sorted list, the largest first; no two may be the same."""
    ranks = torch.empty_like(scores)
    ranks[scores.argsort(descending=True)] = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    return ranks


def counted_ranks(scores):
    """The same where a tie counts against the item."""
    return (scores >= scores.unsqueeze(1)).sum(dim=1).to(scores.dtype)


def restated_gradient(scores, relevance, valid, grad_rank, interpolation, rank):
    """One query at a time: ``-(r(s) - r(s + lambda * dL/dr)) / lambda``, with ranks divided by their number."""
    grad = torch.zeros_like(scores)
    incoming = torch.zeros_like(scores)
    incoming[(relevance > 0) & valid] = grad_rank
    for query, kept in enumerate(valid):
        before = scores[query, kept]
        by_normalised_rank = incoming[query, kept] * len(before)
        after = before + interpolation * by_normalised_rank
        grad[query, kept] = -(rank(before) / len(before) - rank(after) / len(before)) / interpolation
    return grad


def assert_gradient(value_of, ranking, interpolation, rank):
    """``value_of`` is a function of the ranks."""
    scores, relevance, valid = ranking
    scores = scores.clone().requires_grad_()
    ranks = blackbox_ranks(scores, relevance, valid, interpolation=interpolation)
    (actual,) = torch.autograd.grad(value_of(ranks), scores)
    exact = exact_ranks(scores, relevance, valid)
    exact = exact._replace(rank=exact.rank.requires_grad_())
    (grad_rank,) = torch.autograd.grad(value_of(exact), exact.rank)
    expected = restated_gradient(scores.detach(), relevance, valid, grad_rank, interpolation, rank)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    return actual


@settings(max_examples=50, deadline=None)
@given(ranking=rankings(LEVELS))
def test_ranks_are_exact(ranking):
    assert_same_ranks(blackbox_ranks(*ranking, interpolation=0.5), exact_ranks(*ranking))


@every_interpolation
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradient_of_average_precision_matches_sorting(interpolation, seed):
    ranking = untied_ranking(6, 15, seed=seed)
    grad = assert_gradient(lambda ranks: -average_precision(ranks).sum(), ranking, interpolation, sorted_ranks)
    assert interpolation < 1 or grad.any()


@every_interpolation
@pytest.mark.parametrize("sizes", [(3, 3, 3), (4, 1, 2, 6), (1, 1)], ids=str)
def test_gradient_of_average_precision_in_a_batch_matches_sorting(interpolation, sizes):
    assert_gradient(lambda ranks: -average_precision(ranks).sum(), class_batch(sizes), interpolation, sorted_ranks)


@every_interpolation
def test_gradient_of_any_function_matches_sorting(interpolation):
    def value(ranks):
        pair = torch.arange(len(ranks.rank), dtype=torch.float64)
        return (pair.sin() * ranks.rank.log() + 0.1 * pair.cos() * ranks.hrank * ranks.rank).sum()

    grad = assert_gradient(value, untied_ranking(5, 12, valid=0.7), interpolation, sorted_ranks)
    assert interpolation < 0.1 or grad.any()


@settings(max_examples=100, deadline=None)
@given(ranking=rankings(), data=st.data())
def test_gradient_with_ties_matches_counting(ranking, data):
    """Incoming gradients are such that scores also move onto each other."""
    num_pairs = int(((ranking[1] > 0) & ranking[2]).sum())
    pushes = st.sampled_from([0.0, 0.0625, -0.0625, 0.25, -0.5])
    weights = torch.tensor(data.draw(st.lists(pushes, min_size=num_pairs, max_size=num_pairs)), dtype=torch.float64)
    interpolation = data.draw(st.sampled_from([0.25, 1.0, 2.0]))
    assert_gradient(lambda ranks: (weights * ranks.rank).sum(), ranking, interpolation, counted_ranks)


def test_a_worked_example():
    # ranks 1 to 4; dL/dr of the second, of the rank over 4, is 4 * 0.25 = 1: raised by 0.5 it passes the first
    scores = torch.tensor([[0.9, 0.6, -0.1, -0.7]], requires_grad=True)
    relevance = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    ranks = blackbox_ranks(scores, relevance, torch.ones(1, 4).bool(), interpolation=0.5)
    assert ranks.rank.tolist() == [2.0]
    (0.25 * ranks.rank.sum()).backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[(2 - 1) / 4 / 0.5, (1 - 2) / 4 / 0.5, 0, 0]]))


def test_descent_on_the_rank_of_an_item_raises_its_score():
    scores = torch.tensor([[0.9, 0.6, -0.1]], requires_grad=True)
    relevance, everything = torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3).bool()
    for _ in range(20):
        ranks = blackbox_ranks(scores, relevance, everything, interpolation=10.0)
        (grad,) = torch.autograd.grad(-average_precision(ranks).sum(), scores)
        scores = (scores - grad).detach().requires_grad_()
    assert ranks.rank.item() == 1


def test_hrank_has_no_gradient():
    scores, relevance, valid = untied_ranking(3, 8)
    ranks = blackbox_ranks(scores.requires_grad_(), relevance, valid, interpolation=4.0)
    assert ranks.rank.requires_grad
    assert not ranks.hrank.requires_grad


@pytest.mark.parametrize("masked", [-torch.inf, torch.inf, torch.nan, 0.05])
def test_scores_outside_the_gallery_are_not_looked_at(masked):
    scores, relevance, valid = untied_ranking(5, 12, valid=0.6)
    hidden = scores.masked_fill(~valid, masked).requires_grad_()
    scores.requires_grad_()
    actual = blackbox_ranks(hidden, relevance, valid, interpolation=0.5)
    expected = blackbox_ranks(scores, relevance, valid, interpolation=0.5)
    assert_same_ranks(actual, expected)
    assert torch.equal(gradient(actual, hidden), gradient(expected, scores))
    assert gradient(actual, hidden).any()
    assert not gradient(actual, hidden)[~valid].any()


def test_queries_are_differentiated_apart():
    scores, relevance, valid = untied_ranking(5, 9)
    scores.requires_grad_()

    def gradient_of(rows):
        ranks = blackbox_ranks(scores[rows], relevance[rows], valid[rows], interpolation=4.0)
        return torch.autograd.grad(average_precision(ranks).sum(), scores)[0][rows]

    apart = [gradient_of(slice(row, row + 1)) for row in range(5)]
    torch.testing.assert_close(gradient_of(slice(0, 5)), torch.cat(apart))


def test_a_query_without_relevant_items_has_a_zero_gradient():
    scores, relevance, valid = untied_ranking(4, 9, relevant=0.6)
    relevance[1], valid[2] = 0, False
    ranks = blackbox_ranks(scores.requires_grad_(), relevance, valid, interpolation=4.0)
    (grad,) = torch.autograd.grad(average_precision(ranks).sum(), scores)
    assert torch.isfinite(grad).all()
    assert grad[0].any()
    assert not grad[1:3].any()


@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4)], ids=str)
def test_no_pair_is_empty_with_a_zero_gradient(shape):
    scores = torch.randn(shape).requires_grad_()
    ranks = blackbox_ranks(scores, torch.zeros(shape), torch.ones(shape, dtype=torch.bool), interpolation=4.0)
    assert ranks.num_queries == shape[0]
    assert [len(values) for values in ranks[:5]] == [0] * 5
    assert torch.equal(gradient(ranks, scores), torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_have_the_precision_of_the_scores(dtype):
    scores, relevance, valid = untied_ranking(5, 40)
    reference, scores = scores.requires_grad_(), scores.detach().to(dtype).requires_grad_()
    ranks = blackbox_ranks(scores, relevance.bool(), valid, interpolation=0.5)
    assert ranks.rank.dtype == ranks.hrank.dtype == dtype
    (grad,) = torch.autograd.grad(average_precision(ranks).sum(), scores)
    expected = average_precision(blackbox_ranks(reference, relevance, valid, interpolation=0.5)).sum()
    torch.testing.assert_close(grad.double(), torch.autograd.grad(expected, reference)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interpolation", [0, -4.0, float("nan")])
def test_interpolation_must_be_positive(interpolation):
    with pytest.raises(ValueError, match=rf"interpolation \(lambda\) is {interpolation};"):
        blackbox_ranks(*untied_ranking(2, 3), interpolation=interpolation)


def test_inputs_are_left_alone():
    inputs = untied_ranking(4, 9)
    copies = [tensor.clone() for tensor in inputs]
    gradient(blackbox_ranks(inputs[0].requires_grad_(), *inputs[1:], interpolation=4.0), inputs[0])
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_backward_is_once_differentiable():
    scores, relevance, valid = untied_ranking(4, 9)
    precision = average_precision(blackbox_ranks(scores.requires_grad_(), relevance, valid, interpolation=4.0))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(precision.sum(), scores, create_graph=True)
