import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.ranking.binned import Bins, binned_ranks
from dml.ranking.measures import tie_aware_average_precision
from dml.ranking.ranks import Ranks
from tests.ranking.rankings import GRID, rankings, untied_ranking

every_variant = pytest.mark.parametrize("simplified", [False, True], ids=["logarithm", "simplified"])


def ranks_of(items, relevant):
    """Binned ranks with these numbers of items and of relevant items in the bins of each query ``[Q, bins]``."""
    items, relevant = torch.as_tensor(items).double(), torch.as_tensor(relevant).double()
    query = torch.arange(len(items)).repeat_interleave(items.shape[1])
    rank, hrank = items.cumsum(dim=1).flatten(), relevant.cumsum(dim=1).flatten()
    return Ranks(query, torch.ones_like(rank), rank, hrank, relevant.flatten(), len(items))


def restated(items, relevant, simplified):
    """One query, bin by bin, under autograd; bins without a relevant item add nothing."""
    items_above = relevant_above = total = 0.0
    for c, c_relevant in zip(items, relevant, strict=True):
        if simplified:
            total = total + c_relevant * (2 * relevant_above + c_relevant + 1) / (2 * items_above + c + 1)
        elif c_relevant > 0:
            ratio = (c_relevant - 1) / (c - 1) if c_relevant > 1 else 0.0
            logarithm = torch.log((items_above + c + 1) / (items_above + 1))
            rest = relevant_above + 1 - ratio * (items_above + 1)
            total = total + c_relevant * (c * ratio + rest * logarithm) / c
        items_above, relevant_above = items_above + c, relevant_above + c_relevant
    return total / relevant.sum() if relevant.sum() > 0 else 0 * total


# 2 items, 1 of them relevant; none; 3 items, 2 of them relevant
ITEMS, RELEVANT = [[2, 0, 3]], [[1, 0, 2]]


def test_a_worked_example():
    first = 1 / 2 * (0 + (0 + 1 - 0) * math.log(3 / 1))
    third = 2 / 3 * (3 * 1 / 2 + (1 + 1 - 1 / 2 * 3) * math.log(6 / 3))
    actual = tie_aware_average_precision(ranks_of(ITEMS, RELEVANT))
    assert actual.tolist() == pytest.approx([(first + third) / 3], abs=1e-6)


def test_a_worked_example_of_the_simplified_variant():
    first, third = 1 * (0 + 1 + 1) / (0 + 2 + 1), 2 * (1 + 3 + 1) / (2 + 5 + 1)
    actual = tie_aware_average_precision(ranks_of(ITEMS, RELEVANT), simplified=True)
    assert actual.tolist() == pytest.approx([(first + third) / 3], abs=1e-12)


@every_variant
@pytest.mark.parametrize("num_items", [1, 3, 10])
def test_only_relevant_items_in_the_first_bin_are_perfect(simplified, num_items):
    ranks = ranks_of([[num_items, 4]], [[num_items, 0]])
    perfect = pytest.approx(1 if num_items > 1 or simplified else math.log(2), abs=1e-6)
    assert tie_aware_average_precision(ranks, simplified=simplified).item() == perfect


@every_variant
def test_the_higher_a_bin_the_more_it_counts(simplified):
    items = [[5, 5, 5]] * 3
    values = tie_aware_average_precision(ranks_of(items, torch.eye(3) * 2), simplified=simplified).tolist()
    assert values == sorted(values, reverse=True)
    assert values[0] > values[1] > values[2] > 0


@st.composite
def histograms(draw):
    """Numbers of items and of relevant items in up to 5 bins, most of them not whole."""
    number = st.sampled_from([0.0, 0.25, 1.0, 1.5, 2.75, 7.0])
    relevant = torch.tensor(draw(st.lists(number, min_size=1, max_size=5)), dtype=torch.float64)
    others = draw(st.lists(number, min_size=len(relevant), max_size=len(relevant)))
    return relevant + torch.tensor(others, dtype=torch.float64), relevant


@every_variant
@settings(max_examples=100, deadline=None)
@given(histogram=histograms())
def test_matches_its_formula(simplified, histogram):
    actual = tie_aware_average_precision(
        ranks_of(*(values.unsqueeze(0) for values in histogram)), simplified=simplified
    )
    torch.testing.assert_close(actual.sum(), torch.as_tensor(restated(*histogram, simplified)).double())


@every_variant
def test_queries_are_measured_apart(simplified):
    items, relevant = torch.tensor([[2, 0, 3], [0, 4, 1], [3, 3, 3]]), torch.tensor([[1, 0, 2], [0, 1, 1], [0, 0, 3]])
    together = tie_aware_average_precision(ranks_of(items, relevant), simplified=simplified)
    expected = [float(restated(*query, simplified)) for query in zip(items.double(), relevant.double(), strict=True)]
    assert together.tolist() == pytest.approx(expected, abs=1e-6)


@every_variant
def test_gradient_of_binned_scores_matches_the_formula(simplified):
    bins = Bins(5)
    scores, relevance, valid = untied_ranking(6, 30, relevant=0.5)
    scores.requires_grad_()
    actual = tie_aware_average_precision(binned_ranks(scores, relevance, valid, bins=bins), simplified=simplified)

    distance = (scores.clamp(-1, 1).unsqueeze(2) - torch.linspace(1, -1, 5)).abs() / 0.5  # [Q, N, bins]
    mass = (1 - distance).clamp(min=0) * valid.unsqueeze(2)
    items, relevant = mass.sum(dim=1), (mass * relevance.unsqueeze(2)).sum(dim=1)
    expected = torch.stack([restated(*query, simplified) for query in zip(items, relevant, strict=True)])
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad((value * torch.arange(1, 7)).sum(), scores)[0] for value in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_bins", [3, 10, 50])
def test_empty_bins_and_queries_have_finite_gradients(simplified, dtype, num_bins):
    scores, relevance, valid = untied_ranking(6, 7, relevant=0.6, dtype=dtype)
    scores, scores[4] = scores / 4, 0.5
    relevance[1], valid[2], relevance[3] = 0, False, 1
    ranks = binned_ranks(scores.requires_grad_(), relevance, valid, bins=Bins(num_bins))
    value = tie_aware_average_precision(ranks, simplified=simplified)
    assert value.dtype == dtype
    assert value[1:3].tolist() == [0, 0]
    assert torch.isfinite(value).all()
    value.sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[0].any()
    assert not scores.grad[1:3].any()


@every_variant
@pytest.mark.parametrize("bins", [Bins(5), Bins(9), Bins(3, -0.4, 0.3)], ids=str)
@settings(max_examples=50, deadline=None)
@given(ranking=rankings(scores=(*GRID, 0.013, 1.2)))
def test_it_lies_between_zero_and_one(simplified, bins, ranking):
    value = tie_aware_average_precision(binned_ranks(*ranking, bins=bins), simplified=simplified)
    assert value.shape == (len(ranking[0]),)
    assert ((value >= 0) & (value <= 1 + 1e-6)).all()


@every_variant
def test_no_query_has_no_precision(simplified):
    scores = torch.zeros(0, 4)
    ranks = binned_ranks(scores, scores, scores.bool(), bins=Bins(5))
    assert tie_aware_average_precision(ranks, simplified=simplified).shape == (0,)
