import pytest
import torch
from pytorch_metric_learning.losses import FastAPLoss as PublishedFastAP
from torch.nn.functional import normalize

from dml.losses import FastAPLoss, QuantizedAPLoss
from tests.losses.batches import assert_same, batch


@pytest.mark.parametrize("num_bins", [10, 3, 25])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 7, 1, 5, 3), (6,)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_pytorch_metric_learning(sizes, num_bins, seed):
    """Which normalises embeddings by itself, so these need not be of unit norm."""
    embeddings, labels = batch(sizes, seed=seed)
    embeddings = (embeddings * torch.linspace(0.5, 2, len(labels)).unsqueeze(1)).detach().requires_grad_()
    expected = PublishedFastAP(num_bins)(embeddings, labels[:, 0])
    for chunk_size in (None, 4):
        actual = FastAPLoss(num_bins, chunk_size=chunk_size)(normalize(embeddings, dim=1), labels)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(value, embeddings, retain_graph=True)[0] for value in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_equals_pytorch_metric_learning_in_float32():
    embeddings, labels = batch((2, 7, 1, 5, 3), dtype=torch.float32)
    actual = FastAPLoss()(normalize(embeddings, dim=1), labels)
    assert_same(actual, PublishedFastAP()(embeddings, labels[:, 0]), embeddings, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("include_self", [True, False])
def test_is_quantised_ap_with_one_more_bin(include_self):
    embeddings, labels = batch((2, 7, 1, 5, 3))
    actual = FastAPLoss(7, include_self=include_self)(embeddings, labels)
    assert_same(actual, QuantizedAPLoss(8, include_self=include_self)(embeddings, labels), embeddings)


def test_by_default_the_query_is_not_in_its_own_gallery():
    embeddings, labels = batch()
    assert FastAPLoss()(embeddings, labels) == FastAPLoss(include_self=False)(embeddings, labels)
    assert FastAPLoss()(embeddings, labels) > FastAPLoss(include_self=True)(embeddings, labels)


def test_num_bins_must_be_at_least_one():
    with pytest.raises(ValueError, match="num_bins"):
        FastAPLoss(0)
