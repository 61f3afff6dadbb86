import pytest
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss

from dml.losses import CalibrationLoss
from tests.losses.batches import assert_same, batch, ranking, separated_batch


def published(positive_margin=0.9, negative_margin=0.6):
    """What SupRank's CalibrationLoss is: its reducer takes the mean over what is not zero, of each kind of pair."""
    return ContrastiveLoss(
        pos_margin=positive_margin,
        neg_margin=negative_margin,
        distance=DotProductSimilarity(normalize_embeddings=False),
    )


@pytest.mark.parametrize("margins", [(0.9, 0.6), (0.5, -0.2), (0.2, 0.9)], ids=str)
@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 7, 2, 1, 3), (6,), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_equals_pytorch_metric_learning(sizes, margins, chunk_size):
    embeddings, labels = batch(sizes)
    expected = published(*margins)(embeddings, labels[:, 0])
    if not expected.requires_grad:  # a constant where there is no pair at all
        expected = expected + 0 * embeddings.sum()
    assert_same(CalibrationLoss(*margins, chunk_size)(embeddings, labels), expected, embeddings)


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_equals_pytorch_metric_learning_against_references(chunk_size):
    (embeddings, labels), (references, ref_labels) = batch((4, 1, 3)), batch((2, 5, 3), seed=1)
    actual = CalibrationLoss(chunk_size=chunk_size)(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    expected = published()(embeddings, labels[:, 0], ref_emb=references, ref_labels=ref_labels[:, 0])
    assert_same(actual, expected, (embeddings, references))


def test_a_worked_example():
    # of the class: 0.95 is close enough, 0.7 and 0.5 lack 0.2 and 0.4; of others: 0.5 is far enough, 0.8 exceeds by 0.2
    query, references = ranking([0.95, 0.7, 0.5, 0.5, 0.8])
    ref_labels = torch.tensor([1, 1, 1, 2, 3])
    value = CalibrationLoss()(query, ref_labels[:1], ref_emb=references, ref_labels=ref_labels)
    assert value.item() == pytest.approx((0.2 + 0.4) / 2 + 0.2)
    gradient = torch.autograd.grad(value, references)[0][:, 0]
    torch.testing.assert_close(gradient, torch.tensor([0, -0.5, -0.5, 0, 1]).double())


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_no_violation_is_zero_with_zero_gradient(chunk_size):
    embeddings, labels = separated_batch()
    value = CalibrationLoss(chunk_size=chunk_size)(embeddings, labels)
    assert value == 0
    assert not torch.autograd.grad(value, embeddings)[0].any()


def test_an_embedding_is_not_paired_with_itself():
    """Whose score of 1 would violate a margin above 1; among references it is an item like any other."""
    embeddings = torch.eye(3, requires_grad=True)
    assert CalibrationLoss(positive_margin=2.0)(embeddings, torch.arange(3)) == 0
    labels = torch.arange(3)
    assert CalibrationLoss(2.0)(embeddings, labels, ref_emb=embeddings, ref_labels=labels) == 1


@pytest.mark.parametrize("size", [0, 1])
def test_no_pair_is_zero_with_zero_gradient(size):
    embeddings = torch.ones(size, 1, requires_grad=True)
    value = CalibrationLoss()(embeddings, torch.zeros(size, dtype=torch.long))
    assert value == 0
    assert not torch.autograd.grad(value, embeddings)[0].any()


def test_only_the_finest_level_is_looked_at():
    embeddings, labels = batch()
    assert CalibrationLoss()(embeddings, labels) == CalibrationLoss()(embeddings, labels[:, 0])
    assert CalibrationLoss()(embeddings, labels) != CalibrationLoss()(embeddings, labels[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_has_the_precision_of_the_embeddings(dtype):
    embeddings, labels = batch(dtype=dtype)
    value = CalibrationLoss()(embeddings, labels)
    assert value.dtype == torch.autograd.grad(value, embeddings)[0].dtype == dtype


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_chunk_size_must_be_positive(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size is {chunk_size}"):
        CalibrationLoss(chunk_size=chunk_size)
