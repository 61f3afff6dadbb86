"""HierarchicalMetrics beside SupRank's values and, with ties, plain counting."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.metrics import HierarchicalMetrics, RetrievalMetrics, Search
from tests.metrics.test_retrieval import ANSWERS, CORNERS, golden_batch

# Classes of three levels, nested; the first column is the finest. One fine and one middle class have a single name.
TREE = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 1, 0], [3, 2, 0], [4, 3, 1], [5, 3, 1], [6, 4, 1]])


def metrics_of(embeddings, labels, index, *roles, **options):
    metrics = HierarchicalMetrics(**{"recall_at": (1, 2), **options})
    metrics.update(embeddings, labels, index, *roles)
    return metrics


def tree_batch(size=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = TREE[torch.randint(len(TREE), (size,), generator=generator)]
    corner = torch.randint(len(CORNERS), (size,), generator=generator)
    return torch.from_numpy(CORNERS)[corner], labels, torch.randperm(3 * size, generator=generator)[:size]


def graded(scores, relevance):
    """Average precision of graded relevance, by counting; ties count against."""
    total = 0
    for score, own in zip(scores, relevance, strict=True):
        above = scores >= score
        total += np.minimum(own, relevance[above]).sum() / above.sum() if own else 0
    return total / relevance.sum()


def discounted(scores, gains):
    discounts = np.log2(np.arange(len(gains)) + 2)
    listed = gains[np.lexsort((gains, -scores))]  # of one score, the least relevant first
    return (listed / discounts).sum() / (np.sort(gains)[::-1] / discounts).sum()


def intersection(scores, shared):
    """ASI as it is defined, with the multiset of levels that the first k share; of one score, the fewest first."""
    number = (shared > 0).sum()
    listed, best = shared[np.lexsort((shared, -scores))], np.sort(shared)[::-1]
    total = 0
    for k in range(1, number + 1):
        first, ideal = listed[:k], best[:k]
        total += sum(min((first == level).sum(), (ideal == level).sum()) for level in set(shared) - {0}) / k
    return total / number


def brute_force(embeddings, labels, index, is_query, is_gallery, alpha):
    """Values of each query that has something to retrieve: {index: {name: value}}, without those it lacks."""
    answers = {}
    for query in range(len(index)):
        gallery = [other for other in range(len(index)) if is_gallery[other] and other != query]
        scores = (embeddings[gallery].double() @ embeddings[query].double()).numpy()
        shared = (labels[gallery] == labels[query]).sum(dim=1).numpy()
        if not is_query[query] or not shared.any():
            continue
        num_levels = labels.shape[1]
        population = np.bincount(shared, minlength=num_levels + 1)
        population[num_levels] += is_gallery[query]
        relevance = (shared / num_levels) ** alpha * (shared > 0) / np.maximum(population[shared], 1)
        values = {"H-AP": graded(scores, relevance), "nDCG": discounted(scores, 2.0**shared - 1)}
        values["ASI"] = intersection(scores, shared)
        for level, suffix in enumerate(("", "_level1", "_level2")[:num_levels]):
            relevant, kept = shared >= num_levels - level, shared <= num_levels - level
            if relevant.any():
                values[f"AP{suffix}"] = graded(scores, relevant.astype(float))
                # Irrelevant items first
                values[f"R@1{suffix}"] = float(relevant[np.lexsort((relevant, -scores))][0])
            if level and (shared == num_levels - level).any():
                values[f"AP{suffix}_only"] = graded(scores[kept], (shared[kept] == num_levels - level).astype(float))
        answers[int(index[query])] = values
    return answers


def test_equals_suprank():
    embeddings, labels, index = golden_batch()
    values = metrics_of(embeddings, labels, index, also=["mAP@5", "mAP@10", "P@1", "found@2", "found@8"]).compute()
    expected = ANSWERS["suprank"]
    golden = {"H-AP": expected["H-AP"], "nDCG": expected["NDCG"], "ASI": expected["ASI"]}
    for level, suffix in (("level0", ""), ("level1", "_level1")):
        golden |= {f"{name}{suffix}": expected[level][name] for name in ("AP", "mAP@R", "P@1", "mAP@5", "mAP@10")}
        golden |= {f"R@{k}{suffix}": expected[level][f"R@{k}(any hit)"] for k in (1, 2)}
        golden |= {f"found@{k}{suffix}": expected[level][f"recall@{k}(found/min(R,k))"] for k in (2, 8)}
    assert {name: values[name].item() for name in golden} == pytest.approx(golden, abs=1e-6)


@pytest.mark.parametrize("roles", ["everything", "some"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0.0, 1.0, 2.5]), block_size=st.sampled_from([None, 3]))
def test_matches_counting(roles, seed, alpha, block_size):
    embeddings, labels, index = tree_batch(12, seed)
    drawn = torch.rand(2, 12, generator=torch.Generator().manual_seed(seed)) < (2 if roles == "everything" else 0.7)
    expected = brute_force(embeddings, labels, index, *drawn, alpha)
    metrics = metrics_of(embeddings, labels, index, *drawn, alpha=alpha, only=True, block_size=block_size)
    queries, values = metrics.per_query()
    assert queries.tolist() == sorted(expected)
    assert metrics.num_unanswerable == drawn[0].sum() - len(expected)
    names = {name for answer in expected.values() for name in answer}
    for name in names:
        wanted = [expected[query].get(name, np.nan) for query in queries.tolist()]
        assert values[name].tolist() == pytest.approx(wanted, abs=2e-6, nan_ok=True), name
        assert metrics.compute()[name].item() == pytest.approx(np.nanmean(wanted), abs=2e-6), name


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "expected"])
def test_each_level_is_that_of_the_metric_of_one_level(ties):
    items, search = tree_batch(60), Search(ties=ties)
    options = {"recall_at": (1, 4), "also": ["MRR", "found@3", "mAP@5", "P@2"], "search": search}
    queries, values = metrics_of(*items, **options).per_query()
    for level, suffix in enumerate(("", "_level1", "_level2")):
        alone = RetrievalMetrics(level=level, **options)
        alone.update(*items)
        index, expected = alone.per_query()
        answered = torch.isin(queries, index)
        for name, value in expected.items():
            torch.testing.assert_close(values[f"{name}{suffix}"][answered], value, rtol=0, atol=1e-6)
            assert values[f"{name}{suffix}"][~answered].isnan().all()


def test_levels_of_equal_relevance_are_no_different_from_others():
    # The query's own class has two images, itself counted: 1 / 2. The class above has one more: 1/2 / 1, the same.
    labels = torch.tensor([[0, 0], [0, 0], [1, 0], [2, 1]])
    angle = torch.tensor([0.0, 0.5, 0.3, 0.1])
    metrics = metrics_of(torch.stack([angle.cos(), angle.sin()], dim=1), labels, torch.arange(4))
    # In order: irrelevant, 1/2, 1/2
    assert metrics.per_query()[1]["H-AP"][0].item() == pytest.approx((0.5 / 2 + 1 / 3) / 1, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_of_one_level_grades_are_all_the_same(alpha):
    embeddings, labels, index = tree_batch(30)
    values = metrics_of(embeddings, labels[:, 0], index, alpha=alpha, only=True).compute()
    assert values["H-AP"].item() == pytest.approx(values["AP"].item(), abs=1e-6)
    assert values["AP_mean"] == values["AP"]
    assert not any(name.endswith(("_only", "_level1")) for name in values)


def test_one_image_of_a_class_has_nothing_to_retrieve_but_in_the_class_above():
    embeddings, labels = torch.eye(4)[[0, 0, 1, 1]], torch.tensor([[0, 0], [1, 0], [2, 1], [2, 1]])
    metrics = metrics_of(embeddings, labels, torch.arange(4))
    queries, values = metrics.per_query()
    assert queries.tolist() == [0, 1, 2, 3]
    assert values["AP"].isnan().tolist() == [True, True, False, False]
    assert values["AP_level1"].tolist() == [1, 1, 1, 1]
    assert metrics.compute()["AP"] == 1
    assert metrics.num_unanswerable == 0


def test_mean_of_levels_is_that_of_their_means():
    """A query without an item of its finest class counts in the levels where it has something to retrieve."""
    metrics = metrics_of(*tree_batch(12))
    values = metrics.compute()
    assert metrics.per_query()[1]["AP"].isnan().any()
    for name in ("AP", "mAP@R", "R@1"):
        levels = torch.stack([values[name], values[f"{name}_level1"], values[f"{name}_level2"]])
        torch.testing.assert_close(values[f"{name}_mean"], levels.mean())


def test_levels_are_called_what_the_dataset_calls_them():
    metrics = HierarchicalMetrics(recall_at=(1,), only=True, also=["nDCG@2"])
    metrics.begin(SimpleNamespace(levels=("variant", "family", "maker")))
    metrics.update(*tree_batch())
    names = {"AP", "mAP@R", "RP", "R@1", "nDCG@2"}
    expected = names | {f"{name}{end}" for name in names for end in ("_family", "_maker", "_mean")}
    expected |= {f"{name}{end}_only" for name in names for end in ("_family", "_maker")} | {"H-AP", "nDCG", "ASI"}
    assert metrics.compute().keys() == expected
    assert {"AP", "AP_level1", "AP_level2"} <= metrics_of(*tree_batch()).compute().keys()


@pytest.mark.parametrize("apart", [False, True])
def test_labels_that_are_not_nested_are_refused(apart):
    labels = torch.tensor([[0, 0, 7], [0, 0, 7], [1, 0, 8], [2, 1, 7]])
    roles = (torch.arange(4) < 2, torch.arange(4) > 1) if apart else ()  # queries and gallery contradict each other
    with pytest.raises(ValueError, match="level 1 are not nested in those of level 2: 0 is in"):
        metrics_of(torch.eye(4), labels, torch.arange(4), *roles).compute()


@pytest.mark.parametrize("alpha", [-0.5, torch.nan])
def test_alpha_must_not_be_negative(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}; it must be at least 0"):
        HierarchicalMetrics(alpha=alpha)


def test_nothing_to_retrieve_at_any_level_is_zero():
    metrics = metrics_of(torch.eye(3), torch.arange(3)[:, None].repeat(1, 2), torch.arange(3), only=True)
    with pytest.warns(UserWarning, match="no query"):
        values = metrics.compute()
    assert set(map(float, values.values())) == {0.0}
    assert metrics.num_unanswerable == 3


@pytest.mark.parametrize("ties", ["optimistic", "expected"])
def test_collapsed_embeddings_are_worth_what_their_order_is(ties):
    items = torch.ones(21, 4) / 2, TREE.repeat(3, 1), torch.arange(21)
    values = metrics_of(*items, search=Search(ties=ties)).compute()
    names = ("H-AP", "nDCG", "ASI", "AP", "AP_level2", "R@1")
    for name in names:
        assert (values[name].item() == pytest.approx(1, abs=1e-6)) == (ties == "optimistic"), name
