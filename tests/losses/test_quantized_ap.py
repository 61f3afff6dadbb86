import pytest
import torch

from dml.losses import FastAPLoss, QuantizedAPLoss, TieAwareQuantizedAPLoss
from tests.losses.batches import assert_same, batch, ranking


def histograms(scores, relevant, num_bins, min_score, max_score):
    """Soft counts of all items and of relevant ones ``[Q, bins]``, highest bin first.

    As in dirtorch/loss.py of github.com/naver/deep-image-retrieval at 6102477: triangles around evenly spaced centres;
    the first bin takes what is above, the last one what is below.
    """
    centres = torch.linspace(max_score, min_score, num_bins, dtype=scores.dtype)
    gap = (max_score - min_score) / (num_bins - 1)
    clamped = scores.clamp(min_score, max_score).unsqueeze(2)
    share = (1 - (clamped - centres).abs() / gap).clamp(min=0)  # [Q, N, bins]
    return share.sum(dim=1), (share * relevant.unsqueeze(2)).sum(dim=1)


def published_ap(items, hits):
    """APLoss.compute_AP; the authors divide by zero where a query has nothing to retrieve."""
    precision = hits.cumsum(dim=1) / (1e-16 + items.cumsum(dim=1))
    return (precision * hits / hits.sum(dim=1, keepdim=True)).sum(dim=1)


def published_tie_aware_ap(items, hits, simplified=False):
    """TAPLoss.compute_AP."""
    above, hits_above = items.cumsum(dim=1) - items, hits.cumsum(dim=1) - hits
    until, hits_until = items.cumsum(dim=1), hits.cumsum(dim=1)
    if simplified:
        terms = hits * (hits_above + hits_until + 1) / (above + until + 1)
    else:
        ratio = (hits - 1).clamp(min=0) / ((items - 1).clamp(min=0) + 1e-8)
        integral = (hits_above + 1 - ratio * (above + 1)) * ((until + 1) / (above + 1)).log()
        terms = hits * (items * ratio + integral) / (items + 1e-8)
    return terms.sum(dim=1) / hits.sum(dim=1)


PUBLISHED = {
    "QuantizedAP": (QuantizedAPLoss, {}, published_ap),
    "TieAware": (TieAwareQuantizedAPLoss, {}, published_tie_aware_ap),
    "TieAware-simplified": (
        TieAwareQuantizedAPLoss,
        {"simplified": True},
        lambda items, hits: published_tie_aware_ap(items, hits, simplified=True),
    ),
}
every_loss = pytest.mark.parametrize(("cls", "options", "measure"), PUBLISHED.values(), ids=PUBLISHED)
every_bins = pytest.mark.parametrize(
    "bins", [(20, -1.0, 1.0), (25, 0.0, 1.0), (2, -0.3, 0.4), (100, -1.0, 1.0)], ids=str
)


@every_loss
@every_bins
def test_equals_the_published_formula(cls, options, measure, bins):
    """In a separate gallery, where no score lies on the end of the bins; some do lie beyond."""
    (embeddings, labels), (references, ref_labels) = batch((2, 1, 5, 3)), batch((4, 6, 1, 7), seed=1)
    relevant = (labels[:, :1] == ref_labels[:, 0]).double()
    expected = 1 - measure(*histograms(embeddings @ references.T, relevant, *bins)).mean()
    for chunk_size in (None, 4):
        loss = cls(*bins, **options, chunk_size=chunk_size)
        actual = loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        inputs = embeddings, references
        gradients = [torch.autograd.grad(value, inputs, retain_graph=True) for value in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
def test_equals_the_published_formula_in_its_own_gallery(cls, options, measure, include_self):
    embeddings, labels = batch((2, 1, 5, 3))
    labels = labels[:, 0]
    answerable = (labels[:, None] == labels).sum(dim=1) > 1
    scores, relevant = embeddings @ embeddings.T, (labels[:, None] == labels).double()
    others = ~torch.eye(11, dtype=torch.bool)
    if include_self:  # its score lies on the end of the bins, where it has a slope on one side only: here it has none
        scores = torch.where(others, scores, torch.ones_like(scores))
    else:
        scores, relevant = scores[others].view(11, 10), relevant[others].view(11, 10)
    expected = 1 - measure(*histograms(scores[answerable], relevant[answerable], 20, -1.0, 1.0)).mean()
    actual = cls(**options, include_self=include_self)(embeddings, labels)
    assert_same(actual, expected, embeddings, rtol=1e-9, atol=1e-10)


@every_loss
def test_both_modes_differ_from_each_other_and_from_plain_ap(cls, options, measure):
    embeddings, labels = batch((2, 1, 5, 3))
    values = [cls(**options)(embeddings, labels) for cls, options, _ in PUBLISHED.values()]
    assert len({round(value.item(), 3) for value in values}) == 3
    assert sum(bool(value == cls(**options)(embeddings, labels)) for value in values) == 1


@pytest.mark.parametrize("cls", [QuantizedAPLoss, TieAwareQuantizedAPLoss, FastAPLoss])
def test_a_query_without_relevant_items_is_no_number_to_the_authors_but_left_out_here(cls):
    embeddings, labels = batch((4, 1, 5, 1))
    assert published_ap(*histograms(embeddings[:1] @ embeddings.T, torch.zeros(1, 11), 20, -1.0, 1.0)).isnan()
    value = cls()(embeddings, labels)
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, embeddings)[0]).all()


def test_items_of_a_bin_in_random_order():
    """One bin of 4 items, 2 of them relevant: the mean of AP over their orders, with an integral for a sum."""
    query, references = ranking([1.0, 1.0, 1.0, 1.0])
    labels = torch.tensor([1, 1, 2, 2])
    tied = TieAwareQuantizedAPLoss()(query, labels[:1], ref_emb=references, ref_labels=labels)
    last = QuantizedAPLoss()(query, labels[:1], ref_emb=references, ref_labels=labels)
    assert last.item() == pytest.approx(1 / 2)  # each is ranked last in the bin
    ratio = (2 - 1) / (4 - 1)
    integral = ratio + (1 - ratio) * torch.tensor(5.0).log().item() / 4
    assert tied.item() == pytest.approx(1 - integral, abs=1e-6)


@pytest.mark.parametrize("cls", [QuantizedAPLoss, TieAwareQuantizedAPLoss])
def test_what_shares_a_flat_end_has_no_gradient(cls):
    """With bins over [0, 1], all negative scores share the last: precision there is the share of relevant items."""
    query, references = ranking([-0.1, -0.9, -0.5, -0.3])
    labels = torch.tensor([1, 2, 2, 2])
    value = cls(25, 0.0, 1.0)(query, labels[:1], ref_emb=references, ref_labels=labels)
    assert not torch.autograd.grad(value, references)[0].any()
    if cls is QuantizedAPLoss:
        assert value.item() == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("cls", "gap"), [(QuantizedAPLoss, 2 / 19), (TieAwareQuantizedAPLoss, 2 / 19), (FastAPLoss, 2 / 10)]
)
def test_float32_is_close_to_float64_in_a_large_gallery(cls, gap):
    """Above 20000 others, a relevant item of which a thousandth counts in the first bin and the rest in the second."""
    scores = torch.cat([torch.tensor([1 - 0.999 * gap, 0.3]), torch.linspace(-0.93, 0.17, 20000)])
    query, references = ranking(scores)
    ref_labels = torch.tensor([1, 1] + [2] * 20000)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        given = references.detach().to(dtype).requires_grad_()
        value = cls()(query.to(dtype), ref_labels[:1], ref_emb=given, ref_labels=ref_labels)
        gradients.append(torch.autograd.grad(value, given)[0].double())
    single, double = gradients
    assert (single - double).norm() < 1e-2 * double.norm()


@pytest.mark.parametrize("cls", [QuantizedAPLoss, TieAwareQuantizedAPLoss])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 1}, "num_bins is 1"),
        ({"min_score": 1.0}, "min_score is 1.0, max_score 1.0"),
        ({"min_score": 0.5, "max_score": -0.5}, "min_score is 0.5, max_score -0.5"),
    ],
    ids=str,
)
def test_options_out_of_range_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
