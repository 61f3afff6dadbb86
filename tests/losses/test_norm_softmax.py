import pytest
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import NormalizedSoftmaxLoss

from dml.losses import NormSoftmaxLoss
from tests.losses.batches import batch


def with_published(num_classes=6, temperature=0.05, dtype=torch.float64, chunk_size=None):
    """Ours and that of pytorch-metric-learning, with the same proxies; theirs are ``[D, C]``."""
    torch.manual_seed(0)
    loss = NormSoftmaxLoss(num_classes, 8, temperature, chunk_size=chunk_size).to(dtype)
    published = NormalizedSoftmaxLoss(
        num_classes, 8, temperature, distance=DotProductSimilarity(normalize_embeddings=False)
    )
    published.W.data = loss.proxies.weight.detach().T.clone()
    return loss, published


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("num_classes", [6, 9])
def test_equals_pytorch_metric_learning(num_classes, chunk_size, temperature):
    loss, published = with_published(num_classes, temperature, chunk_size=chunk_size)
    embeddings, labels = batch((4, 1, 7, 2, 3, 7))
    actual, expected = loss(embeddings, labels), published(embeddings, labels[:, 0])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    of_embeddings, of_proxies = torch.autograd.grad(actual, [embeddings, loss.proxies.weight])
    expected = torch.autograd.grad(expected, [embeddings, published.W])
    torch.testing.assert_close((of_embeddings, of_proxies.T), expected, rtol=1e-9, atol=1e-11)


def test_default_temperature():
    embeddings, labels = batch()
    torch.manual_seed(0)
    loss = NormSoftmaxLoss(6, 8)
    assert loss(embeddings, labels) == with_published(dtype=torch.float32)[0](embeddings, labels)


def test_proxies_are_drawn_as_published():
    """From U(-1 / sqrt(D), 1 / sqrt(D)), D being 16."""
    torch.manual_seed(0)
    weight = NormSoftmaxLoss(500, 16).proxies.weight
    assert weight.shape == (500, 16)
    assert -0.25 <= weight.min() < -0.245
    assert 0.245 < weight.max() <= 0.25
    assert weight.std().item() == pytest.approx(0.5 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("of_proxies", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_value_has_the_precision_of_the_embeddings(dtype, of_proxies):
    loss, _ = with_published(dtype=of_proxies)
    embeddings, labels = batch(dtype=dtype)
    value = loss(embeddings, labels)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    of_embeddings, of_weight = torch.autograd.grad(value, [embeddings, loss.proxies.weight])
    assert of_embeddings.dtype == dtype
    assert of_weight.dtype == of_proxies


@pytest.mark.parametrize("frozen", ["embeddings", "proxies"])
def test_either_may_be_constant(frozen):
    loss, _ = with_published()
    embeddings, labels = batch()
    both = torch.autograd.grad(loss(embeddings, labels), [embeddings, loss.proxies.weight])
    (embeddings if frozen == "embeddings" else loss.proxies.weight).requires_grad_(False)
    loss(embeddings, labels).backward()
    torch.testing.assert_close(embeddings.grad, None if frozen == "embeddings" else both[0])
    torch.testing.assert_close(loss.proxies.weight.grad, None if frozen == "proxies" else both[1])


def test_references_are_not_looked_at():
    loss, _ = with_published()
    embeddings, labels = batch()
    references, ref_labels = batch(seed=1)
    assert loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels) == loss(embeddings, labels)


def test_empty_batch_is_zero_with_zero_gradient():
    loss, _ = with_published()
    embeddings = torch.empty(0, 8, dtype=torch.float64, requires_grad=True)
    value = loss(embeddings, torch.empty(0, 2, dtype=torch.long))
    value.backward()
    assert value == 0
    assert not loss.proxies.weight.grad.any()


def test_state_is_saved():
    torch.manual_seed(0)
    loss, resumed = NormSoftmaxLoss(6, 8), NormSoftmaxLoss(6, 8)
    embeddings, labels = batch()
    assert resumed(embeddings, labels) != loss(embeddings, labels)
    assert [name for name, _ in loss.named_parameters()] == list(loss.state_dict())
    resumed.load_state_dict(loss.state_dict())
    assert resumed(embeddings, labels) == loss(embeddings, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "num_classes is 0"),
        ((6, 0), "embedding_dim is 0"),
        ((6, 8, 0.0), "temperature is 0.0"),
        ((6, 8, -1.0), "temperature is -1.0"),
        ((6, 8, 0.05, 0), "chunk_size is 0"),
    ],
)
def test_options_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NormSoftmaxLoss(*arguments)


@pytest.mark.parametrize("label", [5, 17, -1])
def test_a_label_without_proxy_is_named(label):
    embeddings, labels = batch((4, 4, 4))
    labels[7, 0] = label
    with pytest.raises(ValueError, match=f"num_classes is 5.* label {label}"):
        NormSoftmaxLoss(5, 8)(embeddings, labels)


def test_embeddings_must_have_the_dimension_of_the_proxies():
    with pytest.raises(ValueError, match=r"embedding_dim is 7.* 8"):
        NormSoftmaxLoss(6, 7)(*batch())
