"""Metrics of embeddings at hand, beside the classes that a trainer feeds."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.metrics import HierarchicalMetrics, RetrievalMetrics, Search
from dml.metrics.functional import per_query_metrics, retrieval_metrics
from tests.metrics.test_hierarchical import tree_batch

OPTIONS = {"recall_at": (1, 3), "also": ("MRR", "nDCG", "P@2", "found@5", "mAP@4", "nDCG@3")}


def of_class(kind, embeddings, labels, *roles, index=None, **options):
    metrics = kind(**{**OPTIONS, **options})
    metrics.update(embeddings, labels, torch.arange(len(labels)) if index is None else index, *roles)
    return metrics


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "expected"])
@pytest.mark.parametrize("level", [0, 1, 2, None])
def test_leave_one_out_is_that_of_the_class(level, ties):
    embeddings, labels, _ = tree_batch(50)
    kind, options = (HierarchicalMetrics, {}) if level is None else (RetrievalMetrics, {"level": level})
    metrics = of_class(kind, embeddings, labels, search=Search(ties=ties), **options)
    options = options or {"hierarchical": True}
    actual = retrieval_metrics(embeddings, labels, **OPTIONS, **options, search=Search(ties=ties))
    assert all(type(value) is float for value in actual.values())
    assert actual == pytest.approx({name: value.item() for name, value in metrics.compute().items()}, abs=1e-6)

    index, values = metrics.per_query()
    rows = per_query_metrics(embeddings, labels, metrics=metrics)
    unanswerable = torch.ones(50, dtype=torch.bool).index_fill(0, index, value=False)
    for name, value in values.items():
        assert torch.equal(rows[name][index].nan_to_num(-1), value.nan_to_num(-1)), name
        assert rows[name][unanswerable].isnan().all()


@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_query_does_not_retrieve_the_item_of_its_own_index(hierarchical):
    """Some of the queries are in the gallery, which is in another order; all have doubles there."""
    embeddings, labels, index = tree_batch(60)
    is_query, is_gallery = torch.arange(60) % 3 < 2, torch.arange(60) % 5 > 0
    kind = HierarchicalMetrics if hierarchical else RetrievalMetrics
    expected = of_class(kind, embeddings, labels, is_query, is_gallery, index=index).compute()
    order = is_gallery.nonzero().squeeze(1)[torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    gallery = {"ref_emb": embeddings[order], "ref_labels": labels[order], "ref_index": index[order]}
    queries = embeddings[is_query], labels[is_query]
    actual = retrieval_metrics(*queries, **gallery, index=index[is_query], hierarchical=hierarchical, **OPTIONS)
    assert actual == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-6)
    del gallery["ref_index"]
    assert retrieval_metrics(*queries, **gallery, hierarchical=hierarchical, **OPTIONS)["R@1"] > actual["R@1"]


def test_without_indices_no_item_is_a_query():
    embeddings = torch.eye(3)
    assert retrieval_metrics(embeddings, torch.arange(3), embeddings, torch.arange(3), recall_at=(1,))["AP"] == 1


def test_a_query_without_a_relevant_item_is_a_row_of_nan():
    embeddings, labels = normalize(torch.rand(4, 3), dim=1), torch.tensor([0, 1, 0, 2])
    rows = per_query_metrics(embeddings, labels)
    for name, values in rows.items():
        assert values.isnan().tolist() == [False, True, False, True], name
    assert retrieval_metrics(embeddings, labels, recall_at=(1,))["AP"] == pytest.approx(
        rows["AP"][[0, 2]].mean().item()
    )


@pytest.mark.parametrize("hierarchical", [False, True])
def test_nothing_to_retrieve_is_zero(hierarchical):
    with pytest.warns(UserWarning, match="no query"):
        values = retrieval_metrics(torch.eye(3), torch.arange(3), hierarchical=hierarchical, **OPTIONS)
    assert set(values.values()) == {0.0}


@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("with_index", [False, True])
def test_an_empty_gallery_is_zero(with_index, hierarchical):
    options = {"index": torch.arange(3), "ref_index": torch.arange(0)} if with_index else {}
    none = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    with pytest.warns(UserWarning, match="no query"):
        values = retrieval_metrics(torch.eye(3), torch.arange(3), *none, hierarchical=hierarchical, **options)
    assert set(values.values()) == {0.0}


def test_no_queries_are_zero():
    with pytest.warns(UserWarning, match="no query"):
        values = retrieval_metrics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), torch.eye(3), torch.arange(3))
    assert set(values.values()) == {0.0}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_gallery_in_a_file_is_that_in_memory(tmp_path, dtype):
    embeddings, labels, _ = tree_batch(60)
    np.save(tmp_path / "gallery.npy", embeddings[20:].numpy().astype(dtype))
    mapped = torch.from_numpy(np.load(tmp_path / "gallery.npy", mmap_mode="c"))
    expected = retrieval_metrics(embeddings[:20], labels[:20], embeddings[20:], labels[20:], **OPTIONS)
    assert retrieval_metrics(embeddings[:20], labels[:20], mapped, labels[20:], **OPTIONS) == expected  # corners: exact


def test_embeddings_of_a_graph_are_as_any_other():
    embeddings, labels, _ = tree_batch(20)
    values = per_query_metrics(embeddings.clone().requires_grad_(), labels)
    assert not any(value.requires_grad for value in values.values())
    assert torch.equal(values["AP"].nan_to_num(-1), per_query_metrics(embeddings, labels)["AP"].nan_to_num(-1))


BAD = {
    "half a gallery": ({"ref_emb": torch.eye(3)}, "ref_emb and ref_labels belong together"),
    "half of the indices": (
        {"ref_emb": torch.eye(3), "ref_labels": torch.arange(3), "index": torch.arange(3)},
        "index and ref_index belong together",
    ),
    "an index but no gallery": (
        {"index": torch.arange(3), "ref_index": torch.arange(3)},
        "index and ref_index belong together",
    ),
    "too few labels": ({"labels": torch.arange(2)}, "^labels has 2 rows; there are 3"),
    "too many labels of the gallery": (
        {"ref_emb": torch.eye(3), "ref_labels": torch.arange(4)},
        "ref_labels has 4 rows; there are 3",
    ),
    "other levels": ({"ref_emb": torch.eye(3), "ref_labels": torch.ones(3, 2).long()}, "labels have 1 levels.* 2"),
    "an index twice": (
        {
            "ref_emb": torch.eye(3),
            "ref_labels": torch.arange(3),
            "index": torch.arange(3),
            "ref_index": torch.tensor([4, 5, 4]),
        },
        "ref_index has 4 more than once",
    ),
    "too few indices": (
        {
            "ref_emb": torch.eye(3),
            "ref_labels": torch.arange(3),
            "index": torch.arange(2),
            "ref_index": torch.arange(3),
        },
        "^index has 2",
    ),
    "too many indices of the gallery": (
        {
            "ref_emb": torch.eye(3),
            "ref_labels": torch.arange(3),
            "index": torch.arange(2, 5),
            "ref_index": torch.arange(6),
        },
        "^ref_index has 6",
    ),
    "another dimension": ({"ref_emb": torch.eye(4), "ref_labels": torch.arange(4)}, r"gallery has shape \[4, 4\]"),
    "no such level": ({"level": 1}, "level is 1; the labels have levels 0 to 0"),
    "no such measure": ({"also": ["mAP"]}, "also has 'mAP'"),
    "an embedding that is not finite": ({"embeddings": torch.eye(3) / 0}, "not finite"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**{"embeddings": torch.eye(3), "labels": torch.arange(3), **arguments})
