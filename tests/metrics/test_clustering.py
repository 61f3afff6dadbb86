"""NMI and AMI against their definitions, of clusters that faiss finds."""

import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from dml.metrics import RetrievalMetrics
from dml.metrics.clustering import ClusteringMetrics, _clusters, clustering_metrics

pytest.importorskip("faiss")


def points(num_images=120, num_classes=12, noise=0.6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    centres = normalize(torch.randn(num_classes, 16, generator=generator), dim=1)
    spread = noise / 4 * torch.randn(num_images, 16, generator=generator)
    return normalize(centres[labels] + spread, dim=1), labels


def entropy(counts):
    return stats.entropy(counts[counts > 0])


def agreement(classes, clusters):
    """NMI and AMI, the mutual information expected by chance summed over every table cell there could be."""
    table = np.histogram2d(classes, clusters, [np.arange(labels.max() + 2) - 0.5 for labels in (classes, clusters)])[0]
    rows, columns, number = table.sum(axis=1), table.sum(axis=0), len(classes)
    mean = (entropy(rows) + entropy(columns)) / 2
    mutual = entropy(rows) + entropy(columns) - entropy(table.ravel())
    expected = 0.0
    for row in rows[rows > 0]:
        for column in columns[columns > 0]:
            both = np.arange(1, min(row, column) + 1)
            chance = stats.hypergeom(number, int(row), int(column)).pmf(both)
            expected += (chance * both / number * np.log(number * both / (row * column))).sum()
    return {"NMI": mutual / mean, "AMI": (mutual - expected) / (mean - expected)}


def test_is_the_agreement_with_the_clusters():
    embeddings, labels = points()
    clusters = _clusters(embeddings, 12, 20, 1, 0)
    expected = agreement(labels.numpy(), clusters)
    assert clustering_metrics(embeddings, labels) == pytest.approx(expected, abs=1e-10)
    assert 0.3 < expected["AMI"] < expected["NMI"] < 0.99
    assert clusters.shape == (120,)
    assert set(clusters) == set(range(12))


def test_clusters_are_those_of_plain_k_means():
    embeddings, _ = points(noise=0.3)
    clusters = torch.from_numpy(_clusters(embeddings, 12, 50, 1, 0))
    centres = torch.stack([embeddings[clusters == cluster].mean(dim=0) for cluster in range(12)])
    assert torch.equal(torch.cdist(embeddings, centres).argmin(dim=1), clusters)


def test_classes_that_lie_apart_are_found():
    embeddings, labels = points(num_images=900, num_classes=3, noise=0.01)  # more than 256 images of each class
    assert clustering_metrics(embeddings, 7 * labels, restarts=5) == pytest.approx({"NMI": 1, "AMI": 1})


def test_labels_drawn_at_random_agree_by_chance_only():
    embeddings, _ = points(num_classes=40)
    labels = torch.arange(120) % 40
    found = clustering_metrics(embeddings, labels)
    assert found["NMI"] > 0.5
    assert abs(found["AMI"]) < 0.1


@pytest.mark.parametrize(("num_images", "num_classes", "expected"), [(1, 1, 1), (6, 1, 1), (6, 6, 1)])
def test_one_class_and_classes_of_one_image(num_images, num_classes, expected):
    embeddings, labels = points(num_images)[0], torch.arange(num_images) % num_classes
    assert clustering_metrics(embeddings, labels) == {"NMI": expected, "AMI": expected}


def test_collapsed_embeddings_agree_with_nothing():
    assert clustering_metrics(torch.ones(30, 4), torch.arange(30) % 3) == pytest.approx({"NMI": 0, "AMI": 0}, abs=1e-12)


def test_more_restarts_make_clusters_tighter():
    embeddings, _ = points(noise=1.0)
    spread = []
    for restarts in (1, 5):
        clusters = _clusters(embeddings, 12, 20, restarts, 0)
        groups = [embeddings[clusters == cluster] for cluster in set(clusters)]
        spread.append(sum(((group - group.mean(dim=0)) ** 2).sum().item() for group in groups))
    assert spread[1] < spread[0] - 0.01


def test_the_seed_says_which_clusters_are_found():
    embeddings, labels = points(noise=1.0)
    assert clustering_metrics(embeddings, labels, seed=1) == clustering_metrics(embeddings, labels, seed=1)
    assert len({clustering_metrics(embeddings, labels, seed=seed)["NMI"] for seed in range(4)}) > 1


def test_the_metric_adds_them_to_what_is_reported_anyway(capfd):
    embeddings, labels = points(60)
    labels = torch.stack([labels, labels % 3], dim=1)
    options = {"recall_at": [1, 5], "level": 1, "block_size": 16}
    metrics, plain = ClusteringMetrics(**options, num_iterations=7, restarts=2, seed=3), RetrievalMetrics(**options)
    index = torch.arange(60)
    is_query = index % 2 == 0
    for rows in (index[:40], index[20:]):  # twenty images come twice
        for each in (metrics, plain):
            each.update(embeddings[rows], labels[rows], rows, is_query[rows], ~is_query[rows])
    found, expected = metrics.compute(), plain.compute()
    agreement = clustering_metrics(embeddings, labels[:, 1], num_iterations=7, restarts=2, seed=3)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in {**expected, **agreement}.items()}, abs=1e-6
    )
    assert torch.equal(metrics.last_per_query[0], plain.last_per_query[0])
    assert capfd.readouterr() == ("", "")  # faiss has nothing to say of small classes


def test_says_how_to_get_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for start in (ClusteringMetrics, lambda: clustering_metrics(*points())):
        with pytest.raises(ValueError, match=r"faiss, which is not installed: pip install 'dml\[search\]'"):
            start()


@pytest.mark.parametrize("name", ["num_iterations", "restarts"])
def test_rejects_options(name):
    for start in (ClusteringMetrics, lambda **options: clustering_metrics(*points(), **options)):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
            start(**{name: 0})


@pytest.mark.parametrize(("embeddings", "labels"), [((3, 2), (4,)), ((3, 2), (3, 1)), ((3,), (3,)), ((0, 2), (0,))])
def test_rejects_shapes(embeddings, labels):
    with pytest.raises(ValueError, match=r"they must be \[N, D\] and \[N\], of at least one image"):
        clustering_metrics(torch.ones(embeddings), torch.zeros(labels, dtype=torch.long))
