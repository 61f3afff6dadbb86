"""What every loss that is no rank loss makes of inputs; the rank losses are in ``test_common.py``."""

import inspect

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss

import dml.losses
from dml.losses import CalibrationLoss, CSLLoss, NormSoftmaxLoss, PairLoss, RankLoss, SiMix, SmoothAPLoss, WeightedSum
from tests.losses.batches import assert_same, batch

TWO_LEVELS = (0.25, 0.45)
LOSSES = {
    CalibrationLoss: CalibrationLoss,
    CSLLoss: lambda: CSLLoss(6, 8, margins=TWO_LEVELS),
    NormSoftmaxLoss: lambda: NormSoftmaxLoss(6, 8),
    PairLoss: lambda: PairLoss(ContrastiveLoss()),
    SiMix: lambda: SiMix(SmoothAPLoss()),
    WeightedSum: lambda: WeightedSum([SmoothAPLoss(), CalibrationLoss()]),
}
CHUNKED = {
    CalibrationLoss: lambda size: CalibrationLoss(chunk_size=size),
    CSLLoss: lambda size: CSLLoss(6, 8, margins=TWO_LEVELS, chunk_size=size),
    NormSoftmaxLoss: lambda size: NormSoftmaxLoss(6, 8, chunk_size=size),
    SiMix: lambda size: SiMix(SmoothAPLoss(chunk_size=size)),
}
every_loss = pytest.mark.parametrize("cls", LOSSES)


def but(*left_out):
    return pytest.mark.parametrize("cls", [cls for cls in LOSSES if cls not in left_out])


# pytorch-metric-learning checks the inputs of a PairLoss, and is not ours to compile.
our_losses = but(PairLoss)


def make(cls):
    torch.manual_seed(0)
    return LOSSES[cls]()


def test_every_other_loss_is_here():
    exported = [cls for cls in vars(dml.losses).values() if inspect.isclass(cls) and not issubclass(cls, RankLoss)]
    assert set(exported) == set(LOSSES)


@every_loss
def test_value_is_a_scalar_with_a_gradient(cls):
    embeddings, labels = batch(dtype=torch.float32)
    value = make(cls)(embeddings, labels)
    (gradient,) = torch.autograd.grad(value, embeddings)
    assert value.shape == ()
    assert value > 0
    assert torch.isfinite(gradient).all()
    assert gradient.any()


@every_loss
def test_gradient_step_decreases_loss(cls):
    embeddings, labels = batch()
    before = make(cls)(embeddings, labels)
    (gradient,) = torch.autograd.grad(before, embeddings)
    assert make(cls)(embeddings - 1e-4 * gradient / gradient.norm(), labels) < before


@pytest.mark.parametrize("cls", CHUNKED)
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunks_change_nothing(cls, chunk_size):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7))
    torch.manual_seed(0)
    actual = CHUNKED[cls](chunk_size)(embeddings, labels)
    assert_same(actual, make(cls)(embeddings, labels), embeddings)


@pytest.mark.parametrize("cls", CHUNKED)
@pytest.mark.parametrize("chunk_size", [0, -1])
def test_chunk_size_must_be_positive(cls, chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size is {chunk_size}"):
        CHUNKED[cls](chunk_size)


@every_loss
def test_value_needs_no_gradient(cls):
    embeddings, labels = batch()
    expected = make(cls)(embeddings, labels)
    with torch.no_grad():
        value = make(cls)(embeddings, labels)
    assert value == expected
    assert not value.requires_grad


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(cls, dtype):
    embeddings, labels = batch(dtype=dtype)
    expected = make(cls)(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = make(cls)(embeddings, labels)
    assert_same(actual, expected, embeddings)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(cls, dtype):
    half, labels = batch(dtype=dtype)
    single = half.detach().float().requires_grad_()
    actual, expected = make(cls)(half, labels), make(cls)(single, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)
    (actual,), (expected,) = torch.autograd.grad(actual, half), torch.autograd.grad(expected, single)
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() < torch.finfo(dtype).eps * expected.norm()


@but(SiMix)  # each mixture has a draw of its own
def test_order_of_the_batch_is_irrelevant(cls):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))
    assert_same(make(cls)(embeddings[order], labels[order]), make(cls)(embeddings, labels), embeddings)


@every_loss
def test_inputs_are_left_alone(cls):
    embeddings, labels = batch()
    copies = embeddings.detach().clone(), labels.clone()
    make(cls)(embeddings, labels).backward()
    assert torch.equal(embeddings, copies[0])
    assert torch.equal(labels, copies[1])


@our_losses
def test_compilation_changes_nothing(cls):
    embeddings, labels = batch()
    torch.compiler.reset()
    actual = torch.compile(make(cls), backend="eager")(embeddings, labels)
    assert_same(actual, make(cls)(embeddings, labels), embeddings)


@our_losses
def test_embeddings_must_be_two_dimensional(cls):
    with pytest.raises(ValueError, match="2, 3, 4"):
        make(cls)(torch.randn(2, 3, 4), torch.zeros(2, 2, dtype=torch.long))


@our_losses
def test_labels_must_be_as_many_as_embeddings(cls):
    with pytest.raises(ValueError, match="7"):
        make(cls)(torch.randn(6, 8), torch.zeros(7, 2, dtype=torch.long))


@our_losses
def test_labels_must_have_a_level(cls):
    with pytest.raises(ValueError, match="6, 0"):
        make(cls)(torch.randn(6, 8), torch.zeros(6, 0, dtype=torch.long))


@our_losses
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_embeddings_must_be_finite(cls, value):
    embeddings, labels = batch()
    broken = embeddings.detach().clone()
    broken[5, 3] = value
    with pytest.raises(ValueError, match="finite"):
        make(cls)(broken, labels)
    if cls not in (CSLLoss, NormSoftmaxLoss):  # which do not look at references
        with pytest.raises(ValueError, match="ref_emb must be finite"):
            make(cls)(embeddings, labels, ref_emb=broken, ref_labels=labels)


@our_losses
def test_embeddings_must_be_floating_point(cls):
    with pytest.raises(ValueError, match="int64"):
        make(cls)(torch.ones(6, 8, dtype=torch.long), torch.zeros(6, 2, dtype=torch.long))


@but(PairLoss, CSLLoss, NormSoftmaxLoss)
def test_references_must_fit(cls):
    embeddings, labels = batch()
    references, ref_labels = batch((3, 3), seed=1)
    with pytest.raises(ValueError, match="ref_labels"):
        make(cls)(embeddings, labels, ref_emb=references)
    with pytest.raises(ValueError, match="ref_emb"):
        make(cls)(embeddings, labels, ref_labels=ref_labels)
    with pytest.raises(ValueError, match="13"):
        make(cls)(embeddings, labels, ref_emb=torch.randn(6, 13), ref_labels=ref_labels)
    with pytest.raises(ValueError, match="5"):
        make(cls)(embeddings, labels, ref_emb=references, ref_labels=ref_labels[:5])


def test_pairs_must_fit():
    """pytorch-metric-learning has its own words for it."""
    embeddings, labels = batch()
    with pytest.raises(ValueError, match="Number of embeddings"):
        make(PairLoss)(embeddings, labels[:5])


@pytest.mark.parametrize("cls", [CSLLoss, NormSoftmaxLoss])
def test_labels_of_proxies_may_be_of_any_integer_type(cls):
    embeddings, labels = batch(dtype=torch.float32)
    torch.testing.assert_close(make(cls)(embeddings, labels.int()), make(cls)(embeddings, labels))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_query_weights_that_are_no_weights(weight):
    embeddings, labels = batch()
    weights = torch.ones(len(labels))
    weights[2] = weight
    with pytest.raises(ValueError, match=r"query_weights must be \d+ finite numbers, none below 0"):
        SmoothAPLoss()(embeddings, labels, query_weights=weights)


def test_references_of_another_precision():
    embeddings, labels = batch()
    single = embeddings.detach().float()
    value = SmoothAPLoss()(embeddings, labels, ref_emb=single, ref_labels=labels)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, SmoothAPLoss()(embeddings, labels, ref_emb=single.double(), ref_labels=labels))
