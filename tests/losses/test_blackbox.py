import functools

import pytest
import torch

from dml.losses import BlackboxAPLoss, BlackboxRecallLoss
from tests.losses.batches import assert_same, batch


def true_ranks(scores):
    """1 for the highest of each row."""
    return 1 + scores.argsort(dim=1, descending=True).argsort(dim=1).to(scores.dtype)


class PublishedRanker(torch.autograd.Function):
    """Restates TrueRanker of github.com/martius-lab/blackbox-backprop, blackbox_backprop/ranking.py at 0152a6d."""

    @staticmethod
    def forward(ctx, scores, lambda_val):
        ranks = true_ranks(scores) / scores.shape[1]
        ctx.lambda_val = lambda_val
        ctx.save_for_backward(scores, ranks)
        return ranks

    @staticmethod
    def backward(ctx, grad):
        scores, ranks = ctx.saved_tensors
        moved = true_ranks(scores + ctx.lambda_val * grad) / scores.shape[1]
        return -(ranks - moved) / ctx.lambda_val, None


def published_ranks(scores, relevant, lambda_val):
    """Ranks over the size of the gallery: among all items, and among relevant ones, which has no gradient."""
    ranks = PublishedRanker.apply(scores, lambda_val)
    within = true_ranks((scores.detach() - scores.min() + 1) * relevant) / scores.shape[1]
    return ranks, within


def published_ap(scores, relevant, lambda_val, margin):
    """blackbox_backprop/mAP.py without its noise, and without the 1e-5 that it adds to the number of relevant items."""
    ranks, within = published_ranks(scores - margin * (relevant - 0.5), relevant, lambda_val)
    return 1 - ((within / ranks * relevant).sum(dim=1) / relevant.sum(dim=1)).mean()


def published_recall(scores, relevant, lambda_val, margin, log_of_log=False):
    """blackbox_backprop/recall.py: ranks over the size of the gallery, times the number of queries, the same here."""
    ranks, within = published_ranks(scores - margin * (relevant - 0.5), relevant, lambda_val)
    penalty = torch.log1p(scores.shape[1] * (ranks - within) * relevant)
    penalty = torch.log1p(penalty) if log_of_log else penalty
    return penalty.sum() / relevant.sum()


PUBLISHED = {
    "AP": (BlackboxAPLoss, {}, published_ap),
    "Recall": (BlackboxRecallLoss, {}, published_recall),
    "Recall-log": (
        BlackboxRecallLoss,
        {"log_of_log": True},
        functools.partial(published_recall, log_of_log=True),
    ),
}
every_loss = pytest.mark.parametrize(("cls", "options", "published"), PUBLISHED.values(), ids=PUBLISHED)
every_setting = pytest.mark.parametrize(
    ("lambda_val", "margin"), [(4.0, 0.02), (0.2, 0.2), (50.0, 0.0)], ids=["default", "near", "far"]
)


@every_loss
@every_setting
def test_a_query_equals_published_code(cls, options, published, lambda_val, margin):
    for seed in range(10):
        embeddings, labels = batch((5, 5, 5, 5), seed=seed)
        query, query_labels = batch((1,), seed=100 + seed)
        scores, relevant = query @ embeddings.T, (query_labels[:, :1] == labels[:, 0]).double()
        loss = cls(lambda_val, margin, **options)
        actual = loss(query, query_labels, ref_emb=embeddings, ref_labels=labels)
        assert_same(actual, published(scores, relevant, lambda_val, margin), (query, embeddings), rtol=1e-9, atol=1e-12)


@every_loss
@every_setting
def test_equals_published_code(cls, options, published, lambda_val, margin):
    """A look ahead of lambda times the gradient of the mean over the queries, the query in its own gallery."""
    embeddings, labels = batch((4, 4, 4, 4, 4))
    expected = published(embeddings @ embeddings.T, (labels[:, :1] == labels[:, 0]).double(), lambda_val, margin)
    for chunk_size in (None, 7):
        actual = cls(lambda_val, margin, **options, chunk_size=chunk_size)(embeddings, labels)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(value, embeddings, retain_graph=True)[0] for value in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@every_loss
@every_setting
def test_equals_published_code_without_the_query_in_its_gallery(cls, options, published, lambda_val, margin):
    """A gallery of one item less, by whose size the ranks are divided."""
    embeddings, labels = batch((4, 4, 4))
    others = ~torch.eye(12, dtype=torch.bool)
    scores, relevant = embeddings @ embeddings.T, (labels[:, :1] == labels[:, 0]).double()
    expected = published(scores[others].view(12, 11), relevant[others].view(12, 11), lambda_val, margin)
    actual = cls(lambda_val, margin, **options, include_self=False)(embeddings, labels)
    assert_same(actual, expected, embeddings, rtol=1e-9, atol=1e-12)


def handicapped(embeddings, labels, seed):
    """Restates the noise: the handicap of each item, times the size of a normal draw; each query has its own seed."""
    first = int(torch.randint(2**32, (), generator=torch.Generator().manual_seed(seed)))
    generators = [torch.Generator().manual_seed((first + query) % 2**32) for query in range(len(labels))]
    draws = torch.stack([torch.randn(len(labels), generator=generator) for generator in generators]).abs().double()
    relevant = (labels[:, :1] == labels[:, 0]).double()
    return embeddings @ embeddings.T - 0.2 * draws * (relevant - 0.5), relevant


def test_noise_is_that_of_the_seed():
    embeddings, labels = batch()
    scores, relevant = handicapped(embeddings, labels, seed=5)
    actual = BlackboxAPLoss(margin=0.2, seed=5)(embeddings, labels)
    torch.testing.assert_close(actual, published_ap(scores, relevant, 4.0, 0.0))


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_noise_does_not_depend_on_the_chunks(chunk_size):
    embeddings, labels = batch()
    whole, cut = BlackboxAPLoss(margin=0.2, seed=5), BlackboxAPLoss(margin=0.2, seed=5, chunk_size=chunk_size)
    for _ in range(3):
        assert_same(cut(embeddings, labels), whole(embeddings, labels), embeddings)


def test_noise_differs_from_call_to_call_and_from_seed_to_seed():
    embeddings, labels = batch()
    loss = BlackboxAPLoss(margin=0.2, seed=5)
    assert len({loss(embeddings, labels).item() for _ in range(4)}) == 4
    assert BlackboxAPLoss(margin=0.2, seed=6)(embeddings, labels) != BlackboxAPLoss(margin=0.2, seed=5)(
        embeddings, labels
    )


def test_without_a_seed_there_is_no_noise():
    embeddings, labels = batch()
    loss = BlackboxAPLoss(margin=0.2)
    assert loss(embeddings, labels) == loss(embeddings, labels)
    assert loss.state_dict() == {}


def test_noise_goes_on_where_it_was_saved():
    embeddings, labels = batch()
    loss, resumed = BlackboxAPLoss(margin=0.2, seed=5), BlackboxAPLoss(margin=0.2, seed=6)
    loss(embeddings, labels)
    resumed.load_state_dict(loss.state_dict())
    first = loss(embeddings, labels)
    assert resumed(embeddings, labels) == first
    assert resumed(embeddings, labels) == loss(embeddings, labels) != first


@pytest.mark.parametrize("cls", [BlackboxAPLoss, BlackboxRecallLoss])
def test_the_margin_is_between_the_classes(cls):
    """Scores 0.5 above and below: a smaller margin costs nothing, a larger one does."""
    embeddings = torch.eye(4, dtype=torch.float64).repeat_interleave(2, dim=0)
    embeddings = (embeddings + embeddings.sum(dim=0) * 0.1).requires_grad_()
    scores, labels = embeddings @ embeddings.T, torch.arange(4).repeat_interleave(2)
    apart = (scores[0, 1] - scores[0, 2]).item()
    assert cls(margin=apart - 0.01)(embeddings, labels) == 0
    assert cls(margin=apart + 0.01)(embeddings, labels) > 0.3


@pytest.mark.parametrize("cls", [BlackboxAPLoss, BlackboxRecallLoss])
@pytest.mark.parametrize("lambda_val", [0.0, -1.0])
def test_lambda_must_be_positive(cls, lambda_val):
    with pytest.raises(ValueError, match=f"lambda.* is {lambda_val}"):
        cls(lambda_val)(*batch())
