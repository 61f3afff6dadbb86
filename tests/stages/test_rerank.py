"""k-reciprocal re-ranking, beside a dense restatement of the published code."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.stages import KReciprocal, QueryExpansion
from tests.stages.galleries import embeddings, outside


def published(queries, gallery, k1, k2, weight):
    """python-version/re_ranking_ranklist.py of github.com/zhunzhong07/person-re-ranking at f952e80: ``[Q, N]``."""
    images = np.concatenate([queries.double().numpy(), gallery.double().numpy()])
    distance = ((images[:, None] - images[None]) ** 2).sum(-1)
    distance = (distance / distance.max(0)).T
    ranked = np.argsort(distance, axis=1, kind="stable")

    def mutual(image, k):
        return [other for other in ranked[image, : k + 1] if image in ranked[other, : k + 1]]

    codes = np.zeros_like(distance)
    for image in range(len(images)):
        near = mutual(image, k1)
        wider = list(near)
        for other in near:
            half = mutual(other, int(np.around(k1 / 2)))
            if len(np.intersect1d(half, near)) > 2 / 3 * len(half):
                wider += half
        members = np.unique(wider)
        affinity = np.exp(-distance[image, members])
        codes[image, members] = affinity / affinity.sum()
    if k2 != 1:
        codes = np.stack([codes[ranked[image, :k2]].mean(0) for image in range(len(images))])
    count = len(queries)
    common = np.minimum(codes[:count, None], codes[None, count:]).sum(-1)
    jaccard = 1 - common / (2 - common)
    return (1 - weight) * jaccard + weight * distance[:count, count:]


def scores_of(reranker, queries, gallery, own, size=7):
    scores = reranker.prepare(queries, gallery, own)
    blocks = [scores(slice(start, min(start + size, len(queries)))) for start in range(0, len(queries), size)]
    return torch.cat(blocks)


@pytest.mark.parametrize(
    ("num_queries", "num_items", "k1", "k2", "weight"),
    [
        (20, 150, 20, 6, 0.3),
        (30, 90, 5, 1, 0.0),  # half of 5 is rounded to 2
        (30, 90, 7, 12, 0.5),  # a description is averaged over more images than are to be mutual
        (9, 12, 20, 6, 0.3),  # fewer images than neighbours
        (4, 60, 1, 1, 0.3),
        (4, 60, 3, 2, 1.0),
        (1, 1, 20, 6, 0.3),
    ],
)
def test_equals_the_published_code(num_queries, num_items, k1, k2, weight):
    queries, gallery = embeddings(num_queries, seed=1), embeddings(num_items)
    expected = -published(queries, gallery, k1, k2, weight)
    actual = scores_of(KReciprocal(k1, k2, weight), queries, gallery, outside(queries))
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)


def test_neighbours_of_neighbours_do_count():
    """The data above has what the extension by two thirds is about: without it, scores differ."""
    queries, gallery = embeddings(20, seed=1), embeddings(150)
    wider = published(queries, gallery, 20, 1, 0.0)
    images = torch.cat([queries, gallery]).double()
    distance = (2 - 2 * images @ images.T).clamp(min=0).fill_diagonal_(0)
    distance /= distance.amax(1, keepdim=True)
    near = torch.zeros_like(distance).scatter_(1, distance.argsort(dim=1, stable=True)[:, :21], 1.0)
    affinity = (-distance).exp() * near * near.T
    codes = affinity / affinity.sum(1, keepdim=True)
    common = torch.minimum(codes[:20, None], codes[None, 20:]).sum(-1)
    assert np.abs(1 - common / (2 - common) - wider).max() > 0.01


def test_small_blocks_change_nothing(monkeypatch):
    queries, gallery = embeddings(20, seed=1), embeddings(150)
    expected = scores_of(KReciprocal(), queries, gallery, outside(queries))
    monkeypatch.setattr("dml.stages.rerank._ELEMENTS", 50)
    monkeypatch.setattr("dml.stages.codes._AT_A_TIME", 50)
    torch.testing.assert_close(scores_of(KReciprocal(), queries, gallery, outside(queries), size=1), expected)
    torch.testing.assert_close(scores_of(KReciprocal(), queries, gallery, outside(queries), size=20), expected)


def test_a_query_in_the_gallery_is_one_image():
    """All items are queries: it is as if one query were outside, and the gallery what is left."""
    gallery = embeddings(60)
    together = scores_of(KReciprocal(6, 3), gallery, gallery, torch.arange(60))
    for row in (0, 31):
        rest = torch.cat([gallery[:row], gallery[row + 1 :]])
        alone = scores_of(KReciprocal(6, 3), gallery[row : row + 1], rest, torch.tensor([-1]))[0]
        torch.testing.assert_close(torch.cat([together[row, :row], together[row, row + 1 :]]), alone)
    # Nothing is nearer than the image itself.
    assert (together.argmax(1) == torch.arange(60)).all()


def test_some_queries_in_the_gallery_and_some_not():
    gallery, others = embeddings(60), embeddings(5, seed=1)
    rows = torch.tensor([4, 50])
    own = torch.tensor([-1, 4, -1, -1, 50, -1, -1])
    queries = torch.stack([others[0], gallery[4], others[1], others[2], gallery[50], others[3], others[4]])
    actual = scores_of(KReciprocal(6, 3), queries, gallery, own, size=3)
    expected = -published(others, gallery, 6, 3, 0.3)
    np.testing.assert_allclose(actual[own < 0].numpy(), expected, atol=1e-5)
    # The same images, and those of the gallery as their items.
    everyone = torch.cat([gallery, others])
    whole = scores_of(KReciprocal(6, 3), everyone, everyone, torch.arange(65))
    torch.testing.assert_close(actual[own >= 0], whole[rows, :60])


def test_a_query_that_moved_is_described_by_its_own_neighbours():
    """It stands for its item among the others, which see the item: a whole graph for each query says the same."""
    gallery = embeddings(60)
    own = torch.tensor([3, 40, 7])
    queries, _ = QueryExpansion(4, 1.0)(gallery[own], gallery, own)
    actual = scores_of(KReciprocal(6, 1), queries, gallery, own)
    for place, row in enumerate(own.tolist()):
        expected = moved_in_dense(queries[place], gallery, row, 6, 0.3)
        np.testing.assert_allclose(actual[place].numpy(), expected, atol=1e-5)


def moved_in_dense(query, gallery, row, k1, weight):
    """Scores of one query that is item ``row`` and lies elsewhere, without averaging."""
    images, place = gallery.double().numpy(), query.double().numpy()
    distance = ((images[:, None] - images[None]) ** 2).sum(-1)
    seen = ((images - place) ** 2).sum(-1)
    seen /= seen.max()
    ranked = [np.r_[i, [j for j in np.argsort(line, kind="stable") if j != i]] for i, line in enumerate(distance)]
    own_rank = np.r_[row, [j for j in np.argsort(seen, kind="stable") if j != row]]

    def mutual(ranks, image, k):
        return [j for j in ranks[: k + 1] if image in ranked[j][: k + 1]]

    def code(ranks, image, to_others):
        near = mutual(ranks, image, k1)
        wider = set(near)
        for other in near:
            half = mutual(ranks if other == image else ranked[other], other, round(k1 / 2))
            if len(set(half) & set(near)) > 2 / 3 * len(half):
                wider |= set(half)
        members = sorted(wider)
        weights = np.zeros(len(images))
        weights[members] = np.exp(-to_others[members])
        return weights / weights.sum()

    codes = np.stack([code(ranked[i], i, distance[i] / distance[i].max()) for i in range(len(images))])
    common = np.minimum(code(own_rank, row, seen), codes).sum(1)
    return -((1 - weight) * (1 - common / (2 - common)) + weight * seen)


def test_duplicates_tie():
    gallery = embeddings(40)
    gallery = torch.cat([gallery, gallery[:3]])
    scores = scores_of(KReciprocal(5, 1), embeddings(6, seed=1), gallery, torch.full((6,), -1))
    assert scores.isfinite().all()
    collapsed = embeddings(1).expand(30, 8).contiguous()
    assert scores_of(KReciprocal(5, 2), collapsed, collapsed, torch.arange(30)).isfinite().all()


def test_one_image_alone_and_an_empty_gallery():
    item = embeddings(1)
    assert scores_of(KReciprocal(), item, item, torch.tensor([0])).item() == pytest.approx(0, abs=1e-6)
    assert scores_of(KReciprocal(), item, item[:0], torch.tensor([-1])).shape == (1, 0)


def test_arguments_stay_as_they_are_and_scores_are_new_each_time():
    queries, gallery, own = embeddings(4, seed=1), embeddings(9), torch.tensor([-1, 2, 8, -1])
    before = queries.clone(), gallery.clone(), own.clone()
    scores = KReciprocal(3, 2).prepare(queries, gallery, own)
    first = scores(slice(0, 2))
    kept = first.clone()
    scores(slice(2, 4)).fill_(7)
    assert torch.equal(first, kept)
    assert torch.equal(scores(slice(0, 2)), kept)
    for argument, copy in zip((queries, gallery, own), before, strict=True):
        assert torch.equal(argument, copy)


def test_float32_under_autocast():
    queries, gallery = embeddings(5, 64, seed=1), embeddings(30, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = scores_of(KReciprocal(5, 3), queries, gallery, outside(queries))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, scores_of(KReciprocal(5, 3), queries, gallery, outside(queries)))


def test_memory_is_linear_in_the_images():
    largest = {}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest[count] = max(largest.get(count, 0), tensor.numel())
            return result

    for count in (2000, 4000):
        gallery = normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(0)), dim=1)
        with Watch():
            KReciprocal(4, 2).prepare(gallery, gallery, torch.arange(count))(slice(0, 10))
    assert largest[4000] < 4000 * 4000 / 3
    assert largest[4000] < 2.5 * largest[2000]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KReciprocal(0), "k1 is 0 and k2 is 6; they are numbers of neighbours, at least 1"),
        (lambda: KReciprocal(k2=0), "k1 is 20 and k2 is 0"),
        (lambda: KReciprocal(weight=1.5), "weight is 1.5; it must be from 0 to 1"),
        (lambda: KReciprocal().prepare(torch.ones(1, 2), torch.ones(3, 2), torch.tensor([3])), "own has rows from 3"),
    ],
)
def test_errors_say_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    queries, gallery, own = embeddings(50, seed=1), embeddings(300), torch.full((50,), -1)
    actual = scores_of(KReciprocal(), queries.cuda(), gallery.cuda(), own.cuda())
    torch.testing.assert_close(actual.cpu(), scores_of(KReciprocal(), queries, gallery, own), atol=1e-5, rtol=0)
