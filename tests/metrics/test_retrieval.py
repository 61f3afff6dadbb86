import copy
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import normalize

from dml.metrics import RetrievalMetrics

GOLDENS = Path(__file__).parents[1] / "goldens"
RECALL_AT = (1, 2, 4, 8)
ANSWERS = json.loads((GOLDENS / "retrieval_metrics.json").read_text())
CORNERS = np.float32(list(itertools.product([-0.5, 0.5], repeat=4)))  # unit norm, scores in -1, -1/2, 0, 1/2, 1


def golden_batch():
    arrays = np.load(GOLDENS / "retrieval_metrics.npz")
    return torch.from_numpy(arrays["embeddings"]), torch.from_numpy(arrays["labels"]), torch.arange(58)


def batch(size=40, num_classes=9, seed=0):
    """Unit embeddings, two label levels, and indices in no order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (size,), generator=generator)
    embeddings = torch.randn(num_classes, 8, generator=generator)[labels] + torch.randn(size, 8, generator=generator)
    index = torch.randperm(5 * size, generator=generator)[:size]
    return normalize(embeddings, dim=1), torch.stack([labels, labels % 3], dim=1), index


def computed(embeddings, labels, index, *roles, **options):
    metrics = RetrievalMetrics(**{"recall_at": RECALL_AT, **options})
    metrics.update(embeddings, labels, index, *roles)
    return metrics.compute()


def assert_same(actual, expected, tolerance=1e-6):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(float(value), abs=tolerance), name


def by_index(per_query):
    index, values = per_query
    order = index.argsort()
    return index[order].tolist(), {name: value[order] for name, value in values.items()}


def brute_force(embeddings, labels, index, is_query, is_gallery):
    """Each measure of each query by counting, in python: {index: {name: value}}. Ties count against."""
    answers = {}
    for query in range(len(index)):
        gallery = [other for other in range(len(index)) if is_gallery[other] and index[other] != index[query]]
        scores = np.array([float(embeddings[query] @ embeddings[other]) for other in gallery])
        relevant = np.array([labels[query] == labels[other] for other in gallery], dtype=bool)
        if not is_query[query] or not relevant.any():
            continue
        num_relevant = relevant.sum()
        ranks = np.array([(scores >= score).sum() for score in scores[relevant]])
        precisions = np.array([(relevant & (scores >= score)).sum() for score in scores[relevant]]) / ranks
        listed = relevant[np.lexsort((relevant, -scores))]  # of one score, the irrelevant items first
        irrelevant_above = min((~relevant & (scores >= score)).sum() for score in scores[relevant])
        answers[int(index[query])] = {
            "AP": precisions.mean(),
            "mAP@R": np.sort(precisions[np.argsort(ranks, kind="stable")][: listed[:num_relevant].sum()]).sum()
            / num_relevant,
            "RP": listed[:num_relevant].mean(),
            **{f"R@{k}": float(irrelevant_above < k) for k in RECALL_AT},
        }
    return answers


@st.composite
def evaluations(draw):
    """Up to 12 items with tied and negative scores, classes of any size, and roles."""
    size = draw(st.integers(1, 12))
    embeddings = CORNERS[draw(arrays(np.int64, size, elements=st.integers(0, len(CORNERS) - 1)))]
    labels = draw(arrays(np.int64, size, elements=st.integers(0, 4)))
    index = np.array(draw(st.permutations(range(100, 100 + size))))
    return embeddings, labels, index, draw(arrays(bool, size)), draw(arrays(bool, size))


def assert_equals_golden(actual, golden):
    """SupRank and the query/gallery golden give no R-precision, and spell out what they take for recall."""
    theirs = {f"R@{k}": f"R@{k}(any hit)" for k in RECALL_AT}
    theirs |= {f"found@{k}": f"recall@{k}(found/min(R,k))" for k in RECALL_AT}
    names = actual.keys() - {"RP"}
    assert_same({name: actual[name] for name in names}, {name: golden[theirs.get(name, name)] for name in names})


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("block_size", [7, 1024])
def test_equals_suprank(level, block_size):
    also = ["P@1", "mAP@5", "mAP@10", *(f"found@{k}" for k in RECALL_AT)]
    actual = computed(*golden_batch(), level=level, block_size=block_size, also=also)
    assert_equals_golden(actual, ANSWERS["suprank"][f"level{level}"])


def test_equals_pytorch_metric_learning():
    theirs = ANSWERS["pytorch_metric_learning_level0"]
    expected = {"AP": theirs["mean_average_precision"], "mAP@R": theirs["mean_average_precision_at_r"]}
    expected |= {"RP": theirs["r_precision"], "R@1": theirs["precision_at_1"], "MRR": theirs["mean_reciprocal_rank"]}
    assert_same(computed(*golden_batch(), recall_at=(1,), also=["MRR"]), expected)


def test_equals_the_golden_with_queries_apart_from_the_gallery():
    answers, even = ANSWERS["query_gallery_even_odd"], torch.arange(58) % 2 == 0
    metrics = RetrievalMetrics(recall_at=(1, 2, 4))
    metrics.update(*golden_batch(), is_query=even, is_gallery=~even)
    assert_equals_golden(metrics.compute(), answers)
    assert len(metrics.per_query()[0]) == answers["queries_with_a_positive"]


@settings(max_examples=100, deadline=None)
@given(evaluations(), st.sampled_from([1, 3, 1024]))
def test_matches_counting(evaluation, block_size):
    embeddings, labels, index, is_query, is_gallery = map(torch.from_numpy, evaluation)
    metrics = RetrievalMetrics(recall_at=RECALL_AT, block_size=block_size)
    metrics.update(embeddings, labels.unsqueeze(1), index, is_query, is_gallery)

    expected, (queries, values) = brute_force(*evaluation), by_index(metrics.per_query())
    assert queries == sorted(expected)
    for name in ("AP", "mAP@R", "RP", *(f"R@{k}" for k in RECALL_AT)):
        wanted = [expected[query][name] for query in queries]
        assert values[name].tolist() == pytest.approx(wanted, abs=1e-6), name
        assert not queries or metrics.compute()[name].item() == pytest.approx(np.mean(wanted), abs=1e-6), name


def test_a_worked_example():
    # queries 10, 11, 12, 13 of classes a, b, a, a; the last two are at the same place
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 1.0]])
    metrics = RetrievalMetrics(recall_at=(1, 2))
    metrics.update(embeddings, torch.tensor([0, 1, 0, 0]), torch.arange(10, 14))
    queries, values = by_index(metrics.per_query())
    assert queries == [10, 12, 13]  # 11 has nothing to retrieve
    # 10 sees 0.8 (b), 0 (a), 0 (a): both at rank 3, 2 among themselves
    # 12 and 13 see 1 (a), 0.6 (b), 0 (a): ranks 1 and 3
    assert values["AP"].tolist() == pytest.approx([2 / 3, (1 + 2 / 3) / 2, (1 + 2 / 3) / 2])
    # whichever of the two comes first, one of the first two items of 10 is right
    assert values["RP"].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 2])
    assert values["mAP@R"].tolist() == pytest.approx([(2 / 3) / 2, 1 / 2, 1 / 2])
    assert values["R@1"].tolist() == [0, 1, 1]
    assert values["R@2"].tolist() == [1, 1, 1]


def test_names_and_shapes():
    metrics = RetrievalMetrics()
    metrics.update(*batch())
    assert metrics.compute().keys() == {"AP", "mAP@R", "RP", "R@1", "R@10", "R@100", "R@1000"}
    assert all(value.shape == () for value in metrics.compute().values())
    index, values = metrics.per_query()
    assert values.keys() == metrics.compute().keys()
    assert all(value.shape == index.shape for value in values.values())


@pytest.mark.parametrize("block_size", [1, 2, 7, 39, 40, 41])
def test_block_size_changes_nothing(block_size):
    assert_same(computed(*batch(), block_size=block_size), computed(*batch()))


def test_order_of_the_updates_is_irrelevant():
    items = [*batch(), torch.rand(40, generator=torch.Generator().manual_seed(1)) < 0.6, torch.arange(40) % 3 > 0]
    metrics = RetrievalMetrics(recall_at=RECALL_AT)
    for part in torch.randperm(40, generator=torch.Generator().manual_seed(2)).split(9):
        metrics.update(*(values[part] for values in items))
    whole = RetrievalMetrics(recall_at=RECALL_AT)
    whole.update(*items)
    assert_same(metrics.compute(), whole.compute())
    (actual_index, actual), (expected_index, expected) = by_index(metrics.per_query()), by_index(whole.per_query())
    assert actual_index == expected_index
    torch.testing.assert_close(actual, expected)


def test_an_index_seen_twice_counts_once():
    """A distributed sampler pads the last batch with items it has already given out."""
    embeddings, labels, index = batch()
    metrics = RetrievalMetrics(recall_at=RECALL_AT, block_size=6)
    metrics.update(embeddings, labels, index)
    expected = metrics.compute()
    metrics.update(embeddings[:5], labels[:5], index[:5])
    metrics.update(embeddings[3:9].repeat(2, 1), labels[3:9].repeat(2, 1), index[3:9].repeat(2))
    assert_same(metrics.compute(), expected)
    assert metrics.per_query()[0].unique().numel() == len(metrics.per_query()[0])


def test_an_index_seen_twice_keeps_its_roles():
    embeddings, labels, index = batch()
    is_query, is_gallery = torch.arange(40) % 3 > 0, torch.arange(40) % 3 < 2
    twice = torch.arange(40).repeat(2)
    actual = computed(embeddings[twice], labels[twice], index[twice], is_query[twice], is_gallery[twice])
    assert_same(actual, computed(embeddings, labels, index, is_query, is_gallery))


def test_twins_with_their_own_index_are_retrieved():
    """Equal embeddings are different items: only the index says what an item is."""
    assert computed(torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2), torch.arange(6))["AP"] == 1


def test_queries_without_anything_to_retrieve_are_left_out():
    """They are in the gallery of the others all the same."""
    lonely = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    more = normalize(lonely, dim=1), torch.arange(100, 106).unsqueeze(1).repeat(1, 2), torch.arange(1000, 1006)
    everything = [torch.cat(pair) for pair in zip(batch(), more, strict=True)]
    metrics = RetrievalMetrics(recall_at=RECALL_AT)
    metrics.update(*everything)
    assert not set(metrics.per_query()[0].tolist()) & set(range(1000, 1006))
    assert_same(metrics.compute(), computed(*everything, torch.arange(46) < 40, torch.ones(46, dtype=torch.bool)))
    assert metrics.compute()["AP"] != computed(*batch())["AP"]


@pytest.mark.parametrize("roles", [(), (torch.zeros(5).bool(),), (torch.ones(5).bool(), torch.zeros(5).bool())])
def test_nothing_to_retrieve_is_zero(roles):
    metrics = RetrievalMetrics(recall_at=RECALL_AT)
    metrics.update(torch.eye(5), torch.zeros(5).long() if roles else torch.arange(5), torch.arange(5), *roles)
    with pytest.warns(UserWarning, match="no query"):
        actual = metrics.compute()
    assert_same(actual, dict.fromkeys(("AP", "mAP@R", "RP", *(f"R@{k}" for k in RECALL_AT)), 0))
    assert metrics.per_query()[0].tolist() == []


@pytest.mark.parametrize("num_classes", [2, 5])
def test_collapsed_embeddings_score_chance(num_classes):
    # every query sees 19 others at one score, of which 20 / num_classes - 1 are relevant: all have rank 19
    actual = computed(torch.ones(20, 4) / 2, torch.arange(20) % num_classes, torch.arange(20))
    assert actual["AP"].item() == pytest.approx((20 / num_classes - 1) / 19, abs=1e-6)
    assert actual["mAP@R"] == actual["RP"] == actual["R@1"] == actual["R@8"] == 0


def test_negative_scores_are_ranked_like_any_other():
    # torchmetrics.retrieval takes a score below 0 for a miss; here the order is perfect and all scores are negative
    embeddings = torch.tensor([[1.0, 0.0], [-0.1, 0.995], [-0.2, 0.98], [-0.9, 0.436]])
    is_query = torch.tensor([True, False, False, False])
    actual = computed(embeddings, torch.tensor([0, 0, 0, 1]), torch.arange(4), is_query, ~is_query)
    assert actual["AP"] == actual["R@1"] == actual["RP"] == 1


def test_one_dimensional_labels_are_one_level():
    embeddings, labels, index = batch()
    assert_same(computed(embeddings, labels[:, 0], index), computed(embeddings, labels[:, :1], index))
    assert_same(computed(embeddings, labels[:, 1], index), computed(embeddings, labels, index, level=1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_embeddings_must_be_finite(value):
    embeddings, labels, index = batch()
    embeddings[[4, 17], [0, 5]] = value
    with pytest.raises(ValueError, match=r"finite|nan|inf") as error:
        computed(embeddings, labels, index)
    assert all(str(broken) in str(error.value) for broken in index[[4, 17]].tolist())


def test_reset_forgets():
    metrics = RetrievalMetrics(recall_at=RECALL_AT)
    metrics.update(*batch(seed=1))
    metrics.compute()
    metrics.reset()
    metrics.update(*batch())
    assert_same(metrics.compute(), computed(*batch()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda metrics: pickle.loads(pickle.dumps(metrics))])
def test_copies_go_on_where_the_original_was(duplicate):
    items = batch()
    metrics = RetrievalMetrics(recall_at=RECALL_AT, level=1, block_size=7)
    metrics.update(*(values[:20] for values in items))
    metrics = duplicate(metrics)
    metrics.update(*(values[20:] for values in items))
    assert_same(metrics.compute(), computed(*items, level=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_ranked_in_float32(dtype):
    embeddings, *others = batch()
    assert_same(computed(embeddings.to(dtype), *others), computed(embeddings.to(dtype).float(), *others), tolerance=0)


def test_autocast_changes_nothing():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = computed(*batch(size=200))
    assert_same(actual, computed(*batch(size=200)), tolerance=0)


def test_the_graph_of_the_embeddings_is_let_go():
    embeddings, *others = batch()
    metrics = RetrievalMetrics()
    metrics.update(embeddings.requires_grad_(), *others)
    kept = [*itertools.chain(*metrics.metric_state.values()), *metrics.compute().values()]
    assert not any(values.requires_grad for values in kept)


def test_inputs_are_left_alone():
    items = [*batch(), torch.arange(40) > 3, torch.arange(40) < 30]
    copies = [values.clone() for values in items]
    computed(*items)
    assert all(map(torch.equal, items, copies))
