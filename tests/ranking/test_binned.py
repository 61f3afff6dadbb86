import numpy as np
import pytest
import torch
from hypothesis import given, settings

from dml.ranking.binned import Bins, binned_ranks, count_above
from dml.ranking.measures import average_precision
from tests.ranking.rankings import GRID, LEVELS, gradient, rankings, untied_ranking

BINS = {
    "five": Bins(5),
    "nine": Bins(9),  # their centres are the scores of GRID
    "two": Bins(2, -0.5, 0.6),
    "narrow": Bins(4, -0.3, 0.4),
    "above": Bins(3, 0.0, 1.0),
    "wide": Bins(20, -3.0, 5.0),
}
OFF_CENTRE = tuple(np.linspace(-1.17, 1.22, 11).tolist())  # beyond the ends of most bins too
every_bins = pytest.mark.parametrize("bins", BINS.values(), ids=BINS.keys())


def centres_of(bins):
    return np.linspace(bins.max_score, bins.min_score, bins.num_bins).tolist()


def hat(score, bins, bin_):
    """1 at the centre of a bin, 0 at those of its neighbours; 1 beyond the ends, for the first and the last bin."""
    centres = centres_of(bins)
    if (bin_ == 0 and score >= centres[0]) or (bin_ == bins.num_bins - 1 and score <= centres[-1]):
        return torch.ones_like(score)
    return (1 - (score - centres[bin_]).abs() / (centres[0] - centres[1])).clamp(min=0)


def restated_histograms(scores, relevance, valid, bins):
    """Soft numbers of all and of relevant items ``[Q, bins]``, one item at a time."""
    every, relevant = ([[torch.zeros((), dtype=torch.float64)] * bins.num_bins for _ in scores] for _ in range(2))
    for query, item in valid.nonzero().tolist():
        for bin_ in range(bins.num_bins):
            mass = hat(scores[query, item], bins, bin_)
            every[query][bin_] = every[query][bin_] + mass
            if relevance[query, item] > 0:
                relevant[query][bin_] = relevant[query][bin_] + mass
    return tuple(torch.stack([torch.stack(row) for row in rows]) for rows in (every, relevant))


def restated_value(weight, hrank, rank):
    """An arbitrary combination."""
    pair = torch.arange(weight.numel(), dtype=weight.dtype)
    return (pair.cos() * weight.flatten() + pair.sin() * hrank.flatten() + (2 * pair).cos() * rank.flatten()).sum()


@every_bins
@settings(max_examples=25, deadline=None)
@given(ranking=rankings(LEVELS, scores=(*GRID, 1.2, -1.3, 0.123)))
def test_matches_the_definition(bins, ranking):
    every, relevant = restated_histograms(*ranking, bins)
    ranks = binned_ranks(*ranking, bins=bins)
    num_queries = len(ranking[0])
    assert ranks.num_queries == num_queries
    assert ranks.query.tolist() == [query for query in range(num_queries) for _ in range(bins.num_bins)]
    assert ranks.relevance.tolist() == [1.0] * num_queries * bins.num_bins
    for actual, expected in [
        (ranks.weight, relevant),
        (ranks.hrank, relevant.cumsum(dim=1)),
        (ranks.rank, every.cumsum(dim=1)),
    ]:
        torch.testing.assert_close(actual, expected.flatten(), rtol=1e-12, atol=1e-12)


@every_bins
@settings(max_examples=25, deadline=None)
@given(ranking=rankings(scores=OFF_CENTRE))
def test_gradient_matches_the_definition(bins, ranking):
    scores, relevance, valid = ranking
    scores.requires_grad_()
    every, relevant = restated_histograms(scores, relevance, valid, bins)
    ranks = binned_ranks(scores, relevance, valid, bins=bins)
    actual = restated_value(ranks.weight, ranks.hrank, ranks.rank)
    expected = restated_value(relevant, relevant.cumsum(dim=1), every.cumsum(dim=1)) + 0 * scores.sum()
    torch.testing.assert_close(
        torch.autograd.grad(actual, scores), torch.autograd.grad(expected, scores), rtol=1e-9, atol=1e-9
    )


@every_bins
def test_gradcheck(bins):
    scores, relevance, valid = untied_ranking(3, 7)
    assert torch.autograd.gradcheck(
        lambda scores: binned_ranks(scores, relevance, valid, bins=bins)[2:5], scores.requires_grad_()
    )


@pytest.mark.parametrize("num_bins", [1, 2, 3, 8])
@settings(max_examples=25, deadline=None)
@given(ranking=rankings(scores=(-2.0, -0.25, 0.0, 0.5, 0.75, 1.0, 1.25, 2.0, 2.5, 6.0, 6.75, 7.0, 9.0)))
def test_count_above_matches_its_formula(num_bins, ranking):
    position, _, counted = ranking
    expected = [
        [sum(min(max(bin_ + 1 - place, 0), 1) for place in row[kept].clamp(0, num_bins - 1).tolist()) for bin_ in bins]
        for row, kept, bins in zip(position, counted, [range(num_bins)] * len(position), strict=True)
    ]
    actual = count_above(position, counted, num_bins)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64).view(-1, num_bins))


@every_bins
@settings(max_examples=25, deadline=None)
@given(ranking=rankings(LEVELS, scores=(*GRID, 1.2, -1.3, 0.123)))
def test_every_item_is_counted_once(bins, ranking):
    _, relevance, valid = ranking
    ranks = binned_ranks(*ranking, bins=bins)
    weight, rank = ranks.weight.view(-1, bins.num_bins), ranks.rank.view(-1, bins.num_bins)
    torch.testing.assert_close(weight.sum(dim=1), ((relevance > 0) & valid).sum(dim=1).double())
    torch.testing.assert_close(rank[:, -1], valid.sum(dim=1).double())
    assert (weight > -1e-12).all()
    assert (rank.diff(dim=1) > -1e-12).all()
    assert (ranks.hrank < ranks.rank + 1e-12).all()


def test_a_worked_example():
    # centres 1, 0.5, 0, -0.5, -1; the item at 0.9 is not in the gallery
    scores = torch.tensor([[1.2, 0.625, 0.5, -0.875, -3.0, 0.9]])
    relevance = torch.tensor([[1, 1, 0, 0, 1, 1]]).bool()
    valid = torch.tensor([[1, 1, 1, 1, 1, 0]]).bool()
    ranks = binned_ranks(scores, relevance, valid, bins=Bins(5))
    torch.testing.assert_close(ranks.weight, torch.tensor([1.25, 0.75, 0, 0, 1]))
    torch.testing.assert_close(ranks.hrank, torch.tensor([1.25, 2, 2, 2, 3]))
    torch.testing.assert_close(ranks.rank, torch.tensor([1.25, 3, 3, 3.25, 5]))
    assert ranks.query.tolist() == [0] * 5


@every_bins
def test_average_precision_is_that_of_the_quantized_histograms(bins):
    """Revaud et al., ICCV 2019: precision of each bin times the recall it adds."""
    scores, relevance, valid = untied_ranking(6, 20)
    every, relevant = restated_histograms(scores, relevance, valid, bins)
    precision = relevant.cumsum(dim=1) / (every.cumsum(dim=1) + 1e-16)
    recall = relevant / relevant.sum(dim=1, keepdim=True)
    actual = average_precision(binned_ranks(scores, relevance, valid, bins=bins))
    torch.testing.assert_close(actual, (precision * recall).sum(dim=1))


@pytest.mark.parametrize("bins", [Bins(5), Bins(3, -0.2, 0.7)], ids=str)
def test_position_counts_centres_from_the_highest(bins):
    centres = torch.tensor(centres_of(bins), dtype=torch.float64)
    torch.testing.assert_close(bins.position(centres), torch.arange(bins.num_bins, dtype=torch.float64))
    width = (bins.max_score - bins.min_score) / (bins.num_bins - 1)
    beyond = torch.tensor([bins.max_score + 2 * width, bins.min_score - 0.5 * width], dtype=torch.float64)
    torch.testing.assert_close(bins.position(beyond), torch.tensor([-2, bins.num_bins - 0.5], dtype=torch.float64))


@pytest.mark.parametrize("num_bins", [1, 0, -3])
def test_one_bin_is_too_few(num_bins):
    with pytest.raises(ValueError, match=f"num_bins is {num_bins};"):
        Bins(num_bins)


@pytest.mark.parametrize(("lowest", "highest"), [(1.0, -1.0), (0.5, 0.5), (float("nan"), 1.0)])
def test_bins_must_have_an_extent(lowest, highest):
    with pytest.raises(ValueError, match=f"min_score is {lowest}, max_score {highest};"):
        Bins(10, lowest, highest)


@pytest.mark.parametrize("centre", [0.5, 0.0, -0.5])
def test_the_slope_at_a_centre_is_that_of_one_side(centre):
    bins, everything = Bins(5), torch.ones(1, 1, dtype=torch.bool)

    def slope(score):
        scores = torch.tensor([[score]], dtype=torch.float64, requires_grad=True)
        return gradient(binned_ranks(scores, everything, everything, bins=bins), scores).item()

    sides = [slope(centre - 1e-3), slope(centre + 1e-3)]
    assert abs(sides[0] - sides[1]) > 0.1
    assert min(abs(slope(centre) - side) for side in sides) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_is_no_slope_beyond_the_ends_nor_within_rounding_of_them(dtype):
    """The score of an embedding with itself is 1, give or take its rounding."""
    beyond = torch.tensor([1.0, 1 + 2e-7, 1 - 2e-7, 1.5, torch.inf, -1.0, -1 - 2e-7, -1 + 2e-7, -7.0, -torch.inf])
    scores = beyond.to(dtype).repeat(2, 1).requires_grad_()
    relevance = torch.tensor([1.0, 0.0]).repeat(2, 5)
    ranks = binned_ranks(scores, relevance, torch.ones_like(scores, dtype=torch.bool), bins=Bins(20))
    assert not gradient(ranks, scores).any()


@pytest.mark.parametrize("masked", [-torch.inf, torch.inf, 0.1, torch.nan])
def test_scores_outside_the_gallery_are_not_looked_at(masked):
    scores, relevance, valid = untied_ranking(5, 12)
    hidden = scores.masked_fill(~valid, masked).requires_grad_()
    scores.requires_grad_()
    actual = binned_ranks(hidden, relevance, valid, bins=Bins(7))
    expected = binned_ranks(scores, relevance, valid, bins=Bins(7))
    for name in ("rank", "hrank", "weight"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))
    assert torch.equal(gradient(actual, hidden), gradient(expected, scores))
    assert not gradient(actual, hidden)[~valid].any()


def test_a_query_without_relevant_items_has_zeros_and_a_zero_gradient():
    scores, relevance, valid = untied_ranking(4, 9, relevant=0.6)
    relevance[1], valid[2] = 0, False
    ranks = binned_ranks(scores.requires_grad_(), relevance, valid, bins=Bins(6))
    precision = average_precision(ranks)
    assert precision[1:3].tolist() == [0, 0]
    (grad,) = torch.autograd.grad(precision.sum(), scores)
    assert torch.isfinite(grad).all()
    assert grad[0].any()
    assert not grad[1:3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_without_an_item_have_finite_gradients(dtype):
    scores = torch.tensor([[-0.31, -0.33], [0.7, 0.71]], dtype=dtype, requires_grad=True)
    everything = torch.ones(2, 2, dtype=torch.bool)
    relevance = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=dtype)
    average_precision(binned_ranks(scores, relevance, everything, bins=Bins(50))).sum().backward()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("shape", [(3, 0), (0, 4)], ids=str)
def test_nothing_to_rank_is_empty_bins(shape):
    scores = torch.randn(shape).requires_grad_()
    ranks = binned_ranks(scores, torch.zeros(shape), torch.ones(shape, dtype=torch.bool), bins=Bins(5))
    assert ranks.num_queries == shape[0]
    assert ranks.weight.tolist() == ranks.hrank.tolist() == [0] * shape[0] * 5
    assert torch.equal(gradient(ranks, scores), torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_have_the_precision_of_the_scores(dtype):
    scores, relevance, valid = untied_ranking(4, 300)
    exact_scores, scores = scores.requires_grad_(), scores.detach().to(dtype).requires_grad_()
    ranks = binned_ranks(scores, relevance.bool(), valid, bins=Bins(10))
    expected = binned_ranks(exact_scores, relevance, valid, bins=Bins(10))
    for name in ("rank", "hrank", "weight"):
        actual = getattr(ranks, name)
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), getattr(expected, name), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(gradient(ranks, scores).double(), gradient(expected, exact_scores), rtol=1e-5, atol=1e-5)


def test_a_large_gallery_costs_no_precision():
    generator = torch.Generator().manual_seed(0)
    scores = 1.6 * torch.rand(8, 60_000, generator=generator) - 0.8
    relevance = torch.arange(60_000).expand(8, -1) < 4
    scores[:, :4] = 0.75 + 0.2 * torch.rand(8, 4, generator=generator)
    everything = torch.ones_like(relevance)
    single = average_precision(binned_ranks(scores, relevance, everything, bins=Bins(25)))
    double = average_precision(binned_ranks(scores.double(), relevance, everything, bins=Bins(25)))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_memory_layout_is_irrelevant():
    scores, relevance, valid = (tensor.T for tensor in untied_ranking(6, 9))
    copy = scores.contiguous().requires_grad_()
    scores.requires_grad_()
    actual = binned_ranks(scores, relevance, valid, bins=Bins(5))
    expected = binned_ranks(copy, relevance.contiguous(), valid.contiguous(), bins=Bins(5))
    torch.testing.assert_close(actual.rank, expected.rank)
    torch.testing.assert_close(gradient(actual, scores), gradient(expected, copy))


def test_inputs_are_left_alone():
    inputs = untied_ranking(4, 9)
    copies = [tensor.clone() for tensor in inputs]
    gradient(binned_ranks(inputs[0].requires_grad_(), *inputs[1:], bins=Bins(5)), inputs[0])
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_backward_is_once_differentiable():
    scores, relevance, valid = untied_ranking(4, 9)
    precision = average_precision(binned_ranks(scores.requires_grad_(), relevance, valid, bins=Bins(5)))
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(precision.sum(), scores, create_graph=True)
