import pytest
import torch

from dml.losses import SmoothAPLoss, SupAPLoss
from tests.losses.batches import batch, ranking


def one_less_average_precision(embeddings, labels, include_self):
    """By sorting each row of scores."""
    scores, costs = embeddings @ embeddings.T, []
    for query in range(len(labels)):
        items = [item for item in range(len(labels)) if include_self or item != query]
        hits = [labels[item] == labels[query] for item in sorted(items, key=lambda item: -scores[query, item].item())]
        precisions = [sum(hits[: place + 1]).item() / (place + 1) for place, hit in enumerate(hits) if hit]
        if len(precisions) > include_self:
            costs.append(1 - sum(precisions) / len(precisions))
    return sum(costs) / len(costs)


def gradient_of_scores(loss, scores, relevant):
    query, references = ranking(scores)
    value = loss(query, torch.tensor([1]), ref_emb=references, ref_labels=torch.tensor(relevant))
    return torch.autograd.grad(value, references)[0][:, 0]


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("options", [{}, {"offset": 1.44}, {"temperature": 0.5, "slope": 0.0}], ids=str)
def test_is_an_upper_bound(options, include_self):
    """With a jump of 0.5. The published 1.44 beyond the margin is above 1, and so bounds too."""
    loss = SupAPLoss(**options, include_self=include_self)
    for seed in range(10):
        embeddings, labels = batch((4, 1, 7, 2, 3), levels=1, seed=seed)
        assert loss(embeddings, labels) >= one_less_average_precision(embeddings, labels[:, 0], include_self)


@pytest.mark.parametrize(
    ("loss", "is_bound"),
    [
        (SupAPLoss(), True),
        (SupAPLoss(0.1), True),
        (SupAPLoss(0.1, slope=0.0), True),
        (SupAPLoss(0.1, jump=0.0, offset=1.0), False),  # of the iNaturalist configuration
        (SmoothAPLoss(0.1), False),
    ],
    ids=["default", "wide", "flat", "no-jump", "sigmoid"],
)
def test_is_an_upper_bound_where_a_sigmoid_is_not(loss, is_bound):
    """Two irrelevant items just above the relevant one: its AP is 1 / 3."""
    query, references = ranking([0.5, 0.51, 0.52])
    value = loss(query, torch.tensor([1]), ref_emb=references, ref_labels=torch.tensor([1, 2, 2]))
    assert (value >= 2 / 3) == is_bound


def test_no_relevant_item_is_pushed_down():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = gradient_of_scores(SupAPLoss(0.1), torch.rand(12, generator=generator), [1] * 5 + [0] * 7)
        assert (gradient[:5] <= 0).all()
        assert (gradient[5:] >= 0).all()
    # two relevant items next to each other, below an irrelevant one: to swap them pays, as the lower gains more
    assert gradient_of_scores(SmoothAPLoss(), [0.5, 0.49, 0.9], [1, 1, 0])[0] > 0
    assert (gradient_of_scores(SupAPLoss(), [0.5, 0.49, 0.9], [1, 1, 0])[:2] < 0).all()


def test_relevant_items_move_no_relevant_item():
    """As long as their order stays, it does not matter how far apart they are; irrelevant items do matter."""
    gradient = gradient_of_scores(SupAPLoss(0.1), [0.9, 0.5, 0.1, 0.45], [1, 1, 1, 0])[1]
    closer = gradient_of_scores(SupAPLoss(0.1), [0.6, 0.5, 0.49, 0.45], [1, 1, 1, 0])[1]
    torch.testing.assert_close(closer, gradient, rtol=1e-12, atol=0)
    assert gradient_of_scores(SupAPLoss(0.1), [0.9, 0.5, 0.1, 0.44], [1, 1, 1, 0])[1] > gradient
    assert gradient_of_scores(SupAPLoss(0.1), [0.9, 0.5, 0.1], [1, 1, 1]).abs().max() < 1e-12


def test_gradient_does_not_vanish_on_badly_ranked_items():
    scores, relevant = [0.1, 0.9], [1, 0]
    assert gradient_of_scores(SmoothAPLoss(), scores, relevant).abs().max() < 1e-30
    # the irrelevant item counts for s = 0.993 + 0.5 + 100 (0.8 - 0.05); d(1 - 1 / (1 + s)) = 100 / (1 + s)^2
    above = 1 / (1 + torch.tensor(-5.0).exp().item()) + 0.5 + 100 * 0.75
    expected = torch.tensor([-100, 100]).double() / (1 + above) ** 2
    torch.testing.assert_close(gradient_of_scores(SupAPLoss(), scores, relevant), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"slope": -1.0}, "slope is -1.0"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SupAPLoss(**options)
