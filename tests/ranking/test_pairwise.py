import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.reference import reference_ranks
from dml.ranking.steps import Sigmoid, heaviside

GRID = [*np.linspace(-1, 1, 9).tolist(), -0.0]  # few values: many ties, half of them negative
LEVELS = [0.0, 1 / 3, 2 / 3, 1.0]


def restated_heaviside(difference):
    return (difference >= 0).to(difference.dtype)


def restated_sigmoid(temperature):
    return lambda difference: 1 / (1 + torch.exp(-difference / temperature))


# Each step with a restatement that owes nothing to dml.ranking.steps.
HEAVISIDE = (heaviside, restated_heaviside)
WIDE = (Sigmoid(0.5), restated_sigmoid(0.5))
NARROW = (Sigmoid(0.05), restated_sigmoid(0.05))
STEPS = {
    "heaviside": (HEAVISIDE, HEAVISIDE),
    "sigmoid": (WIDE, WIDE),
    "heaviside-sigmoid": (HEAVISIDE, WIDE),
    "sigmoid-heaviside": (NARROW, HEAVISIDE),
    "two-sigmoids": (WIDE, NARROW),
}
every_step = pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())


@st.composite
def rankings(draw, levels=(0.0, 1.0)):
    """Scores, relevance and validity of up to 4 queries against up to 8 items, in float64."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 8)))
    scores = draw(arrays(np.float64, shape, elements=st.sampled_from(GRID)))
    relevance = draw(arrays(np.float64, shape, elements=st.sampled_from(levels)))
    valid = draw(arrays(bool, shape))
    return torch.from_numpy(scores), torch.from_numpy(relevance), torch.from_numpy(valid)


def class_batch(sizes, dimension=6, seed=0):
    """Scores, relevance and validity of a batch with classes of these sizes, each query left out of its own gallery."""
    embeddings = torch.randn(sum(sizes), dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return embeddings @ embeddings.T, (labels[:, None] == labels).double(), ~torch.eye(len(labels), dtype=torch.bool)


def vectorised_ranks(scores, relevance, valid, *, positive_step, negative_step):
    """The same definition under autograd, all pairs at once: for sizes the loops cannot do."""
    query, item = ((relevance > 0) & valid).nonzero(as_tuple=True)
    difference = scores[query] - scores[query, item].unsqueeze(1)  # [M, N]
    counted = valid[query].scatter(1, item.unsqueeze(1), False)
    own, other = relevance[query, item].unsqueeze(1), relevance[query]
    positive, negative = positive_step(difference) * counted, negative_step(difference) * counted
    rank = 1 + torch.where(other >= own, positive, negative).sum(1)
    hrank = own.squeeze(1) + (positive * torch.minimum(own, other)).sum(1)
    return Ranks(query, own.squeeze(1), rank, hrank, torch.ones_like(rank), len(scores))


def gradient(ranks, scores, rank_weight=1.0, hrank_weight=1.0):
    """Gradient of an arbitrary combination of the ranks with respect to the scores."""
    pair = torch.arange(len(ranks.rank), dtype=ranks.rank.dtype)
    value = (rank_weight * torch.cos(pair) * ranks.rank + hrank_weight * torch.sin(pair + 1) * ranks.hrank).sum()
    if not value.requires_grad:  # every step was flat
        return torch.zeros_like(scores)
    return torch.autograd.grad(value, scores, retain_graph=True, materialize_grads=True)[0]


def assert_same_ranks(actual, expected):
    assert actual.num_queries == expected.num_queries
    assert actual.query.dtype == torch.long
    for name in ("query", "relevance", "rank", "hrank", "weight"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-10, atol=1e-10, msg=name)


@every_step
@settings(max_examples=50, deadline=None)
@given(ranking=rankings())
def test_binary_relevance_matches_the_definition(steps, ranking):
    assert_matches(reference_ranks, steps, *ranking)


@every_step
@settings(max_examples=50, deadline=None)
@given(ranking=rankings(LEVELS))
def test_graded_relevance_matches_the_definition(steps, ranking):
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
    assert_matches(vectorised_ranks, steps, scores, relevance, torch.rand(scores.shape, generator=generator) < 0.9)


def assert_matches(definition, steps, scores, relevance, valid):
    (positive, restated_positive), (negative, restated_negative) = steps
    scores = scores.clone().requires_grad_()
    actual = pairwise_ranks(scores, relevance, valid, positive_step=positive, negative_step=negative)
    expected = definition(scores, relevance, valid, positive_step=restated_positive, negative_step=restated_negative)
    assert_same_ranks(actual, expected)
    for weights in [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]:
        torch.testing.assert_close(
            gradient(actual, scores, *weights), gradient(expected, scores, *weights), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("sizes", [(3, 1, 4), (2, 2), (1, 6)], ids=str)
@pytest.mark.parametrize("steps", ["sigmoid", "heaviside-sigmoid", "two-sigmoids"])
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


@pytest.mark.parametrize("masked", [-torch.inf, torch.inf, 1e30])
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
    inputs = class_batch((2, 3, 4))
    copies = [tensor.clone() for tensor in inputs]
    scores = inputs[0].requires_grad_()
    gradient(pairwise_ranks(*inputs, positive_step=WIDE[0], negative_step=NARROW[0]), scores)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_backward_is_once_differentiable():
    """The backward is derived by hand; a second one must refuse rather than be silently wrong."""
    scores, relevance, valid = class_batch((2, 3))
    scores.requires_grad_()
    ranks = pairwise_ranks(scores, relevance, valid, positive_step=WIDE[0], negative_step=WIDE[0])
    (first,) = torch.autograd.grad((ranks.hrank / ranks.rank).sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()
