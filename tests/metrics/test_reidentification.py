import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dml.metrics import ReidentificationMetrics, RetrievalMetrics

NAMES = ("CMC@1", "CMC@2", "CMC@5", "reid_AP")


def batch(size=60, num_identities=11, seed=0, grid=8):
    """Coarse embeddings, whose scores are exact and tie often; indices in no order."""
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randint(num_identities, (size,), generator=generator)
    centre = torch.randn(num_identities, 3, generator=generator)[identity]
    embeddings = (centre + 0.5 * torch.randn(size, 3, generator=generator)).mul(grid).round() / grid
    return embeddings, 7 * identity, torch.randperm(5 * size, generator=generator)[:size]


def metrics_of(embeddings, labels, index, *roles, **options):
    metrics = ReidentificationMetrics(**{"recall_at": (1, 2, 5), **options})
    metrics.update(embeddings, labels, index, *roles)
    return metrics


def galleries(index, labels, queries, candidates):
    """Which images were drawn each time: of each identity, the one that did not query."""
    drawn, start = [], 0
    for place in range(1, len(queries) + 1):
        if place == len(queries) or queries[place] <= queries[place - 1]:
            asked = set(queries[start:place])
            drawn.append([row for row in candidates if int(index[row]) not in asked])
            start = place
    return drawn


def brute_force(embeddings, labels, index, drawn):
    """Values of one draw by counting: {name: [value of each query, in order of index]}."""
    values = {name: [] for name in NAMES}
    for row in index.argsort().tolist():
        if row in drawn:
            continue
        scores = {item: float(embeddings[row] @ embeddings[item]) for item in drawn}
        (right,) = (item for item in drawn if labels[item] == labels[row])
        rank = sum(score >= scores[right] for score in scores.values())
        for name in NAMES:
            values[name].append(1 / rank if name == "reid_AP" else float(rank <= int(name.removeprefix("CMC@"))))
    return values


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 7, 1024]))
def test_matches_counting(seed, block_size):
    embeddings, labels, index = batch(seed=seed)
    metrics = metrics_of(embeddings, labels, index, seed=seed, block_size=block_size)
    queries, values = metrics.per_query()
    expected = {name: [] for name in NAMES}
    drawn = galleries(index, labels, queries.tolist(), range(60))
    assert len(drawn) == 10
    for gallery in drawn:
        assert sorted(labels[gallery].tolist()) == labels.unique().tolist()  # one image of each identity
        for name, column in brute_force(embeddings, labels, index, gallery).items():
            expected[name] += column
    for name in NAMES:
        assert values[name].tolist() == pytest.approx(expected[name], abs=1e-6)
        assert metrics.compute()[name].item() == pytest.approx(np.mean(expected[name]), abs=1e-6)


def test_average_precision_is_that_of_the_leave_one_out_metric_on_the_drawn_gallery():
    embeddings, labels, index = batch(grid=2**16)
    metrics = metrics_of(embeddings, labels, index, num_draws=1)
    queries = torch.isin(index, metrics.per_query()[0])
    other = RetrievalMetrics(recall_at=(1, 2, 5))
    other.update(embeddings, labels, index, queries, ~queries)
    expected, actual = other.compute(), metrics.compute()
    names = {"reid_AP": "AP", "CMC@1": "R@1", "CMC@2": "R@2", "CMC@5": "R@5"}
    assert {name: float(actual[name]) for name in names} == pytest.approx(
        {name: float(expected[theirs]) for name, theirs in names.items()}
    )
    assert 0.2 < actual["CMC@1"] < 1


def test_names_are_not_those_of_leave_one_out():
    ours = metrics_of(*batch())
    other = RetrievalMetrics()
    other.update(*batch())
    assert not ours.compute().keys() & other.compute().keys()
    assert ReidentificationMetrics().recall_at == (1, 5, 10)


def test_draws_are_fair_and_differ():
    """Of an identity with four images, each is drawn about as often."""
    embeddings, labels = normalize(torch.randn(8, 3), dim=1), torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    queries = metrics_of(embeddings, labels, torch.arange(8), num_draws=400).per_query()[0]
    drawn = 400 - queries.bincount()
    assert drawn.min() > 60
    assert drawn.max() < 140


def test_seed_says_what_is_drawn():
    queries = [metrics_of(*batch(), seed=seed).per_query()[0].tolist() for seed in (0, 0, 1)]
    assert queries[0] == queries[1] != queries[2]


def test_an_identity_of_one_image_is_in_the_gallery_only():
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [1.0, 0.0]])
    metrics = metrics_of(embeddings, torch.tensor([0, 0, 1]), torch.tensor([4, 5, 6]))
    queries, values = metrics.per_query()
    assert set(queries.tolist()) == {4, 5}
    # Image 6 looks as image 4 does: to one it is above image 5, to the other it ties with image 4.
    assert values["CMC@1"].tolist() == [0] * 10
    assert values["reid_AP"].tolist() == [0.5] * 10
    assert values["CMC@2"].tolist() == [1] * 10


def test_collapsed_embeddings_rank_last():
    values = metrics_of(torch.ones(40, 3), torch.arange(40) % 8, torch.arange(40)).compute()
    assert values["reid_AP"] == 1 / 8
    assert values["CMC@5"] == 0


def test_order_of_the_batches_and_repetition_are_irrelevant():
    items = batch()
    whole = metrics_of(*items)
    parts = ReidentificationMetrics(recall_at=(1, 2, 5))
    for rows in (*torch.randperm(60).split(13), torch.arange(5)):
        parts.update(*(column[rows] for column in items))
    assert parts.per_query()[0].tolist() == whole.per_query()[0].tolist()
    for name in NAMES:
        assert parts.compute()[name] == whole.compute()[name]


def test_roles_are_kept():
    embeddings, labels, index = batch()
    is_query, is_gallery = torch.arange(60) % 3 > 0, torch.arange(60) % 3 < 2
    queries = metrics_of(embeddings, labels, index, is_query, is_gallery, num_draws=200).per_query()[0]
    answerable = is_query & torch.isin(labels, labels[is_gallery])
    # An identity's only gallery image is always drawn, and never a query.
    only = is_gallery & ((labels[:, None] == labels[is_gallery]).sum(dim=1) == 1)
    assert set(queries.tolist()) == set(index[answerable & ~only].tolist())
    assert (queries.bincount()[index[answerable & ~is_gallery]] == 200).all()


def test_level_is_the_identity():
    embeddings, labels, index = batch()
    two = torch.stack([torch.arange(60), labels], dim=1)
    assert metrics_of(embeddings, two, index, level=1).compute() == metrics_of(embeddings, labels, index).compute()


def test_nothing_to_retrieve_is_zero():
    metrics = metrics_of(torch.eye(3), torch.arange(3), torch.arange(3))
    with pytest.warns(UserWarning, match="no query"):
        values = metrics.compute()
    assert values == dict.fromkeys(NAMES, 0)


def test_rejects_no_draws():
    with pytest.raises(ValueError, match="num_draws is 0; it is a number of galleries, at least 1"):
        ReidentificationMetrics(num_draws=0)
