import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.losses import SmoothAPLoss
from dml.ranking.exact import exact_ranks
from dml.ranking.measures import average_precision
from dml.ranking.reference import reference_ranks


def batch(sizes=(4, 4, 4, 4, 4, 4), dimension=8, dtype=torch.float64, seed=0):
    """Unit embeddings in classes of these sizes, sorted by class, loosely clustered."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centres = torch.randn(len(sizes), dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), dimension, generator=generator, dtype=torch.float64)
    return normalize(centres[labels] + noise, dim=1).to(dtype).requires_grad_(), labels


def published_smooth_ap(embeddings, num_classes, temperature):
    """Smooth-AP as its authors wrote it; the batch has to be sorted by class, with classes of one size.

    Restates SmoothAP.forward of github.com/Andrew-Brown1/Smooth_AP, src/Smooth_AP_loss.py at 59927ec, lines 93-127.
    """
    size, group = len(embeddings), len(embeddings) // num_classes

    def soft_ranks(scores):  # [..., n] -> [..., n]
        exponent = ((scores.unsqueeze(-1) - scores.unsqueeze(-2)) / temperature).clamp(-50, 50)
        above = 1 / (1 + exponent.exp())  # [..., i, j]: j is above i
        return 1 + (above * (1 - torch.eye(scores.shape[-1], dtype=scores.dtype))).sum(dim=-1)

    scores = embeddings @ embeddings.T
    rank, value = soft_ranks(scores), 0
    for start in range(0, size, group):
        own = slice(start, start + group)
        value = value + (soft_ranks(scores[own, own]) / rank[own, own]).sum() / group / size
    return 1 - value


def defined_smooth_ap(scores, relevance, valid, temperature):
    """1 - AP of each query, by the definition in dml.ranking.reference and the measure written out."""
    step = lambda difference: torch.sigmoid(difference / temperature)  # noqa: E731
    ranks = reference_ranks(scores, relevance, valid, positive_step=step, negative_step=step)
    precision = ranks.hrank / ranks.rank
    return torch.stack([1 - precision[ranks.query == query].mean() for query in range(ranks.num_queries)])


def assert_same_value_and_gradient(actual, expected, *inputs, **tolerances):
    torch.testing.assert_close(actual, expected, **tolerances)
    for given, wanted in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(given, wanted, **tolerances)


@pytest.mark.parametrize("temperature", [0.01, 0.03, 0.1, 1.0])
def test_matches_published_code(temperature):
    embeddings, labels = batch()
    actual = SmoothAPLoss(temperature)(embeddings, labels)
    expected = published_smooth_ap(embeddings, 6, temperature)
    assert_same_value_and_gradient(actual, expected, embeddings, rtol=1e-9, atol=1e-10)


def test_default_temperature_is_the_published_one():
    embeddings, labels = batch()
    torch.testing.assert_close(SmoothAPLoss()(embeddings, labels), published_smooth_ap(embeddings, 6, 0.01))


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("sizes", [(3, 2, 4), (5, 1, 2, 1), (6,)], ids=str)
def test_matches_the_definition(sizes, include_self):
    embeddings, labels = batch(sizes)
    actual = SmoothAPLoss(0.05, include_self=include_self)(embeddings, labels)

    relevance = labels[:, None] == labels
    answerable = relevance.sum(dim=1) > 1
    valid = torch.full_like(relevance, True) if include_self else ~torch.eye(len(labels), dtype=torch.bool)
    scores = embeddings @ embeddings.T
    expected = defined_smooth_ap(scores[answerable], relevance[answerable], valid[answerable], 0.05).mean()
    assert_same_value_and_gradient(actual, expected, embeddings, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_matches_the_definition_against_references(include_self, chunk_size):
    """A separate gallery is taken whole, whatever ``include_self`` says; class 3 is not in it."""
    queries, labels = batch((2, 1, 2, 2))
    references, ref_labels = batch((3, 1, 4), seed=1)
    loss = SmoothAPLoss(0.05, include_self=include_self, chunk_size=chunk_size)
    actual = loss(queries, labels, ref_emb=references, ref_labels=ref_labels)

    relevance = (labels[:, None] == ref_labels)[:5]
    expected = defined_smooth_ap(queries[:5] @ references.T, relevance, torch.full_like(relevance, True), 0.05).mean()
    assert_same_value_and_gradient(actual, expected, queries, references, rtol=1e-9, atol=1e-10)


def test_the_query_in_its_own_gallery_flatters():
    embeddings, labels = batch()
    assert SmoothAPLoss(include_self=True)(embeddings, labels) < SmoothAPLoss(include_self=False)(embeddings, labels)


@pytest.mark.parametrize("include_self", [True, False])
def test_tends_to_average_precision_as_the_temperature_tends_to_zero(include_self):
    embeddings, labels = batch((3, 5, 2, 6))
    embeddings = embeddings.detach()
    valid = torch.ones(16, 16, dtype=torch.bool) if include_self else ~torch.eye(16, dtype=torch.bool)
    exact = average_precision(exact_ranks(embeddings @ embeddings.T, labels[:, None] == labels, valid)).mean()
    errors = [
        (1 - SmoothAPLoss(temperature, include_self=include_self)(embeddings, labels) - exact).abs().item()
        for temperature in (1.0, 1e-2, 1e-4, 1e-8)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] < 1e-12


def test_a_worked_example():
    # one query against three references: relevant 0.6 and 0.0, irrelevant 0.2; temperature 0.2
    def above(difference):
        return 1 / (1 + np.exp(-difference / 0.2))

    first = (1 + above(-0.6)) / (1 + above(-0.6) + above(-0.4))
    second = (1 + above(0.6)) / (1 + above(0.6) + above(0.2))
    query, references = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.2, 0.0], [0.0, 1.0]])
    value = SmoothAPLoss(0.2)(query, torch.tensor([7]), ref_emb=references, ref_labels=torch.tensor([7, 8, 7]))
    assert value.item() == pytest.approx(1 - (first + second) / 2, abs=1e-6)


@pytest.mark.parametrize("include_self", [True, False])
def test_collapsed_embeddings_score_chance(include_self):
    # all scores tie, so each of the n - 1 other items is half above: ranks 1 + (n - 1) / 2, for n = N and for n = R
    embeddings = torch.ones(12, 4, dtype=torch.float64) / 2
    labels = torch.arange(4).repeat_interleave(3)
    num_items, num_relevant = (12, 3) if include_self else (11, 2)
    value = SmoothAPLoss(include_self=include_self)(embeddings, labels)
    assert value.item() == pytest.approx(1 - (num_relevant + 1) / (num_items + 1), abs=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 3, 5), (7,)], ids=str)
def test_gradcheck(sizes, include_self, chunk_size):
    embeddings, labels = batch(sizes, dimension=3)
    loss = SmoothAPLoss(0.1, include_self=include_self, chunk_size=chunk_size)
    assert torch.autograd.gradcheck(lambda embeddings: loss(embeddings, labels), embeddings)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradcheck_against_references(chunk_size):
    queries, labels = batch((2, 3), dimension=3)
    references, ref_labels = batch((1, 4, 2), dimension=3, seed=1)
    loss = SmoothAPLoss(0.1, chunk_size=chunk_size)
    assert torch.autograd.gradcheck(
        lambda queries, references: loss(queries, labels, ref_emb=references, ref_labels=ref_labels),
        (queries, references),
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_float32_is_close_to_float64(temperature):
    double, labels = batch()
    single = double.detach().float().requires_grad_()
    actual, expected = SmoothAPLoss(temperature)(single, labels), SmoothAPLoss(temperature)(double, labels)
    assert actual.item() == pytest.approx(expected.item(), abs=1e-5)
    (actual,), (expected,) = torch.autograd.grad(actual, single), torch.autograd.grad(expected, double)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-4)


def test_only_the_finest_level_is_ranked():
    embeddings, labels = batch()
    levels = torch.stack([labels, labels // 3], dim=1)
    torch.testing.assert_close(SmoothAPLoss()(embeddings, levels), SmoothAPLoss()(embeddings, labels))
    assert SmoothAPLoss()(embeddings, levels.flip(1)) != SmoothAPLoss()(embeddings, labels)


@pytest.mark.parametrize("temperature", [0.0, -0.01])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=str(temperature)):
        SmoothAPLoss(temperature)
