import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner

from dml.losses import PairLoss
from tests.losses.batches import assert_same, batch

every_pair_loss = pytest.mark.parametrize(
    ("loss", "miner"),
    [
        (MultiSimilarityLoss(), None),
        (MultiSimilarityLoss(), MultiSimilarityMiner()),
        (TripletMarginLoss(), BatchHardMiner()),
    ],
    ids=["loss", "pairs", "triplets"],
)


@every_pair_loss
@pytest.mark.parametrize("level", [0, 1, 2])
def test_is_the_loss_with_its_miner_at_a_level(loss, miner, level):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7), levels=3)
    column = labels[:, level]
    expected = loss(embeddings, column, miner and miner(embeddings, column))
    assert_same(PairLoss(loss, miner, level)(embeddings, labels), expected, embeddings)


@every_pair_loss
def test_references_are_paired_with(loss, miner):
    (embeddings, labels), (references, ref_labels) = batch(), batch((5, 5, 1, 3), seed=1)
    column, others = labels[:, 1], ref_labels[:, 1]
    mined = miner and miner(embeddings, column, references, others)
    expected = loss(embeddings, column, mined, references, others)
    actual = PairLoss(loss, miner, 1)(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    assert_same(actual, expected, (embeddings, references))


def test_a_miner_changes_the_loss():
    embeddings, labels = batch()
    mined = PairLoss(TripletMarginLoss(), BatchHardMiner())(embeddings, labels)
    assert mined != PairLoss(TripletMarginLoss())(embeddings, labels)


def test_one_dimensional_labels_are_one_level():
    embeddings, labels = batch()
    loss = PairLoss(ContrastiveLoss())
    assert_same(loss(embeddings, labels[:, 0]), loss(embeddings, labels), embeddings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_has_the_precision_of_the_embeddings(dtype):
    embeddings, labels = batch(dtype=dtype)
    value = PairLoss(ContrastiveLoss())(embeddings, labels)
    assert value.dtype == torch.autograd.grad(value, embeddings)[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_passed_on_in_float32(dtype):
    half, labels = batch(dtype=dtype)
    single = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = PairLoss(MultiSimilarityLoss(), MultiSimilarityMiner())(half, labels)
    expected = PairLoss(MultiSimilarityLoss(), MultiSimilarityMiner())(single, labels)
    torch.testing.assert_close(actual, expected)
    (gradient,) = torch.autograd.grad(actual, half)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, single)[0].to(dtype))


@pytest.mark.parametrize(("level", "levels", "allowed"), [(2, 2, "0 to 1"), (-1, 2, "0 to 1"), (1, 1, "0 to 0")])
def test_a_level_that_labels_do_not_have_is_named(level, levels, allowed):
    embeddings, labels = batch(levels=levels)
    with pytest.raises(ValueError, match=f"level is {level}; .* {allowed}"):
        PairLoss(ContrastiveLoss(), level=level)(embeddings, labels)
    good = batch(levels=3)[1]
    with pytest.raises(ValueError, match=f"level is {level}; "):
        PairLoss(ContrastiveLoss(), level=level)(
            embeddings, good if level >= 0 else labels, ref_emb=embeddings, ref_labels=labels
        )
