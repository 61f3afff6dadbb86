"""The losses that compare pairs of items, each with its definition."""

import functools

import pytest
import torch

from dml.losses import (
    SmoothAPLoss,
    SmoothHAPLoss,
    SmoothNDCGLoss,
    SmoothRecallLoss,
    SupAPLoss,
    SupHAPLoss,
    SupNDCGLoss,
    SupRecallLoss,
)
from tests.losses.batches import assert_same, batch, tied_batch
from tests.losses.definitions import (
    average_precision,
    binary,
    defined_loss,
    exponential_gain,
    ndcg,
    recall,
    split_over_population,
)
from tests.ranking.restated_steps import restated_heaviside, restated_sigmoid, restated_upper_bound

# At the default temperature of 0.01 nearly every pair is decided, and a wrong slope would hardly be seen.
SMOOTH = {"temperature": 0.1}
BOUND = {"temperature": 0.1, "slope": 3.0, "margin": 0.2, "jump": 0.5, "offset": None}
DROPPING = {"temperature": 0.2, "slope": 2.0, "margin": 0.5, "jump": 0.1, "offset": 0.9}
SMOOTH_STEPS = (restated_sigmoid(0.1),) * 2
BOUND_STEPS = (restated_heaviside, restated_upper_bound(**BOUND))
DROPPING_STEPS = (restated_heaviside, restated_upper_bound(**DROPPING))

quadratic = functools.partial(split_over_population, exponent=2.0)
AT_K = {"at_k": (1, 3), "recall_temperature": 0.7}
some_recall = recall((1, 3), 0.7)
DEFINED = {
    "SmoothAP": (SmoothAPLoss, SMOOTH, average_precision, binary, SMOOTH_STEPS),
    "SmoothHAP": (SmoothHAPLoss, SMOOTH, average_precision, split_over_population, SMOOTH_STEPS),
    "SmoothHAP-quadratic": (
        SmoothHAPLoss,
        SMOOTH | {"level_exponent": 2.0},
        average_precision,
        quadratic,
        SMOOTH_STEPS,
    ),
    "SmoothNDCG": (SmoothNDCGLoss, SMOOTH, ndcg, exponential_gain, SMOOTH_STEPS),
    "SmoothRecall": (SmoothRecallLoss, SMOOTH | AT_K, some_recall, binary, SMOOTH_STEPS),
    "SupAP": (SupAPLoss, BOUND, average_precision, binary, BOUND_STEPS),
    "SupAP-dropping": (SupAPLoss, DROPPING, average_precision, binary, DROPPING_STEPS),
    "SupHAP": (SupHAPLoss, BOUND, average_precision, split_over_population, BOUND_STEPS),
    "SupHAP-dropping": (SupHAPLoss, DROPPING | {"level_exponent": 2.0}, average_precision, quadratic, DROPPING_STEPS),
    "SupNDCG": (SupNDCGLoss, BOUND, ndcg, exponential_gain, BOUND_STEPS),
    "SupNDCG-dropping": (SupNDCGLoss, DROPPING, ndcg, exponential_gain, DROPPING_STEPS),
    "SupRecall": (SupRecallLoss, BOUND | AT_K, some_recall, binary, BOUND_STEPS),
    "SupRecall-dropping": (SupRecallLoss, DROPPING | AT_K, some_recall, binary, DROPPING_STEPS),
}
BATCHES = {
    "one level": batch((3, 1, 2), levels=1),
    "two levels": batch((3, 1, 2)),
    "three levels": batch((2, 1, 1, 1, 2), levels=3),
    "one class": batch((4,)),
    "ties": tied_batch((3, 1, 3)),
}
every_definition = pytest.mark.parametrize("defined", DEFINED.values(), ids=DEFINED)


def finest_if_binary(relevance, labels):
    return labels[:, :1] if relevance is binary else labels


@every_definition
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("name", BATCHES)
def test_equals_the_definition(defined, name, include_self):
    cls, options, measure, relevance, steps = defined
    embeddings, labels = BATCHES[name]
    expected = defined_loss(
        measure, relevance, steps, (embeddings, finest_if_binary(relevance, labels)), include_self=include_self
    )
    for chunk_size in (None, 2):
        actual = cls(**options, include_self=include_self, chunk_size=chunk_size)(embeddings, labels)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
        gradients = (torch.autograd.grad(value, embeddings, retain_graph=True)[0] for value in (actual, expected))
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@every_definition
@pytest.mark.parametrize("include_self", [True, False])
def test_equals_the_definition_against_references(defined, include_self):
    """A separate gallery is taken whole, whatever ``include_self`` says; classes 1 and 3 are not in it."""
    cls, options, measure, relevance, steps = defined
    queries, labels = batch((2, 1, 2, 2))
    references, ref_labels = batch((3, 0, 4), seed=1)
    actual = cls(**options, include_self=include_self)(queries, labels, ref_emb=references, ref_labels=ref_labels)
    expected = defined_loss(
        measure,
        relevance,
        steps,
        (queries, finest_if_binary(relevance, labels)),
        (references, finest_if_binary(relevance, ref_labels)),
    )
    assert_same(actual, expected, (queries, references), rtol=1e-9, atol=1e-9)


@every_definition
def test_gradcheck(defined):
    """Away from ties, where the value jumps."""
    cls, options, *_ = defined
    embeddings, labels = batch((2, 2, 1, 1), dimension=2, levels=3)
    loss = cls(**options, chunk_size=4)
    assert torch.autograd.gradcheck(lambda embeddings: loss(embeddings, labels), embeddings)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize(
    ("hierarchical", "flat", "options"), [(SmoothHAPLoss, SmoothAPLoss, SMOOTH), (SupHAPLoss, SupAPLoss, BOUND)]
)
def test_hierarchical_average_precision_of_one_level_is_average_precision(hierarchical, flat, options, include_self):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7), levels=1)
    actual = hierarchical(**options, include_self=include_self)(embeddings, labels)
    assert_same(actual, flat(**options, include_self=include_self)(embeddings, labels), embeddings)


@pytest.mark.parametrize(
    ("smooth", "bound"),
    [
        (SmoothAPLoss, SupAPLoss),
        (SmoothHAPLoss, SupHAPLoss),
        (SmoothNDCGLoss, SupNDCGLoss),
        (SmoothRecallLoss, SupRecallLoss),
    ],
)
def test_both_kinds_tend_to_the_same_measure(smooth, bound):
    """Of true ranks, and so does the bound where it is flat: no slope, no jump, and 1 beyond the margin."""
    embeddings, labels = batch((4, 1, 7, 2, 3, 7), levels=3)
    flat = bound(temperature=1e-9, slope=0.0, margin=0.0, jump=0.0, offset=1.0)
    torch.testing.assert_close(flat(embeddings, labels), smooth(temperature=1e-9)(embeddings, labels))
