import pytest
import torch
from hypothesis import given, settings

from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.reference import reference_ranks
from dml.ranking.steps import Sigmoid, heaviside
from tests.ranking.rankings import (
    LEVELS,
    assert_same_ranks,
    class_batch,
    gradient,
    levelled_rankings,
    rankings,
)
from tests.ranking.restated_steps import NARROW, STEPS, WIDE

every_step = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())


def vectorised_ranks(scores, relevance, valid, *, positive_step, negative_step, levels=None):
    """The same definition under autograd, all pairs at once: for sizes the loops cannot do."""
    query, item = ((relevance > 0) & valid).nonzero(as_tuple=True)
    difference = scores[query] - scores[query, item].unsqueeze(1)  # [M, N]
    counted = valid[query].scatter(1, item.unsqueeze(1), False)
    own, other = relevance[query, item].unsqueeze(1), relevance[query]
    positive, negative = positive_step(difference) * counted, negative_step(difference) * counted
    levels = relevance if levels is None else levels
    as_relevant = levels[query] >= levels[query, item].unsqueeze(1)
    rank = 1 + torch.where(as_relevant, positive, negative).sum(1)
    hrank = own.squeeze(1) + (positive * torch.minimum(own, other)).sum(1)
    return Ranks(query, own.squeeze(1), rank, hrank, torch.ones_like(rank), len(scores))


@every_step
@settings(max_examples=30, deadline=None)
@given(ranking=rankings())
def test_binary_relevance_matches_the_definition(steps, ranking):
    assert_matches(reference_ranks, steps, *ranking)


@every_step
@settings(max_examples=30, deadline=None)
@given(ranking=rankings(LEVELS))
def test_graded_relevance_matches_the_definition(steps, ranking):
    assert_matches(reference_ranks, steps, *ranking)


@every_step
@settings(max_examples=25, deadline=None)
@given(ranking=levelled_rankings())
def test_levels_match_the_definition(steps, ranking):
    assert_matches(reference_ranks, steps, *ranking)


@every_step
@pytest.mark.parametrize("sizes", [(4, 1, 2, 3), (1, 1, 1), (5,), (1,)], ids=str)
def test_ragged_classes_match_the_definition(steps, sizes):
    assert_matches(reference_ranks, steps, *class_batch(sizes))


@every_step
def test_a_large_ragged_ranking_matches_the_definition(steps):
    """Large enough to be walked in several blocks: from no relevant item to many, a tenth of each gallery left out."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-50, 50, (150, 3000), generator=generator).double() / 50
    level = torch.randint(1, 4, scores.shape, generator=generator) / 3
    share = torch.tensor([0.0, 0.001, 0.01, 0.002, 0.0]).repeat(30).unsqueeze(1)
    relevance = level.double() * (torch.rand(scores.shape, generator=generator) < share)
    valid = torch.rand(scores.shape, generator=generator) < 0.9
    assert_matches(vectorised_ranks, steps, scores, relevance, valid)


def assert_matches(definition, steps, scores, relevance, valid, levels=None):
    (positive, restated_positive), (negative, restated_negative) = steps
    scores = scores.clone().requires_grad_()
    actual = pairwise_ranks(scores, relevance, valid, levels=levels, positive_step=positive, negative_step=negative)
    expected = definition(
        scores, relevance, valid, levels=levels, positive_step=restated_positive, negative_step=restated_negative
    )
    assert_same_ranks(actual, expected)
    for weights in [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]:
        torch.testing.assert_close(
            gradient(actual, scores, *weights), gradient(expected, scores, *weights), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("sizes", [(3, 1, 4), (2, 2), (1, 6)], ids=str)
@pytest.mark.parametrize(
    "steps", ["sigmoid", "heaviside-sigmoid", "two-sigmoids", "heaviside-upper-bound", "two-upper-bounds"]
)
def test_gradcheck(steps, sizes):
    (positive, _), (negative, _) = STEPS[steps]
    scores, relevance, valid = class_batch(sizes)

    def rank_and_hrank(scores):
        ranks = pairwise_ranks(scores, relevance, valid, positive_step=positive, negative_step=negative)
        return ranks.rank, ranks.hrank

    assert torch.autograd.gradcheck(rank_and_hrank, scores.requires_grad_())


def test_one_output_is_enough():
    """A measure that uses only ``rank`` or only ``hrank`` leaves the other without a gradient."""
    scores, relevance, valid = class_batch((3, 2, 4))
    scores.requires_grad_()
    steps = {"positive_step": WIDE[0], "negative_step": NARROW[0]}
    restated = {"positive_step": WIDE[1], "negative_step": NARROW[1]}
    for name in ("rank", "hrank"):
        actual = getattr(pairwise_ranks(scores, relevance, valid, **steps), name).square().sum()
        expected = getattr(reference_ranks(scores, relevance, valid, **restated), name).square().sum()
        torch.testing.assert_close(torch.autograd.grad(actual, scores), torch.autograd.grad(expected, scores))


def test_a_worked_example():
    # 0.9 (1/3), 0.8 (1), 0.7 (0), 0.6 (2/3); the item at 0.5 is not in the gallery
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    relevance = torch.tensor([[1 / 3, 1, 0, 2 / 3, 1]])
    valid = torch.tensor([[True, True, True, True, False]])
    ranks = pairwise_ranks(scores, relevance, valid, positive_step=heaviside, negative_step=heaviside)
    assert ranks.query.tolist() == [0, 0, 0]
    assert ranks.num_queries == 1
    torch.testing.assert_close(ranks.relevance, torch.tensor([1 / 3, 1, 2 / 3]))
    torch.testing.assert_close(ranks.rank, torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(ranks.hrank, torch.tensor([1 / 3, 1 + 1 / 3, 2 / 3 + 1 / 3 + 2 / 3]))
    torch.testing.assert_close(ranks.weight, torch.ones(3))


def test_steps_are_chosen_by_relevance():
    """Positive steps count what is at least as relevant, negative steps what is less relevant."""
    scores, relevance, valid = torch.zeros(1, 4), torch.tensor([[2 / 3, 1, 2 / 3, 1 / 3]]), torch.ones(1, 4).bool()
    # all tied: the heaviside says 1 for each, the sigmoid 1/2
    ranks = pairwise_ranks(scores, relevance, valid, positive_step=heaviside, negative_step=Sigmoid(1.0))
    torch.testing.assert_close(ranks.rank, torch.tensor([1 + 2 + 1 / 2, 1 + 3 / 2, 1 + 2 + 1 / 2, 1 + 3.0]))
    torch.testing.assert_close(ranks.hrank, torch.tensor([7 / 3, 1 + 5 / 3, 7 / 3, 4 / 3]))


def test_steps_are_chosen_by_levels_and_hrank_by_relevance():
    """The rarer class of the coarse level weighs more than the frequent one of the fine level."""
    scores, valid = torch.zeros(1, 4), torch.ones(1, 4).bool()
    relevance, levels = torch.tensor([[0.5, 1.0, 0.5, 0.0]]), torch.tensor([[2, 1, 2, 0]])
    # all tied: the heaviside says 1 for each, the sigmoid 1/2
    ranks = pairwise_ranks(scores, relevance, valid, levels=levels, positive_step=heaviside, negative_step=Sigmoid(1.0))
    torch.testing.assert_close(ranks.rank, torch.tensor([1 + 1 + 2 / 2, 1 + 2 + 1 / 2, 1 + 1 + 2 / 2]))
    torch.testing.assert_close(ranks.hrank, torch.tensor([1.5, 2.0, 1.5]))
    torch.testing.assert_close(ranks.relevance, torch.tensor([0.5, 1.0, 0.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_levels_are_only_compared(dtype):
    generator = torch.Generator().manual_seed(0)
    scores, valid = torch.randn(5, 12, generator=generator), torch.rand(5, 12, generator=generator) < 0.8
    levels = torch.randint(0, 4, scores.shape, generator=generator)
    relevance = (levels > 0) * torch.rand(scores.shape, generator=generator)
    steps = {"positive_step": WIDE[0], "negative_step": NARROW[0]}
    expected = pairwise_ranks(scores, relevance, valid, levels=levels, **steps)
    assert_same_ranks(pairwise_ranks(scores, relevance, valid, levels=(levels**3).to(dtype), **steps), expected)


def test_levels_too_large_for_a_float_are_told_apart():
    levels = torch.tensor([[2**60, 2**60 + 1]])
    ranks = pairwise_ranks(
        torch.zeros(1, 2),
        torch.ones(1, 2),
        torch.ones(1, 2).bool(),
        levels=levels,
        positive_step=heaviside,
        negative_step=Sigmoid(1.0),
    )
    assert ranks.rank.tolist() == [2.0, 1.5]


def test_pairs_come_by_query_then_item():
    scores, relevance, valid = class_batch((2, 3, 1, 2))
    ranks = pairwise_ranks(scores, relevance, valid, positive_step=heaviside, negative_step=heaviside)
    query, item = ((relevance > 0) & valid).nonzero(as_tuple=True)
    assert ranks.query.tolist() == query.tolist()
    for pair, (row, column) in enumerate(zip(query, item, strict=True)):
        above = (scores[row] > scores[row, column]) & valid[row]
        assert ranks.rank[pair] == 1 + above.sum()


def test_sum_per_query():
    ranks = Ranks(torch.tensor([0, 2, 2]), torch.ones(3), torch.ones(3), torch.ones(3), torch.ones(3), 4)
    assert ranks.sum_per_query(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1.0, 0.0, 6.0, 0.0]


def test_boolean_relevance_is_binary_relevance():
    scores, relevance, valid = class_batch((2, 3, 1))
    actual = pairwise_ranks(scores, relevance.bool(), valid, positive_step=WIDE[0], negative_step=WIDE[0])
    expected = pairwise_ranks(scores, relevance, valid, positive_step=WIDE[0], negative_step=WIDE[0])
    assert_same_ranks(actual, expected)


@pytest.mark.parametrize("masked", [-torch.inf, torch.inf, torch.nan, 1e30])
def test_scores_outside_the_gallery_are_not_looked_at(masked):
    scores, relevance, valid = class_batch((2, 3, 4))
    valid = valid & (torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.7)
    hidden = scores.masked_fill(~valid, masked).requires_grad_()
    scores.requires_grad_()
    actual = pairwise_ranks(hidden, relevance, valid, positive_step=WIDE[0], negative_step=NARROW[0])
    expected = pairwise_ranks(scores, relevance, valid, positive_step=WIDE[0], negative_step=NARROW[0])
    assert_same_ranks(actual, expected)
    torch.testing.assert_close(gradient(actual, hidden), gradient(expected, scores))
    assert not gradient(actual, hidden)[~valid].any()


@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 4)], ids=str)
def test_no_pair_is_empty_with_a_zero_gradient(shape):
    scores = torch.randn(shape).requires_grad_()
    ranks = pairwise_ranks(
        scores, torch.zeros(shape), torch.ones(shape, dtype=torch.bool), positive_step=WIDE[0], negative_step=WIDE[0]
    )
    assert ranks.num_queries == shape[0]
    assert [len(values) for values in ranks[:5]] == [0] * 5
    assert torch.equal(gradient(ranks, scores), torch.zeros(shape))


def test_memory_layout_is_irrelevant():
    scores, relevance, _ = class_batch((2, 3, 4))
    scores.requires_grad_()
    steps = {"positive_step": WIDE[0], "negative_step": NARROW[0]}
    everything = torch.ones(1, 1, dtype=torch.bool).expand(scores.shape)
    actual = pairwise_ranks(scores.T, relevance.T, everything, **steps)
    expected = pairwise_ranks(scores.T.contiguous(), relevance.T.contiguous(), everything.contiguous(), **steps)
    assert_same_ranks(actual, expected)
    torch.testing.assert_close(gradient(actual, scores), gradient(expected, scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_have_the_precision_of_the_scores(dtype):
    scores, relevance, valid = class_batch((2, 3, 4))
    ranks = pairwise_ranks(scores.to(dtype), relevance.bool(), valid, positive_step=WIDE[0], negative_step=WIDE[0])
    assert ranks.rank.dtype == ranks.hrank.dtype == ranks.weight.dtype == dtype
    expected = pairwise_ranks(scores, relevance, valid, positive_step=WIDE[0], negative_step=WIDE[0])
    torch.testing.assert_close(ranks.rank.double(), expected.rank, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ranks.hrank.double(), expected.hrank, rtol=1e-5, atol=1e-5)


def test_inputs_are_left_alone():
    scores, relevance, valid = class_batch((2, 3, 4))
    inputs = scores, relevance, valid, 2 * relevance
    copies = [tensor.clone() for tensor in inputs]
    scores.requires_grad_()
    ranks = pairwise_ranks(*inputs[:3], levels=inputs[3], positive_step=WIDE[0], negative_step=NARROW[0])
    gradient(ranks, scores)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_backward_is_once_differentiable():
    """The backward is derived by hand; a second one must refuse rather than be silently wrong."""
    scores, relevance, valid = class_batch((2, 3))
    scores.requires_grad_()
    ranks = pairwise_ranks(scores, relevance, valid, positive_step=WIDE[0], negative_step=WIDE[0])
    for value in (ranks.hrank / ranks.rank, ranks.rank):  # also where the gradient that comes in is a constant
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(value.sum(), scores, create_graph=True, retain_graph=True)
