"""What holds for every loss. Exporting a loss from ``dml.losses`` is enough to have it tested here."""

import inspect

import pytest
import torch
from torch.nn.functional import normalize

import dml.losses
from dml.losses.base import RankLoss

LOSSES = [
    cls
    for cls in vars(dml.losses).values()
    if inspect.isclass(cls) and issubclass(cls, RankLoss) and not inspect.isabstract(cls)
]
every_loss = pytest.mark.parametrize("loss", [cls() for cls in LOSSES], ids=lambda loss: type(loss).__name__)


def batch(sizes=(4, 4, 4, 4, 4, 4), dtype=torch.float64, seed=0):
    """Unit embeddings, loosely clustered, and labels ``[B, 2]``, shuffled: classes of these sizes, two superclasses."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    classes = classes[torch.randperm(len(classes), generator=generator)]
    centres = torch.randn(len(sizes), 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(classes), 8, generator=generator, dtype=torch.float64)
    embeddings = normalize(centres[classes] + noise, dim=1)
    return embeddings.to(dtype).requires_grad_(), torch.stack([classes, classes % 2], dim=1)


def separated_batch():
    """One direction per class plus one per superclass: scores are 1 in the class, 1/2 in the superclass, else 0."""
    classes = torch.arange(6).repeat_interleave(4)
    directions = torch.cat([torch.eye(6)[classes], torch.eye(2)[classes % 2]], dim=1) / 2**0.5
    return directions.requires_grad_(), torch.stack([classes, classes % 2], dim=1)


def assert_same(actual, expected, inputs, **tolerances):
    """Equal in value and in gradient."""
    torch.testing.assert_close(actual, expected, **tolerances)
    torch.testing.assert_close(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), **tolerances)


def test_every_rank_loss_is_found():
    assert dml.losses.SmoothAPLoss in LOSSES


def test_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        RankLoss(include_self=True, chunk_size=None)


@every_loss
def test_value_is_a_scalar_with_a_gradient(loss):
    embeddings, labels = batch()
    value = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(value, embeddings)
    assert value.shape == ()
    assert value > 0
    assert torch.isfinite(gradient).all()
    assert gradient.any()


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("size", [12, 1, 0])
def test_nothing_to_retrieve_is_zero_with_zero_gradient(loss, size, chunk_size, include_self):
    embeddings = normalize(torch.randn(size, 5), dim=1).requires_grad_()
    labels = torch.arange(size).unsqueeze(1).repeat(1, 2)
    value = type(loss)(include_self=include_self, chunk_size=chunk_size)(embeddings, labels)
    value.backward()
    assert value == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@every_loss
def test_nothing_to_retrieve_among_references_is_zero_with_zero_gradient(loss):
    (embeddings, labels), (references, ref_labels) = batch(), batch(seed=1)
    value = loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels + 100)
    value.backward()
    assert value == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))
    assert torch.equal(references.grad, torch.zeros_like(references))


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("chunk_size", [1, 7, 24, 1000])
def test_chunks_change_nothing(loss, chunk_size, include_self):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7))
    expected = type(loss)(include_self=include_self)(embeddings, labels)
    actual = type(loss)(include_self=include_self, chunk_size=chunk_size)(embeddings, labels)
    assert_same(actual, expected, embeddings)


@every_loss
@pytest.mark.parametrize("chunk_size", [1, 7])
def test_chunks_change_nothing_against_references(loss, chunk_size):
    (embeddings, labels), (references, ref_labels) = batch(), batch((5, 5, 1, 3), seed=1)
    expected = loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    actual = type(loss)(chunk_size=chunk_size)(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    assert_same(actual, expected, (embeddings, references))


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
def test_perfect_ranking_costs_nothing(loss, include_self):
    value = type(loss)(include_self=include_self)(*separated_batch())
    assert value.item() == pytest.approx(0, abs=1e-3)


@every_loss
def test_collapsed_embeddings_are_no_perfect_ranking(loss):
    """Ties count against: a model that maps everything to one point must not look good."""
    embeddings, labels = batch()
    collapsed = loss(normalize(torch.ones_like(embeddings), dim=1), labels)
    assert collapsed > loss(*separated_batch()) + 0.25


@every_loss
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_gradient_step_decreases_loss(loss, chunk_size):
    embeddings, labels = batch()
    loss = type(loss)(chunk_size=chunk_size)
    before = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(before, embeddings)
    after = loss(embeddings - 1e-4 * gradient / gradient.norm(), labels)
    assert after < before


@every_loss
def test_order_of_the_batch_is_irrelevant(loss):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    assert_same(loss(embeddings[order], labels[order]), loss(embeddings, labels), embeddings)


@every_loss
def test_names_of_the_classes_are_irrelevant(loss):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7))
    assert_same(loss(embeddings, 1000 - 7 * labels), loss(embeddings, labels), embeddings)


@every_loss
def test_unanswerable_queries_are_left_out(loss):
    """Items alone in their class are in the gallery of the others, and ask nothing themselves."""
    loss = type(loss)(include_self=True)
    embeddings, labels = batch((4, 1, 5, 1, 3, 1))
    labels = labels[:, :1]
    answerable = (labels == labels.T).sum(dim=1) > 1
    actual = loss(embeddings, labels)
    expected = loss(embeddings[answerable], labels[answerable], ref_emb=embeddings, ref_labels=labels)
    assert_same(actual, expected, embeddings)
    assert actual != loss(embeddings[answerable], labels[answerable])


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
def test_references_are_taken_whole(loss, include_self):
    """With references nothing is excluded: the batch as its own references is the batch with ``include_self``."""
    embeddings, labels = batch()
    actual = type(loss)(include_self=include_self)(embeddings, labels, ref_emb=embeddings, ref_labels=labels)
    assert_same(actual, type(loss)(include_self=True)(embeddings, labels), embeddings)


@every_loss
def test_one_dimensional_labels_are_one_level(loss):
    embeddings, labels = batch()
    classes = labels[:, 0]
    assert_same(loss(embeddings, classes), loss(embeddings, classes.unsqueeze(1)), embeddings)
    actual = loss(embeddings, classes, ref_emb=embeddings, ref_labels=classes.unsqueeze(1))
    expected = loss(embeddings, classes.unsqueeze(1), ref_emb=embeddings, ref_labels=classes)
    assert_same(actual, expected, embeddings)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_has_the_precision_of_the_embeddings(loss, dtype):
    embeddings, labels = batch(dtype=dtype)
    value = loss(embeddings, labels)
    assert value.dtype == dtype
    assert torch.autograd.grad(value, embeddings)[0].dtype == dtype


@every_loss
def test_float32_is_close_to_float64(loss):
    (single, labels), (double, _) = batch(dtype=torch.float32), batch()
    actual, expected = loss(single, labels), loss(double, labels)
    assert actual.item() == pytest.approx(expected.item(), abs=1e-4)
    (actual,), (expected,) = torch.autograd.grad(actual, single), torch.autograd.grad(expected, double)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-2, atol=1e-3)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_half_precision_embeddings_are_ranked_in_float32(loss, dtype, chunk_size):
    half, labels = batch(dtype=dtype)
    single = half.detach().float().requires_grad_()
    loss = type(loss)(chunk_size=chunk_size)
    actual, expected = loss(half, labels), loss(single, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)
    (actual,), (expected,) = torch.autograd.grad(actual, half), torch.autograd.grad(expected, single)
    assert actual.dtype == dtype
    # only the gradient is rounded; with scores in bfloat16 it would be off by 3 percent
    assert (actual.float() - expected).norm() < torch.finfo(dtype).eps * expected.norm()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_autocast_changes_nothing(loss, dtype, chunk_size):
    embeddings, labels = batch(dtype=dtype)
    loss = type(loss)(chunk_size=chunk_size)
    expected = loss(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (embeddings.float() @ embeddings.float().T).dtype == torch.bfloat16  # autocast is at work here
        actual = loss(embeddings, labels)
    assert_same(actual, expected, embeddings)


@every_loss
def test_autocast_changes_nothing_against_references(loss):
    (embeddings, labels), (references, ref_labels) = batch(dtype=torch.float32), batch(dtype=torch.float32, seed=1)
    expected = loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    assert_same(actual, expected, (embeddings, references))


@every_loss
def test_references_may_be_constants(loss):
    """A memory of earlier embeddings has no gradient; that of the queries does not depend on it."""
    (embeddings, labels), (references, ref_labels) = batch(), batch(seed=1)
    actual = loss(embeddings, labels, ref_emb=references.detach(), ref_labels=ref_labels)
    assert_same(actual, loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels), embeddings)


@every_loss
def test_inputs_are_left_alone(loss):
    embeddings, labels = batch()
    copies = embeddings.detach().clone(), labels.clone()
    loss(embeddings, labels).backward()
    assert torch.equal(embeddings, copies[0])
    assert torch.equal(labels, copies[1])


@every_loss
def test_embeddings_must_be_two_dimensional(loss):
    with pytest.raises(ValueError, match="2, 3, 4"):
        loss(torch.randn(2, 3, 4), torch.zeros(2, dtype=torch.long))


@every_loss
def test_labels_must_be_as_many_as_embeddings(loss):
    with pytest.raises(ValueError, match="7"):
        loss(torch.randn(6, 4), torch.zeros(7, 2, dtype=torch.long))


@every_loss
def test_reference_labels_must_be_as_many_as_references(loss):
    labels = torch.zeros(6, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="9"):
        loss(torch.randn(6, 4), labels, ref_emb=torch.randn(8, 4), ref_labels=torch.zeros(9, 1, dtype=torch.long))


@every_loss
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_embeddings_must_be_finite(loss, value):
    embeddings, labels = batch()
    broken = embeddings.detach().clone()
    broken[5, 3] = value
    with pytest.raises(ValueError, match=r"finite|nan|inf"):
        loss(broken, labels)
    with pytest.raises(ValueError, match=r"finite|nan|inf"):
        loss(embeddings, labels, ref_emb=broken, ref_labels=labels)


@every_loss
def test_references_need_labels(loss):
    embeddings, labels = batch()
    with pytest.raises(ValueError, match="ref_labels"):
        loss(embeddings, labels, ref_emb=embeddings)


@every_loss
def test_references_must_have_the_dimension_of_the_embeddings(loss):
    embeddings, labels = batch()
    with pytest.raises(ValueError, match="13"):
        loss(embeddings, labels, ref_emb=torch.randn(24, 13), ref_labels=labels)
