import pytest
import torch

from dml.losses import RecallAtKLoss, SmoothRecallLoss, SupRecallLoss
from tests.losses.batches import assert_same, batch, ranking


def published_recall_at_k(embeddings, group, at_k, temperature, recall_temperature):
    """As its authors wrote it; the batch has to be sorted by class, with classes of one size.

    Restates recallatk of github.com/yash0307/RecallatK_surrogate, src/losses.py at ed05202, lines 21-69: the query
    takes up a rank of its own gallery, and is not retrieved there.
    """
    scores = embeddings @ embeddings.T
    value = 0
    for query in range(len(embeddings)):
        first = query // group * group
        retrieved = dict.fromkeys(at_k, 0)
        for item in range(first, first + group):
            above = torch.sigmoid((scores[query] - scores[query, item]) / temperature)
            rank = 1 + above.sum() - above[item]
            if item != query:
                for k in at_k:
                    retrieved[k] = retrieved[k] + torch.sigmoid((k - rank) / recall_temperature)
        shares = [torch.clamp(retrieved[k], max=k) / min(k, group - 1) for k in at_k]
        value = value + (1 - sum(shares) / len(at_k)) / len(embeddings)
    return value


def in_order(embeddings, labels):
    order = labels[:, 0].argsort()
    return embeddings[order], labels[order]


@pytest.mark.parametrize(
    ("at_k", "recall_temperature"),
    [((1, 2, 4, 8, 16), 1.0), ((1,), 0.2), ((1, 2), 10.0)],
    ids=["default", "1", "capped"],
)
@pytest.mark.parametrize(("num_classes", "group"), [(5, 3), (3, 6), (6, 2)])
def test_equals_published_code(num_classes, group, at_k, recall_temperature):
    embeddings, labels = batch((group,) * num_classes)
    loss = RecallAtKLoss(at_k, 0.1, recall_temperature, include_self=True, chunk_size=4)
    expected = published_recall_at_k(in_order(embeddings, labels)[0], group, at_k, 0.1, recall_temperature)
    assert_same(loss(embeddings, labels), expected, embeddings, rtol=1e-9, atol=1e-10)


def test_the_cap_is_reached():
    """Or the comparison above would say nothing about it."""
    embeddings, labels = batch((6, 6, 6))
    smooth = SmoothRecallLoss((1, 2), 0.1, 10.0, include_self=False)(embeddings, labels)
    capped = RecallAtKLoss((1, 2), 0.1, 10.0)(embeddings, labels)
    assert smooth < 0 <= capped


@pytest.mark.parametrize(("at_k", "published"), [((1,), 0.462), ((1, 2, 4, 8, 16), 0.217)])
def test_least_value_of_published_code(at_k, published):
    """Of classes of three, each one point: of two relevant items and the query, half of the others is above each."""
    embeddings = torch.eye(4, dtype=torch.float64).repeat_interleave(3, dim=0)
    value = RecallAtKLoss(at_k, include_self=True)(embeddings, torch.arange(4).repeat_interleave(3))
    assert value.item() == pytest.approx(published, abs=5e-4)
    shares = [2 * torch.tensor(k - 2.0).sigmoid().item() / min(k, 2) for k in at_k]
    assert value.item() == pytest.approx(1 - sum(shares) / len(shares), abs=1e-6)


def test_by_default_the_query_takes_up_no_rank():
    """One query, ranks 1 and 3 of two relevant items: by definition, and as a batch that has the query in it."""
    query, references = ranking([0.9, 0.5, 0.1])
    labels = torch.tensor([1, 2, 1])
    shares = [(torch.tensor([k - 1.0, k - 3.0]) / 0.5).sigmoid().sum().item() / min(k, 2) for k in (1, 2)]
    expected = 1 - sum(shares) / 2
    loss = RecallAtKLoss((1, 2), 0.01, 0.5)
    value = loss(query, labels[:1], ref_emb=references, ref_labels=labels)
    assert value.item() == pytest.approx(expected, abs=1e-9)
    weights = torch.tensor([1.0, 0, 0, 0])
    batch, batch_labels = torch.cat([query, references]), torch.cat([labels[:1], labels])
    assert loss(batch, batch_labels, query_weights=weights).item() == pytest.approx(expected, abs=1e-9)
    with_query = RecallAtKLoss((1, 2), 0.01, 0.5, include_self=True)(batch, batch_labels, query_weights=weights).item()
    shares = [(torch.tensor([k - 2.0, k - 4.0]) / 0.5).sigmoid().sum().item() / min(k, 2) for k in (1, 2)]
    assert with_query == pytest.approx(1 - sum(shares) / 2, abs=1e-4)


def test_unequal_classes_of_any_order():
    """Each query counts once, however large its class: the mean of the queries of each class, by its size."""
    embeddings, labels = in_order(*batch((3, 3, 3)))
    references, ref_labels = batch((2, 5, 3), seed=1)
    loss = RecallAtKLoss(temperature=0.1)
    by_class = [
        loss(embeddings[labels[:, 0] == c], labels[labels[:, 0] == c], ref_emb=references, ref_labels=ref_labels)
        for c in range(3)
    ]
    actual = loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    torch.testing.assert_close(actual, torch.stack(by_class).mean())


@pytest.mark.parametrize("cls", [RecallAtKLoss, SmoothRecallLoss, SupRecallLoss])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_k": []}, r"at_k is \[\]"),
        ({"at_k": [0]}, r"at_k is \[0\]"),
        ({"at_k": [4, -1]}, r"at_k is \[4, -1\]"),
        ({"recall_temperature": 0.0}, "recall_temperature is 0.0"),
        ({"recall_temperature": -1.0}, "recall_temperature is -1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
    ids=str,
)
def test_options_out_of_range_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
