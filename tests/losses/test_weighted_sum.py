import pytest
from pytorch_metric_learning.losses import MultiSimilarityLoss
from torch import nn

from dml.losses import (
    CalibrationLoss,
    CSLLoss,
    NormSoftmaxLoss,
    PairLoss,
    SmoothAPLoss,
    SupAPLoss,
    WeightedSum,
)
from tests.losses.batches import assert_same, batch


class Constant(nn.Module):
    """A loss with a value and something to report."""

    def __init__(self, value, logged=None):
        super().__init__()
        self.value = value
        if logged is not None:
            self.logged = logged

    def forward(self, embeddings, labels, *, ref_emb=None, ref_labels=None, include_batch=False):
        return self.value + 0 * embeddings.sum()


def as_numbers(logged):
    return {name: float(value) for name, value in logged.items()}


def test_is_the_weighted_sum_in_value_and_gradient():
    embeddings, labels = batch()
    terms = [SupAPLoss(), CalibrationLoss(), NormSoftmaxLoss(6, 8)]
    loss = WeightedSum(terms, [0.5, 2.0, 0.1])
    expected = (
        0.5 * terms[0](embeddings, labels) + 2 * terms[1](embeddings, labels) + 0.1 * terms[2](embeddings, labels)
    )
    assert_same(loss(embeddings, labels), expected, (embeddings, terms[2].proxies.weight))


@pytest.mark.parametrize("weights", [None, [1.0, 1.0]])
def test_weights_are_one_by_default(weights):
    embeddings, labels = batch()
    expected = SupAPLoss()(embeddings, labels) + CalibrationLoss()(embeddings, labels)
    assert_same(WeightedSum([SupAPLoss(), CalibrationLoss()], weights)(embeddings, labels), expected, embeddings)


def test_one_loss_is_that_loss():
    embeddings, labels = batch()
    assert_same(WeightedSum([SupAPLoss()])(embeddings, labels), SupAPLoss()(embeddings, labels), embeddings)


def test_references_are_handed_on():
    (embeddings, labels), (references, ref_labels) = batch(), batch(seed=1)
    gallery = {"ref_emb": references, "ref_labels": ref_labels}
    actual = WeightedSum([SupAPLoss(), CalibrationLoss()])(embeddings, labels, **gallery)
    expected = SupAPLoss()(embeddings, labels, **gallery) + CalibrationLoss()(embeddings, labels, **gallery)
    assert_same(actual, expected, (embeddings, references))


def test_terms_are_logged_without_their_weight():
    embeddings, labels = batch()
    loss = WeightedSum([SupAPLoss(), CalibrationLoss()], [0.5, 3.0])
    assert loss.logged == {}
    loss(embeddings, labels)
    expected = {
        "SupAPLoss": SupAPLoss()(embeddings, labels).item(),
        "CalibrationLoss": CalibrationLoss()(embeddings, labels).item(),
    }
    assert as_numbers(loss.logged) == expected
    assert not any(value.requires_grad for value in loss.logged.values())


def test_what_a_term_reports_is_logged_under_its_name():
    loss = WeightedSum([SmoothAPLoss(), Constant(2.0, {"a": 3.0})])
    loss(*batch((1, 4, 1), levels=1))
    del loss.logged["SmoothAPLoss"]
    assert as_numbers(loss.logged) == {"SmoothAPLoss_queries_left_out": 2.0, "Constant": 2.0, "Constant_a": 3.0}


def test_terms_of_one_class_have_names_of_their_own():
    loss = WeightedSum([Constant(1.0), SmoothAPLoss(), Constant(2.0), Constant(3.0, {"a": 4.0})])
    value = loss(*batch())
    logged = as_numbers(loss.logged)
    assert value.item() == pytest.approx(6 + logged.pop("SmoothAPLoss"))
    assert logged == {"Constant": 1.0, "Constant_3": 2.0, "Constant_4": 3.0, "Constant_4_a": 4.0}


def test_sums_may_be_nested():
    inner = WeightedSum([Constant(1.0), Constant(2.0)], [1.0, 10.0])
    loss = WeightedSum([inner, Constant(4.0)], [100.0, 1.0])
    assert loss(*batch()) == 2104
    assert as_numbers(loss.logged) == {
        "WeightedSum": 21.0,
        "WeightedSum_Constant": 1.0,
        "WeightedSum_Constant_2": 2.0,
        "Constant": 4.0,
    }


def test_log_is_that_of_the_last_batch():
    loss = WeightedSum([SmoothAPLoss(), Constant(1.0)])
    loss(*batch((1, 4, 1), levels=1))
    loss(*batch())
    assert list(loss.logged) == ["SmoothAPLoss", "Constant"]


def test_parameters_and_state_of_terms_are_its_own():
    proxies = NormSoftmaxLoss(6, 8), CSLLoss(6, 8, margins=(0.25, 0.45))
    loss = WeightedSum([SupAPLoss(), *proxies])
    assert {id(parameter) for parameter in loss.parameters()} == {id(each.proxies.weight) for each in proxies}
    assert {id(buffer) for buffer in loss.buffers()} == {id(proxies[1].proxy_labels)}
    resumed = WeightedSum([SupAPLoss(), NormSoftmaxLoss(6, 8), CSLLoss(6, 8, margins=(0.25, 0.45))])
    resumed.load_state_dict(loss.state_dict())
    assert resumed(*batch()) == loss(*batch())


def test_losses_of_pytorch_metric_learning_may_be_terms():
    embeddings, labels = batch()
    loss = WeightedSum([SupAPLoss(), PairLoss(MultiSimilarityLoss())], [1.0, 0.5])
    expected = SupAPLoss()(embeddings, labels) + 0.5 * MultiSimilarityLoss()(embeddings, labels[:, 0])
    assert_same(loss(embeddings, labels), expected, embeddings)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ([], None, "losses are 0"),
        ([], [], "losses are 0"),
        ([Constant(1.0)], [1.0, 2.0], r"losses are 1 and weights \[1.0, 2.0\]"),
        ([Constant(1.0), Constant(2.0)], [], r"losses are 2 and weights \[\]"),
    ],
    ids=["none", "none-with-weights", "too-many", "too-few"],
)
def test_there_must_be_a_weight_for_each_of_one_or_more_losses(losses, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedSum(losses, weights)
