import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, ndcg_score

from dml.ranking.exact import exact_ranks
from dml.ranking.measures import (
    average_precision,
    average_precision_at_k,
    average_set_intersection,
    found_at_k,
    mean_average_precision_at_r,
    ndcg,
    precision_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
)
from dml.ranking.pairwise import pairwise_ranks
from dml.ranking.ranks import Ranks
from dml.ranking.steps import Sigmoid

GRID = [*np.linspace(-1, 1, 9).tolist(), -0.0]  # few values: many ties, half of them negative


def at_2(measure):
    def measured(ranks):
        return measure(ranks, 2)

    measured.__name__ = f"{measure.__name__} 2"
    return measured


WHOLE = [average_precision, average_set_intersection, mean_average_precision_at_r, ndcg, r_precision, reciprocal_rank]
CUT = [average_precision_at_k, found_at_k, ndcg, recall_at_k]
every_measure = pytest.mark.parametrize("measure", [*WHOLE, *map(at_2, CUT)], ids=lambda f: f.__name__)


@st.composite
def binary_rankings(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    scores = draw(arrays(np.float64, shape, elements=st.sampled_from(GRID)))
    return scores, draw(arrays(bool, shape)), draw(arrays(bool, shape))


def ranks_of(scores, relevance, valid=None):
    """Exact ranks of one query, or of one per row."""
    scores, relevance = torch.tensor(scores, dtype=torch.float64), torch.tensor(relevance, dtype=torch.float64)
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else torch.tensor(valid).bool()
    return exact_ranks(torch.atleast_2d(scores), torch.atleast_2d(relevance), torch.atleast_2d(valid))


def assert_values(actual, *expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=1e-10, atol=1e-10)


def test_a_list_without_ties():
    # relevant items have ranks 1, 3, 5 and, among themselves, 1, 2, 3; R = 3
    ranks = ranks_of([0.9, 0.8, 0.1, -0.6, -0.9], [1, 0, 1, 0, 1])
    assert_values(average_precision(ranks), (1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert_values(r_precision(ranks), 2 / 3)
    assert_values(mean_average_precision_at_r(ranks), (1 / 1 + 2 / 3) / 3)
    assert_values(recall_at_k(ranks, 1), 1)
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert_values(ndcg(ranks), (1 + 1 / np.log2(4) + 1 / np.log2(6)) / ideal)


def test_the_first_relevant_item_decides_recall():
    ranks = ranks_of([0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 1, 0, 1])  # two irrelevant items above it
    assert [recall_at_k(ranks, k).item() for k in (1, 2, 3, 4, 5, 100)] == [0, 0, 1, 1, 1, 1]


def test_irrelevant_items_tied_with_a_relevant_one_are_above_it():
    # relevant items: rank 2, 1 among themselves; rank 3, 2 among themselves; R = 2
    ranks = ranks_of([0.9, 0.9, 0.5], [0, 1, 1])
    assert_values(average_precision(ranks), (1 / 2 + 2 / 3) / 2)
    assert_values(r_precision(ranks), 1 / 2)
    assert_values(mean_average_precision_at_r(ranks), (1 / 2) / 2)
    assert [recall_at_k(ranks, k).item() for k in (1, 2)] == [0, 1]


def test_relevant_items_tied_with_each_other_cost_nothing():
    # three relevant items share the first place: rank 3, 3 among themselves
    ranks = ranks_of([0.9, 0.9, 0.9, -0.1], [1, 1, 1, 0])
    assert_values(average_precision(ranks), (3 / 3 + 3 / 3 + 3 / 3) / 3)
    assert_values(r_precision(ranks), 1)
    assert_values(mean_average_precision_at_r(ranks), 1)
    assert_values(recall_at_k(ranks, 1), 1)


def test_a_tie_across_the_cut_is_outside():
    # R = 2; the second relevant item ties with an irrelevant one for the places 2 and 3: rank 3
    ranks = ranks_of([0.9, 0.5, 0.5], [1, 1, 0])
    assert_values(average_precision(ranks), (1 / 1 + 2 / 3) / 2)
    assert_values(r_precision(ranks), 1 / 2)
    assert_values(mean_average_precision_at_r(ranks), (1 / 1) / 2)


def test_graded_relevance_makes_average_precision_hierarchical():
    # relevance 1/3, 1, 0, 2/3 in this order:
    #   rank 1, hrank 1/3;   rank 2, hrank 1 + min(1, 1/3);   rank 4, hrank 2/3 + min(2/3, 1/3) + min(2/3, 1)
    ranks = ranks_of([0.9, 0.8, 0.7, 0.6], [1 / 3, 1, 0, 2 / 3])
    assert_values(average_precision(ranks), ((1 / 3) / 1 + (4 / 3) / 2 + (5 / 3) / 4) / (1 / 3 + 1 + 2 / 3))


def test_graded_relevance_is_the_gain_of_ndcg():
    # gains 1, 7, 0, 3 in this order; the item that would gain 15 is not in the gallery
    ranks = ranks_of([0.9, 0.8, 0.7, 0.6, 0.5], [1, 7, 0, 3, 15], [[1, 1, 1, 1, 0]])
    gained = 1 / np.log2(2) + 7 / np.log2(3) + 3 / np.log2(5)
    assert_values(ndcg(ranks), gained / (7 / np.log2(2) + 3 / np.log2(3) + 1 / np.log2(4)))


def test_tied_items_are_discounted_as_if_the_least_relevant_came_first():
    ranks = ranks_of([0.9, 0.9, 0.9], [0, 1, 0.5])
    assert_values(ndcg(ranks), (0.5 / np.log2(3) + 1 / np.log2(4)) / (1 + 0.5 / np.log2(3)))


@pytest.mark.parametrize("ties", ["pessimistic", "expected", "optimistic"])
def test_equal_items_of_the_class_do_not_spoil_a_perfect_ranking(ties):
    scores = torch.tensor([[0.9, 0.9, 0.9, 0.2, 0.1]])
    ranks = exact_ranks(scores, scores > 0.5, scores > 0, ties=ties)
    measures = (average_precision, ndcg, r_precision, mean_average_precision_at_r, reciprocal_rank)
    at_one = [measure(ranks, 1) for measure in (recall_at_k, precision_at_k, found_at_k, ndcg)]
    at_one.append(average_precision_at_k(ranks, 1))
    assert [value.item() for value in [*(measure(ranks) for measure in measures), *at_one]] == pytest.approx([1] * 10)


def test_weights_weigh_the_pairs():
    ranks = Ranks(
        query=torch.tensor([0, 0, 1]),
        relevance=torch.ones(3),
        rank=torch.tensor([1.0, 4.0, 2.0]),
        hrank=torch.tensor([1.0, 2.0, 1.0]),
        weight=torch.tensor([2.0, 0.5, 3.0]),
        num_queries=2,
    )
    assert_values(average_precision(ranks), (2 * 1 / 1 + 0.5 * 2 / 4) / (2 + 0.5), (3 * 1 / 2) / 3)


@every_measure
def test_queries_are_measured_apart(measure):
    scores = [[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6], [0.1, 0.1, 0.3, 0.1]]
    relevance = [[0, 0, 1, 1], [1, 0, 1, 0], [1, 0, 0, 1]]
    together = measure(ranks_of(scores, relevance))
    apart = [measure(ranks_of(*query)) for query in zip(scores, relevance, strict=True)]
    torch.testing.assert_close(together, torch.cat(apart))
    assert together[0] < together[1]


@every_measure
def test_a_perfect_list_scores_one(measure):
    assert_values(measure(ranks_of([0.9, 0.8, -0.7, -0.8, -0.9], [1, 1, 1, 0, 0])), 1)


@every_measure
def test_nothing_to_retrieve_scores_zero(measure):
    ranks = ranks_of([[0.9, 0.8], [0.9, 0.8], [0.9, 0.8]], [[0, 0], [1, 0], [0, 1]], [[1, 1], [1, 1], [1, 0]])
    assert_values(measure(ranks), 0, 1, 0)
    assert_values(measure(ranks_of(torch.zeros(2, 0).tolist(), torch.zeros(2, 0).tolist())), 0, 0)


@pytest.mark.parametrize("measure", [average_precision, ndcg])
def test_nothing_to_retrieve_has_a_zero_gradient(measure):
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]], requires_grad=True)
    relevance = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    step = Sigmoid(0.1)
    ranks = pairwise_ranks(scores, relevance, torch.ones(2, 3).bool(), positive_step=step, negative_step=step)
    measure(ranks).sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad[0].any()
    assert scores.grad[1].any()


@pytest.mark.parametrize(("num_relevant", "num_items"), [(1, 10), (3, 10), (7, 8)])
def test_collapsed_embeddings_score_chance(num_relevant, num_items):
    relevance = [1] * num_relevant + [0] * (num_items - num_relevant)
    ranks = ranks_of([0.5] * num_items, relevance)  # everything ties: rank = N, hrank = R
    assert_values(average_precision(ranks), num_relevant / num_items)
    num_irrelevant = num_items - num_relevant
    assert_values(r_precision(ranks), max(0, num_relevant - num_irrelevant) / num_relevant)  # irrelevant ones first
    among_first = max(0, num_relevant - num_irrelevant)
    assert_values(mean_average_precision_at_r(ranks), among_first / num_relevant * num_relevant / num_items)
    assert_values(recall_at_k(ranks, num_irrelevant), 0)
    assert_values(recall_at_k(ranks, num_irrelevant + 1), 1)


@settings(max_examples=50, deadline=None)
@given(binary_rankings())
def test_average_precision_is_that_of_scikit_learn(ranking):
    scores, relevant, valid = ranking
    assume((relevant & valid).any())
    actual = average_precision(ranks_of(*ranking))
    for query in np.flatnonzero((relevant & valid).any(axis=1)):
        kept = valid[query]
        expected = average_precision_score(relevant[query, kept], scores[query, kept])
        assert actual[query].item() == pytest.approx(expected, abs=1e-12)


@st.composite
def untied_gains(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 9)))
    scores = [draw(st.permutations(range(-4, shape[1] - 4))) for _ in range(shape[0])]
    gains = draw(arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.0, 1.0, 3.0, 7.0, 0.125])))
    return np.array(scores) / 4, gains, draw(arrays(bool, shape))


@settings(max_examples=50, deadline=None)
@given(untied_gains(), st.sampled_from([None, 1, 2, 5, 10]))
def test_ndcg_is_that_of_scikit_learn(ranking, k):
    scores, gains, valid = ranking
    actual = ndcg(ranks_of(*ranking), k)
    for query, kept in enumerate(valid):
        if kept.sum() > 1:  # scikit-learn refuses a gallery of one
            expected = ndcg_score(gains[query : query + 1, kept], scores[query : query + 1, kept], k=k)
            assert actual[query].item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(binary_rankings())
def test_measures_at_a_cut_match_counting(ranking):
    """Each measure restated over the list sorted against the query: by score, irrelevant items before relevant ones."""
    ranks = ranks_of(*ranking)
    for query, (scores, relevant, valid) in enumerate(zip(*ranking, strict=True)):
        scores, relevant = scores[valid], relevant[valid]
        listed = relevant[np.lexsort((relevant, -scores))]
        for k in range(1, 11):
            assert recall_at_k(ranks, k)[query] == listed[:k].any()

        precisions = []
        for place, hit in enumerate(listed, start=1):
            if hit and place <= relevant.sum():
                score = np.sort(scores)[::-1][place - 1]
                precisions.append((relevant & (scores >= score)).sum() / (scores >= score).sum())  # and who ties
        num_relevant = max(relevant.sum(), 1)
        assert r_precision(ranks)[query].item() == pytest.approx(listed[:num_relevant].sum() / num_relevant, abs=1e-12)
        assert mean_average_precision_at_r(ranks)[query].item() == pytest.approx(
            sum(precisions) / num_relevant, abs=1e-12
        )


@every_measure
@settings(max_examples=50, deadline=None)
@given(ranking=binary_rankings())
def test_measures_lie_between_zero_and_one(measure, ranking):
    values = measure(ranks_of(*ranking))
    assert values.shape == (len(ranking[0]),)
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()


@settings(max_examples=50, deadline=None)
@given(ranking=binary_rankings())
def test_recall_grows_with_k_until_everything_is_found(ranking):
    scores, relevant, valid = ranking
    ranks = ranks_of(*ranking)
    recalls = torch.stack([recall_at_k(ranks, k) for k in range(1, scores.shape[1] + 1)])
    assert (recalls.diff(dim=0) >= 0).all()
    assert recalls[-1].bool().tolist() == (relevant & valid).any(axis=1).tolist()


@every_measure
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measures_have_the_precision_of_the_ranks(measure, dtype):
    scores, everything = torch.rand(3, 5).to(dtype), torch.ones(3, 5, dtype=torch.bool)
    assert measure(exact_ranks(scores, scores > 0.5, everything)).dtype == dtype


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "expected"])
@settings(max_examples=50, deadline=None)
@given(ranking=binary_rankings())
def test_measures_of_the_first_item_agree(ties, ranking):
    scores, relevant, valid = map(torch.tensor, ranking)
    ranks = exact_ranks(scores, relevant, valid, ties=ties)
    first = recall_at_k(ranks, 1)
    for measure in (precision_at_k, found_at_k):
        torch.testing.assert_close(measure(ranks, 1), first)
    assert (reciprocal_rank(ranks) >= first - 1e-12).all()
    for k in range(1, 11):
        assert (recall_at_k(ranks, k) >= precision_at_k(ranks, k) - 1e-12).all()
        assert (recall_at_k(ranks, k) >= found_at_k(ranks, k) - 1e-12).all()
    if ties == "pessimistic":  # without the others, a cut at the length of the list is no cut
        torch.testing.assert_close(average_precision_at_k(ranks, 9), average_precision(ranks))
        torch.testing.assert_close(ndcg(ranks, 9), ndcg(ranks))


def test_a_list_without_ties_at_k():
    # ranks 1, 3, 4 of 3
    ranks = ranks_of([0.9, 0.8, 0.1, -0.6, -0.9], [1, 0, 1, 1, 0])
    assert_values(
        torch.cat([average_precision_at_k(ranks, k) for k in (1, 2, 3, 9)]), 1, 1 / 2, 5 / 9, (5 / 3 + 3 / 4) / 3
    )
    assert_values(torch.cat([precision_at_k(ranks, k) for k in (1, 2, 3, 9)]), 1, 1 / 2, 2 / 3, 3 / 9)
    assert_values(torch.cat([found_at_k(ranks, k) for k in (1, 2, 3, 9)]), 1, 1 / 2, 2 / 3, 1)
    assert_values(reciprocal_rank(ranks_of([0.9, 0.8, 0.7], [0, 0, 1])), 1 / 3)


def test_set_intersection_of_levels():
    # levels 1, 2, 0, 2; of the best order 2, 2, 1, and R = 3: 0 / 1, 1 / 2 and 2 / 3 are shared
    assert_values(average_set_intersection(ranks_of([0.9, 0.8, 0.7, 0.6], [1, 2, 0, 2])), (0 + 1 / 2 + 2 / 3) / 3)
    assert_values(average_set_intersection(ranks_of([0.9, 0.8, 0.7], [2, 2, 1])), 1)
