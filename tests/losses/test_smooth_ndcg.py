import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from dml.losses import SmoothNDCGLoss, SupNDCGLoss
from tests.losses.batches import batch, ranking


def exact_ndcg(embeddings, labels, include_self):
    """By scikit-learn, whose gain is the relevance that it is given."""
    embeddings, labels = embeddings.detach().numpy(), labels.numpy()
    scores = embeddings @ embeddings.T
    gains = 2.0 ** (labels[:, None] == labels).sum(axis=2) - 1
    galleries = [[item for item in range(len(labels)) if include_self or item != query] for query in range(len(labels))]
    found = [
        ndcg_score([row[items]], [score[items]]) for row, score, items in zip(gains, scores, galleries, strict=True)
    ]
    return np.mean(found)


@pytest.mark.parametrize("include_self", [True, False])
def test_tends_to_the_ndcg_of_scikit_learn_as_the_temperature_tends_to_zero(include_self):
    embeddings, labels = batch((3, 4, 2, 2), levels=3)
    exact = exact_ndcg(embeddings, labels, include_self)
    errors = [
        abs(1 - SmoothNDCGLoss(temperature, include_self=include_self)(embeddings, labels).item() - exact)
        for temperature in (1.0, 1e-2, 1e-4, 1e-8)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] < 1e-12


@pytest.mark.parametrize("include_self", [True, False])
def test_the_bound_tends_to_it_where_it_is_a_step(include_self):
    embeddings, labels = batch((3, 4, 2, 2), levels=3)
    loss = SupNDCGLoss(1e-8, slope=0.0, margin=0.0, jump=0.0, offset=1.0, include_self=include_self)
    assert 1 - loss(embeddings, labels).item() == pytest.approx(exact_ndcg(embeddings, labels, include_self), abs=1e-12)


def test_the_bound_is_one():
    for seed in range(20):
        embeddings, labels = batch((3, 4, 2, 2), levels=3, seed=seed)
        assert SupNDCGLoss()(embeddings, labels).item() >= 1 - exact_ndcg(embeddings, labels, include_self=True)


def test_a_worked_example():
    # gains 3, 1 and 0; at a tiny temperature their ranks are 2, 3 and 1
    query, references = ranking([0.5, 0.2, 0.8])
    labels = torch.tensor([[1, 0], [2, 0], [3, 1]])
    value = SmoothNDCGLoss(1e-6)(query, labels[:1], ref_emb=references, ref_labels=labels).item()
    assert value == pytest.approx(1 - (3 / np.log2(3) + 1 / np.log2(4)) / (3 / np.log2(2) + 1 / np.log2(3)), abs=1e-9)
