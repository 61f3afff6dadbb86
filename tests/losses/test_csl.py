import pytest
import torch
from torch.nn.functional import normalize, softplus

from dml.losses import CSLLoss
from tests.losses.batches import assert_same, batch

MARGINS = (0.25, 0.35, 0.45)


def dense(embeddings, labels, proxies, of_proxies, scale, margins):
    """CSL with the labels of all proxies at hand.

    Restates suprank/losses/csl_loss.py of github.com/elias-ramzi/SupRank at d3d0e3c: of each embedding and level, the
    proxies that are not of its class there, the proxy that is of its finest class, and the margin.
    """
    value = 0
    for embedding, label in zip(embeddings, labels, strict=True):
        scores = scale * (normalize(proxies, dim=1) @ embedding)
        for level, margin in enumerate(margins):
            other = torch.stack([s for s, of in zip(scores, of_proxies, strict=True) if of[level] != label[level]])
            own = torch.stack([-s for s, of in zip(scores, of_proxies, strict=True) if of[0] == label[0]])
            value = value + softplus(other.logsumexp(0) + own.logsumexp(0) + scale * margin)
    return value / len(embeddings)


def csl(num_classes=6, margins=MARGINS, scale=32.0, chunk_size=None):
    torch.manual_seed(0)
    return CSLLoss(num_classes, 8, scale, margins, chunk_size).double()


def of_classes(classes):
    """Labels of these classes at three levels, as in ``batch``."""
    return torch.stack([classes, classes % 4, classes % 2], dim=1)


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("scale", [32.0, 3.0])
@pytest.mark.parametrize("margins", [(0.3,), (0.25, 0.45), MARGINS], ids=len)
def test_equals_the_dense_formula(margins, scale, chunk_size):
    loss = csl(margins=margins, scale=scale, chunk_size=chunk_size)
    embeddings, labels = batch((4, 1, 7, 2, 3, 7), levels=len(margins))
    inputs = embeddings, loss.proxies.weight
    of_proxies = torch.stack([labels[labels[:, 0] == c][0] for c in range(6)])
    expected = dense(embeddings, labels, loss.proxies.weight, of_proxies, scale, margins)
    assert_same(loss(embeddings, labels), expected, inputs, rtol=1e-9, atol=1e-10)


def test_defaults_are_those_of_three_levels():
    torch.manual_seed(0)
    loss = CSLLoss(6, 8).double()
    assert loss(*batch(levels=3)) == csl()(*batch(levels=3))


def test_a_class_takes_part_once_it_was_seen():
    loss, (embeddings, labels) = csl(num_classes=9), batch((3, 3, 3, 3, 3, 3), levels=3)
    first = labels[:, 0] < 4
    for seen, num_seen in [(first, 4), (~first, 6), (first, 6)]:
        value = loss(embeddings[seen], labels[seen])
        proxies = loss.proxies.weight
        expected = dense(
            embeddings[seen], labels[seen], proxies[:num_seen], of_classes(torch.arange(num_seen)), 32.0, MARGINS
        )
        assert_same(value, expected, (embeddings, proxies), rtol=1e-9, atol=1e-10)
        assert not torch.autograd.grad(loss(embeddings[seen], labels[seen]), proxies)[0][num_seen:].any()


def test_what_was_seen_is_saved():
    loss, resumed, (embeddings, labels) = csl(), csl(), batch(levels=3)
    few = labels[:, 0] < 3
    before = loss(embeddings[few], labels[few])
    loss(embeddings, labels)
    resumed.load_state_dict(loss.state_dict())
    assert resumed(embeddings[few], labels[few]) == loss(embeddings[few], labels[few]) > before


@pytest.mark.parametrize(
    "labels", [torch.zeros(5, 2), torch.tensor([[0, 0], [1, 0], [2, 0], [0, 0], [1, 0]])], ids=["both", "coarser"]
)
def test_a_level_of_one_class_costs_nothing(labels):
    """There is no other class to be apart from: the published code has no number for the gradient."""
    embeddings = batch((5,))[0]
    labels = labels.long()
    loss = csl(margins=(0.25, 0.45))
    value = loss(embeddings, labels)
    gradients = torch.autograd.grad(value, [embeddings, loss.proxies.weight])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    several = labels[:, 0].any()
    assert bool(value > 0) == bool(several)
    assert bool(gradients[0].any()) == bool(several)
    if several:
        alone = csl(margins=(0.25,))
        assert_same(loss(embeddings, labels), alone(embeddings, labels[:, 0]), embeddings)


def test_margin_of_a_level_counts_for_that_level():
    embeddings, labels = batch(levels=3)
    costs = [
        csl(margins=margins)(embeddings, labels) for margins in [(0.2, 0.2, 0.2), (0.3, 0.2, 0.2), (0.2, 0.2, 0.3)]
    ]
    assert costs[0] < costs[1]
    assert costs[0] < costs[2]
    assert costs[1] != costs[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_value_has_the_precision_of_the_embeddings(dtype):
    loss = CSLLoss(6, 8)
    embeddings, labels = batch(levels=3, dtype=dtype)
    value = loss(embeddings, labels)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.autograd.grad(value, embeddings)[0].dtype == dtype


def test_empty_batch_is_zero_with_zero_gradient():
    loss = csl()
    embeddings = torch.empty(0, 8, dtype=torch.float64, requires_grad=True)
    value = loss(embeddings, torch.empty(0, 3, dtype=torch.long))
    value.backward()
    assert value == 0
    assert not loss.proxies.weight.grad.any()


@pytest.mark.parametrize("levels", [1, 2])
def test_there_must_be_a_margin_for_each_level(levels):
    with pytest.raises(ValueError, match=rf"margins are \[0.25, 0.35, 0.45\]; the labels have {levels} levels"):
        csl()(*batch(levels=levels))


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 8), "num_classes is 0"), ((6, 0), "embedding_dim is 0")], ids=str
)
def test_options_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CSLLoss(*arguments)


def test_a_label_without_proxy_is_named():
    with pytest.raises(ValueError, match=r"num_classes is 4.* label [45]"):
        csl(num_classes=4)(*batch(levels=3))


def test_evaluation_learns_no_hierarchy():
    loss = CSLLoss(6, 8, margins=(0.25, 0.45))
    embeddings, labels = batch(dtype=torch.float32)
    loss.eval()(embeddings, labels)
    assert (loss.proxy_labels == -1).all()
    loss.train()(embeddings, labels)
    assert (loss.proxy_labels[labels[:, 0].unique(), 0] == labels[:, 0].unique()).all()
