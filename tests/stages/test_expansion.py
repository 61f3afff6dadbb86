"""Query expansion and database augmentation, beside loops over neighbours."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.stages import DatabaseAugmentation, QueryExpansion
from tests.stages.galleries import embeddings, expanded, outside, search


def loops(queries, gallery, k, alpha, own):
    gallery = gallery.double().numpy()
    rows = zip(queries.double().numpy(), own.tolist(), strict=True)
    return torch.from_numpy(np.stack([expanded(query, gallery, k, alpha, row) for query, row in rows])).float()


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_expansion_equals_a_loop(k, alpha):
    queries, gallery = embeddings(150, seed=1), embeddings(60)
    expected = loops(queries, gallery, k, alpha, outside(queries))
    actual, same = QueryExpansion(k, alpha)(queries, gallery, outside(queries))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)
    assert torch.equal(same, gallery)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_a_query_in_the_gallery_counts_once(alpha):
    gallery = embeddings(60)
    rows = torch.tensor([5, 17, 3])
    expected = loops(gallery[rows], gallery, 4, alpha, rows)
    actual, _ = QueryExpansion(4, alpha)(gallery[rows], gallery, rows)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    # As if its image were not there.
    for place, row in enumerate(rows.tolist()):
        without = torch.cat([gallery[:row], gallery[row + 1 :]])
        query = gallery[row : row + 1]
        alone, _ = QueryExpansion(4, alpha)(query, without, outside(query))
        torch.testing.assert_close(actual[place], alone[0])


def test_a_duplicate_is_a_neighbour_as_any():
    gallery = embeddings(5)
    gallery = torch.cat([gallery, gallery[:1]])
    actual, _ = QueryExpansion(1)(gallery[:1], gallery, torch.tensor([0]))
    torch.testing.assert_close(actual, gallery[:1])


def test_opposites_count_only_when_all_count_alike():
    query = torch.tensor([[1.0, 0.0]])
    gallery = normalize(torch.tensor([[1.0, 1.0], [-1.0, 0.5]]), dim=1)
    weighted, _ = QueryExpansion(2, alpha=1.0)(query, gallery, outside(query))
    torch.testing.assert_close(weighted, normalize(query + 2**-0.5 * gallery[:1], dim=1))
    alike, _ = QueryExpansion(2)(query, gallery, outside(query))
    torch.testing.assert_close(alike, normalize(query + gallery.sum(0), dim=1))


def test_rounds_are_stages_one_after_the_other():
    queries, gallery = embeddings(20, seed=1), embeddings(60)
    own = torch.arange(20)
    once, _ = QueryExpansion(3, 2.0)(queries, gallery, own)
    twice, _ = QueryExpansion(3, 2.0)(once, gallery, own)
    torch.testing.assert_close(QueryExpansion(3, 2.0, rounds=2)(queries, gallery, own)[0], twice)
    assert not torch.allclose(once, twice, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_augmentation_equals_a_loop(k, alpha):
    queries, gallery = embeddings(5, seed=1), embeddings(150)
    expected = loops(gallery, gallery, k, alpha, torch.arange(150))
    same, actual = DatabaseAugmentation(k, alpha)(queries, gallery, outside(queries))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)
    assert torch.equal(same, queries)


@pytest.mark.parametrize("k", [1, 4, 80])
def test_weights_by_rank(k):
    gallery = embeddings(40)
    exact = gallery.double().numpy()
    expected = []
    for row, item in enumerate(exact):
        ranked, _ = search(item, exact, k, row)
        total = sum((k - rank) / k * exact[other] for rank, other in enumerate([row, *ranked]))
        expected.append(total / np.linalg.norm(total))
    _, actual = DatabaseAugmentation(k, weights="rank")(gallery, gallery, torch.arange(40))
    torch.testing.assert_close(actual, torch.from_numpy(np.stack(expected)).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", [QueryExpansion(3, 1.0), DatabaseAugmentation(3), DatabaseAugmentation(3, 2.0)])
def test_what_comes_out(stage):
    queries, gallery, own = embeddings(4, seed=1), embeddings(9), torch.tensor([-1, 2, 8, -1])
    before = queries.clone(), gallery.clone(), own.clone()
    results = stage(queries, gallery, own)
    for argument, copy in zip((queries, gallery, own), before, strict=True):
        assert torch.equal(argument, copy)
    for result, size in zip(results, (4, 9), strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.norm(dim=1), torch.ones(size))
    with torch.autocast("cpu", torch.bfloat16):
        inside = stage(queries, gallery, own)
    assert all(torch.equal(*pair) for pair in zip(inside, results, strict=True))


@pytest.mark.parametrize("stage", [QueryExpansion(3), DatabaseAugmentation(3), DatabaseAugmentation(3, weights="rank")])
def test_one_item_that_is_the_query_has_no_neighbour(stage):
    item = embeddings(1)
    for result in stage(item, item, torch.tensor([0])):
        torch.testing.assert_close(result, item)


@pytest.mark.parametrize("stage", [QueryExpansion(3), DatabaseAugmentation(3)])
def test_an_empty_gallery_or_no_query(stage):
    some = embeddings(2)
    for queries, gallery in ((some, some[:0]), (some[:0], some)):
        results = stage(queries, gallery, outside(queries))
        assert [len(result) for result in results] == [len(queries), len(gallery)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: QueryExpansion(0), "k is 0; it is a number of neighbours, at least 1"),
        (lambda: QueryExpansion(alpha=-1.0), "alpha is -1.0; it must be at least 0"),
        (lambda: QueryExpansion(alpha=float("nan")), "alpha is nan"),
        (lambda: QueryExpansion(rounds=0), "rounds is 0; it must be at least 1"),
        (lambda: DatabaseAugmentation(-2), "k is -2"),
        (lambda: DatabaseAugmentation(alpha=1.0, weights="rank"), "alpha is 1.0 and weights is 'rank'"),
        (lambda: DatabaseAugmentation(weights="place"), "weights is 'place'; it must be 'similarity' or 'rank'"),
    ],
)
def test_errors_of_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("stage", [QueryExpansion(2), DatabaseAugmentation(2)])
@pytest.mark.parametrize(
    ("queries", "gallery", "own", "message"),
    [
        (torch.ones(2, 3), torch.ones(4, 5), torch.zeros(2), r"queries have shape \[2, 3\] and the gallery has \[4, 5"),
        (torch.ones(3), torch.ones(4, 3), torch.zeros(3), r"they must be \[Q, D\] and \[N, D\]"),
        (torch.ones(2, 3), torch.ones(4, 3), torch.zeros(3), r"own has shape \[3\].*for each of 2 queries"),
        (
            torch.ones(2, 3),
            torch.ones(4, 3),
            torch.tensor([0, 4]),
            "own has rows from 0 to 4; .* from 0 to 3, or -1",
        ),
        (torch.ones(2, 3), torch.ones(4, 3), torch.tensor([-2, 0]), "own has rows from -2 to 0"),
    ],
)
def test_errors_of_arguments(stage, queries, gallery, own, message):
    with pytest.raises(ValueError, match=message):
        stage(queries, gallery, own)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stage", [QueryExpansion(5, 2.0), DatabaseAugmentation(5, weights="rank")])
def test_a_gpu_gives_the_same(stage):
    queries, gallery, own = embeddings(50, seed=1), embeddings(300), torch.arange(50)
    results = stage(queries.cuda(), gallery.cuda(), own.cuda())
    for actual, expected in zip(results, stage(queries, gallery, own), strict=True):
        assert actual.is_cuda
        torch.testing.assert_close(actual.cpu(), expected, atol=1e-5, rtol=0)
