"""Ties, beside every order that the items of one score may come in."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from dml.ranking import exact
from dml.ranking.exact import exact_ranks, ranks_of_pairs
from dml.ranking.measures import (
    average_precision,
    average_precision_at_k,
    found_at_k,
    mean_average_precision_at_r,
    ndcg,
    precision_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
)

KS = (1, 2, 3, 5, 9)
GRADED = {"AP": average_precision, "nDCG": ndcg, **{f"nDCG@{k}": lambda ranks, k=k: ndcg(ranks, k) for k in KS}}
BINARY = {
    **GRADED,
    "mAP@R": mean_average_precision_at_r,
    "RP": r_precision,
    "MRR": reciprocal_rank,
    **{f"mAP@{k}": lambda ranks, k=k: average_precision_at_k(ranks, k) for k in KS},
    **{f"P@{k}": lambda ranks, k=k: precision_at_k(ranks, k) for k in KS},
    **{f"found@{k}": lambda ranks, k=k: found_at_k(ranks, k) for k in KS},
    **{f"R@{k}": lambda ranks, k=k: recall_at_k(ranks, k) for k in KS},
}
# Where ties count against, these are those of the worst order. Of the others, relevant items of one score share a rank.
LISTED = {"RP", "MRR"} | {f"{name}@{k}" for name in ("P", "found", "R") for k in KS}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}


def of_list(listed):
    """Every measure of one query from the relevance of the first item, the second and so on."""
    number = sum(value > 0 for value in listed)
    hits = [place for place, value in enumerate(listed) if value]
    hranks = [sum(min(listed[place], other) for other in listed[: place + 1]) for place in hits]
    precision = {place: hrank / (place + 1) for place, hrank in zip(hits, hranks, strict=True)}

    def gained(values, k):
        return sum(value / math.log2(place + 2) for place, value in enumerate(values[:k]))

    best, cuts = sorted(listed, reverse=True), {f"nDCG@{k}": k for k in KS} | {"nDCG": len(listed)}
    values = {"AP": sum(precision.values()) / sum(listed)}
    values |= {name: gained(listed, k) / gained(best, k) for name, k in cuts.items()}
    values |= {"MRR": 1 / (hits[0] + 1), "RP": sum(place < number for place in hits) / number}
    for name, k, room in (("mAP@R", number, number), *((f"mAP@{k}", k, min(k, number)) for k in KS)):
        values[name] = sum(precision[place] for place in hits if place < k) / room
    for k in KS:
        found = sum(place < k for place in hits)
        values |= {f"P@{k}": found / k, f"found@{k}": found / min(k, number), f"R@{k}": float(found > 0)}
    return values


def over_all_orders(scores, relevance):
    """Of each measure, its worst value, its mean and its best over the orders of the items of one score."""
    groups = [[item for item, other in zip(relevance, scores, strict=True) if other == score] for score in set(scores)]
    groups = [group for _, group in sorted(zip(set(scores), groups, strict=True), key=lambda pair: -pair[0])]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    count = Counter(tuple(itertools.chain(*order)) for order in orders)
    tables = [(of_list(listed), times) for listed, times in count.items()]
    for name in tables[0][0]:
        values = [table[name] for table, _ in tables]
        mean = sum(table[name] * times for table, times in tables) / sum(count.values())
        yield name, min(values), mean, max(values)


@st.composite
def tied_lists(draw, values):
    items = draw(
        st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 0.25]), st.sampled_from(values)), min_size=1, max_size=6)
    )
    assume(any(relevance for _, relevance in items))
    return tuple(zip(*items, strict=True))


def ranks_of(scores, relevance, ties, dtype=torch.float64):
    """Exact ranks of the middle one of three queries; the others have nothing to retrieve and one thing."""
    scores = torch.tensor([scores] * 3, dtype=dtype)
    relevance = torch.tensor([[0.0] * len(relevance), relevance, [1.0] + [0.0] * (len(relevance) - 1)], dtype=dtype)
    return exact_ranks(scores, relevance, torch.ones_like(scores, dtype=torch.bool), ties=ties)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("measures", "values"), [(BINARY, [0.0, 1.0]), (GRADED, [0.0, 0.25, 1 / 3, 1.0])], ids=["binary", "graded"]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_measures_are_those_of_all_orders(measures, values, dtype, data):
    scores, relevance = data.draw(tied_lists(values))
    pessimistic, expected, optimistic = (
        ranks_of(scores, relevance, ties, dtype) for ties in ("pessimistic", "expected", "optimistic")
    )
    for name, worst, mean, best in over_all_orders(scores, relevance):
        if name not in measures:
            continue
        measure, tolerance = measures[name], TOLERANCE[dtype]
        assert measure(optimistic)[1].item() == pytest.approx(best, abs=tolerance), (name, "optimistic")
        assert measure(expected)[1].item() == pytest.approx(mean, abs=tolerance), (name, "expected")
        if name.startswith("nDCG"):
            assert measure(pessimistic)[1].item() <= worst + tolerance, (name, "pessimistic")
        elif name in LISTED:
            assert measure(pessimistic)[1].item() == pytest.approx(worst, abs=tolerance), (name, "pessimistic")


@settings(max_examples=60, deadline=None)
@given(tied_lists([0.0, 1.0]))
def test_pessimistic_average_precision_is_that_of_scikit_learn(items):
    scores, relevance = items
    actual = average_precision(ranks_of(scores, relevance, "pessimistic"))[1].item()
    assert actual == pytest.approx(average_precision_score(relevance, scores), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("num_relevant", [3, 40])
def test_without_ties_there_is_one_value(num_relevant, dtype):
    scores = torch.randn(5, 60, generator=torch.Generator().manual_seed(0), dtype=dtype)
    relevance = torch.zeros_like(scores)
    relevance[:, :num_relevant] = 1
    ranks = [
        exact_ranks(scores, relevance, scores.isfinite(), ties=ties)
        for ties in ("pessimistic", "expected", "optimistic")
    ]
    for name, measure in BINARY.items():
        for each in ranks[1:]:
            expected = measure(ranks[0]).to(each.rank.dtype)
            torch.testing.assert_close(measure(each), expected, rtol=0, atol=TOLERANCE[dtype], msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("graded", [False, True], ids=["binary", "graded"])
@pytest.mark.parametrize("ties", ["pessimistic", "expected", "optimistic"])
def test_counting_and_sorting_agree(monkeypatch, ties, graded, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randint(-9, 9, (12, 200), generator=generator) / 9).to(dtype)
    chance = torch.linspace(0, 0.4, 12)[:, None]  # none to about eighty relevant items
    relevance = (torch.rand(scores.shape, generator=generator) < chance) * torch.randint(
        1, 4 if graded else 2, scores.shape, generator=generator
    )
    valid = torch.rand(scores.shape, generator=generator) < 0.9
    for many, other in ((1, 10**9), (24, 10**9)):
        monkeypatch.setattr(exact, "_MANY_RELEVANT", many)
        actual = exact_ranks(scores, relevance.to(dtype), valid, ties=ties)
        monkeypatch.setattr(exact, "_MANY_RELEVANT", other)
        expected = exact_ranks(scores, relevance.to(dtype), valid, ties=ties)
        for name, column in actual._asdict().items():
            assert column is None or torch.equal(torch.as_tensor(column), torch.as_tensor(getattr(expected, name))), (
                name
            )


def expected_by_groups(scores, relevant):
    """Expectations of one query by the formulas of McSherry and Najork, in plain loops."""
    number, above, found = int(relevant.sum()), 0, 0
    chance = np.zeros(len(scores))  # that a place is relevant
    precision = np.zeros(len(scores))  # of a place, where it is
    reciprocal, none_before = 0.0, True
    for score in sorted(set(scores.tolist()), reverse=True):
        items, hits = int((scores == score).sum()), int(relevant[scores == score].sum())
        for place in range(items):
            chance[above + place] = hits / items
            others = place * (hits - 1) / (items - 1) if items > 1 else 0
            precision[above + place] = (found + 1 + others) / (above + place + 1)
            if none_before and hits and place <= items - hits:
                first = math.comb(items - place - 1, hits - 1) / math.comb(items, hits)
                reciprocal += first / (above + place + 1)
        above, found, none_before = above + items, found + hits, none_before and not hits
    discount = 1 / np.log2(np.arange(len(scores)) + 2)
    return {
        "AP": (chance * precision).sum() / number,
        "mAP@R": (chance * precision)[:number].sum() / number,
        "RP": chance[:number].sum() / number,
        "MRR": reciprocal,
        "nDCG": (chance * discount).sum() / discount[:number].sum(),
        "P@9": chance[:9].sum() / 9,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("num_relevant", [1, 6, 23, 24, 300])
@pytest.mark.parametrize("num_scores", [1, 3, 40])
def test_expectations_of_long_lists(num_scores, num_relevant, dtype):
    rng = np.random.default_rng(0)
    scores, relevant = rng.integers(0, num_scores, 1000), np.zeros(1000)
    relevant[:num_relevant] = 1
    expected = expected_by_groups(scores, relevant)
    actual = ranks_of(scores.tolist(), relevant.tolist(), "expected", dtype)
    for name, value in expected.items():
        tolerance = 1e-10 if dtype == torch.float64 else 2e-5
        assert BINARY[name](actual)[1].item() == pytest.approx(value, abs=tolerance), name


def test_places_of_a_collapsed_gallery_are_counted_to_the_last():
    """Weights of many places still sum to the number of relevant items."""
    scores, relevance = torch.zeros(2, 60_000), torch.zeros(2, 60_000)
    relevance[:, :10] = 1
    ranks = exact_ranks(scores, relevance, relevance >= 0, ties="expected")
    assert ranks.sum_per_query(ranks.weight).tolist() == pytest.approx([10, 10], rel=1e-5)
    assert recall_at_k(ranks, 60_000).tolist() == pytest.approx([1, 1], rel=1e-4)


def test_unknown_ties_are_refused():
    none = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"ties is 'random'.*pessimistic"):
        ranks_of_pairs(torch.zeros(1, 2), none, none, ties="random")
