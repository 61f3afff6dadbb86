"""What metrics make of input that is odd, and what they say of input that is wrong."""

import pytest
import torch
from torch.nn.functional import normalize

from dml.metrics import HierarchicalMetrics, RetrievalMetrics, Search
from dml.metrics.functional import per_query_metrics, retrieval_metrics
from dml.stages import QueryExpansion
from tests.metrics.test_retrieval import assert_same, batch, computed


def test_an_image_has_every_role_that_it_came_with():
    embeddings, labels, index = batch()
    twice = [torch.cat([each, each]) for each in (embeddings, labels, index)]
    first = torch.arange(80) < 40
    assert_same(computed(*twice, first, ~first), computed(embeddings, labels, index), tolerance=0)


def test_an_image_of_several_labels_is_refused():
    embeddings, labels, index = batch()
    metrics = RetrievalMetrics()
    metrics.update(embeddings, labels, index)
    metrics.update(embeddings[3:4], labels[3:4] + 1, index[3:4])
    with pytest.raises(ValueError, match=f"image {int(index[3])} came with several labels"):
        metrics.compute()


@pytest.mark.parametrize("role", ["is_query", "is_gallery"])
def test_roles_are_one_for_each_image(role):
    with pytest.raises(ValueError, match=f"lengths differ: 40 embeddings, .* 5 of {role}"):
        RetrievalMetrics().update(*batch(), **{role: torch.ones(5, dtype=torch.bool)})


def test_indices_and_labels_of_few_bits_will_do():
    embeddings, labels, index = batch()
    assert_same(computed(embeddings, labels.int(), index.int()), computed(embeddings, labels, index), tolerance=0)


@pytest.mark.parametrize("shape", [(), (40, 2, 1)], ids=str)
def test_labels_of_another_shape_are_refused(shape):
    embeddings, _, index = batch()
    labels = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match="labels have shape"):
        RetrievalMetrics().update(embeddings, labels, index)
    with pytest.raises(ValueError, match="labels have shape"):
        retrieval_metrics(embeddings, torch.zeros(40, 2, 1, dtype=torch.long))


def test_without_images_it_says_what_to_do():
    with pytest.raises(ValueError, match="there are no images; call update of RetrievalMetrics"):
        RetrievalMetrics().compute()


@pytest.mark.parametrize("k", [0, 1.5])
def test_ranks_are_whole_numbers(k):
    with pytest.raises(ValueError, match="recall_at is"):
        RetrievalMetrics(recall_at=[k])


def test_scores_that_overflow_are_refused():
    embeddings, labels, _ = batch()
    with pytest.raises(ValueError, match=r"scores overflow: queries hold numbers up to \d.*e\+19"):
        retrieval_metrics(embeddings * 1e20, labels)
    assert retrieval_metrics(embeddings * 1e10, labels) == pytest.approx(retrieval_metrics(embeddings, labels))


def test_float64_tells_apart_what_float32_does_not():
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    gallery = torch.tensor([[1.0, 0.0], [1 - 1e-10, 0.0]], dtype=torch.float64)
    labels, index = torch.tensor([0, 0, 1]), torch.arange(3)
    for precision, expected in (("float32", 0.5), ("float64", 1.0)):
        search = Search(precision=precision)
        assert retrieval_metrics(query, labels[:1], gallery, labels[1:], search=search)["AP"] == expected
        metrics = RetrievalMetrics(search=search)
        metrics.update(torch.cat([query, gallery]), labels, index, index == 0, index > 0)
        assert metrics.compute()["AP"] == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_stages_take_a_gallery_of_any_precision(dtype):
    embeddings, labels, _ = batch()
    gallery = normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(5)), dim=1).to(dtype)
    values = [
        retrieval_metrics(embeddings, labels, each, labels[:30], search=Search(stages=[QueryExpansion(k=3)]))
        for each in (gallery, gallery.float())
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("ties", ["pessimistic", "expected"])
@pytest.mark.parametrize("kind", [RetrievalMetrics, HierarchicalMetrics])
def test_many_relevant_items_make_the_blocks_smaller(kind, ties, monkeypatch):
    monkeypatch.setattr("dml.metrics.retrieval._MOST_PAIRS", 2000)
    embeddings, labels, _ = batch(size=600, num_classes=2)
    blocks = []
    monkeypatch.setattr(kind, "measures", lambda self, ranks: blocks.append(len(ranks.query)) or _average(ranks))
    values = per_query_metrics(embeddings, labels[:, :1], metrics=kind(search=Search(ties=ties)))
    assert max(blocks) <= 2000 < sum(blocks)
    assert values["AP"].isfinite().all()


def _average(ranks):
    return {"AP": torch.zeros(ranks.num_queries)}
