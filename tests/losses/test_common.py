"""What holds for every loss. Exporting a loss from ``dml.losses`` is enough to have it tested here."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch.nn.functional import normalize

import dml.losses
from dml.losses import (
    BlackboxAPLoss,
    BlackboxRecallLoss,
    RankLoss,
    RecallAtKLoss,
    SmoothAPLoss,
    SmoothHAPLoss,
    SmoothNDCGLoss,
    SmoothRecallLoss,
    SupHAPLoss,
    SupNDCGLoss,
    SupRecallLoss,
    TieAwareQuantizedAPLoss,
)
from tests.losses.batches import assert_same, batch, ranking, separated_batch

LOSSES = [
    cls
    for cls in vars(dml.losses).values()
    if inspect.isclass(cls) and issubclass(cls, RankLoss) and not inspect.isabstract(cls)
]
every_loss = pytest.mark.parametrize("loss", [cls() for cls in LOSSES], ids=lambda loss: type(loss).__name__)

# The ranks are true ranks and the gradient looks as far as lambda: a step has to be long enough to change the ranking.
BLACKBOX = (BlackboxAPLoss, BlackboxRecallLoss)
# These rank all label levels, the others the finest.
HIERARCHICAL = (SmoothHAPLoss, SmoothNDCGLoss, SupHAPLoss, SupNDCGLoss)
# An item at rank k counts half, which leaves these above 0.
RECALL = (RecallAtKLoss, SmoothRecallLoss, SupRecallLoss)
AT_K = (1, 2, 4, 8, 16)


def recall_cost(ranks):
    """The loss of a query whose relevant items have these ranks, by the formula of recall with a sigmoid."""
    shares = [sum(1 / (1 + math.exp(rank - k)) for rank in ranks) / min(k, len(ranks)) for k in AT_K]
    return 1 - sum(shares) / len(shares)


def ndcg_cost(gains, ranks):
    ideal = sum(gain / math.log2(2 + position) for position, gain in enumerate(sorted(gains, reverse=True)))
    return 1 - sum(gain / math.log2(1 + rank) for gain, rank in zip(gains, ranks, strict=True)) / ideal


def cost_when_separated(loss, include_self):
    """By formula, on ``separated_batch``: what has one score shares one rank, all others are where they belong."""
    num_own, num_near = 3 + include_self, 8  # items of the class, others of the superclass
    if isinstance(loss, (SupNDCGLoss, SupRecallLoss)):  # all that tie are above
        own, near = num_own, num_own + num_near
    else:  # half of what ties is above
        own, near = 1 + (num_own - 1) / 2, num_own + 1 + (num_near - 1) / 2
    if isinstance(loss, RecallAtKLoss):  # the query takes up a rank and is not counted
        return recall_cost([own] * 3)
    if isinstance(loss, RECALL):
        return recall_cost([own] * num_own)
    if isinstance(loss, (SmoothNDCGLoss, SupNDCGLoss)):
        return ndcg_cost([3] * num_own + [1] * num_near, [own] * num_own + [near] * num_near)
    return 0


def cost_of_perfect_ranking(loss):
    """The loss of a query with references in the right order, far apart: 4 of its class, 3 of its superclass, 2 others.

    The scores lie in the middle of the bins of FastAP, where no bin holds items of both kinds.
    """
    query, references = ranking([1.0, 0.9, 0.8, 0.7, 0.3, 0.2, 0.1, -0.2, -0.4])
    ref_labels = torch.tensor([[0, 0]] * 4 + [[2, 0], [2, 0], [4, 0], [1, 1], [3, 1]])
    return loss(query, torch.tensor([[0, 0]]), ref_emb=references, ref_labels=ref_labels)


def plainly(loss, embeddings, labels, ref_emb=None, ref_labels=None):
    """The mean of ``1 - measure``: all queries at once, differentiated by autograd from end to end."""
    own_gallery = ref_emb is None
    scores = embeddings @ (embeddings if own_gallery else ref_emb).T
    relevance = loss.relevance(labels, labels if own_gallery else ref_labels)
    itself = torch.eye(*scores.shape, dtype=torch.bool) & own_gallery
    valid = ~itself if not loss.include_self else torch.ones_like(itself)
    least = 1 if own_gallery and loss.self_is_relevant else 0
    if not loss.self_is_relevant:
        relevance = relevance * ~itself
    return (1 - loss.measure(scores, relevance, valid))[(relevance > 0).sum(dim=1) > least].mean()


def test_every_rank_loss_is_found():
    assert SmoothAPLoss in LOSSES


def test_the_hierarchical_losses_are_known():
    assert {cls for cls in LOSSES if cls.relevance is not RankLoss.relevance} == set(HIERARCHICAL)


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
def test_separated_classes_cost_nothing(loss, include_self):
    """Unless half of an item at rank k, or an order within the class, is asked for."""
    value = type(loss)(include_self=include_self)(*separated_batch())
    assert value.item() == pytest.approx(cost_when_separated(loss, include_self), abs=1e-6)


@every_loss
def test_perfect_ranking_costs_nothing(loss):
    value = cost_of_perfect_ranking(loss).item()
    if isinstance(loss, RECALL):
        assert value == pytest.approx(recall_cost([1, 2, 3, 4]), abs=1e-3)
    elif isinstance(loss, TieAwareQuantizedAPLoss):
        # An integral stands for a sum of precisions in each bin. It is exact only where all items share one bin.
        assert value == pytest.approx(0, abs=0.02)
    else:
        assert value == pytest.approx(0, abs=1e-3)


@every_loss
def test_collapsed_embeddings_are_no_perfect_ranking(loss):
    """Ties count against: a model that maps everything to one point must not look good."""
    embeddings, labels = batch()
    collapsed = loss(normalize(torch.ones_like(embeddings), dim=1), labels)
    assert collapsed > cost_of_perfect_ranking(loss) + 0.25


@every_loss
def test_value_is_at_most_one(loss):
    """Every ranking turned upside down: all relevant items are last."""
    query, references = ranking([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, -0.8, -0.9])
    ref_labels = torch.tensor([[1, 1]] * 7 + [[0, 0]] * 2)
    value = loss(query, torch.tensor([[0, 0]]), ref_emb=references, ref_labels=ref_labels)
    if isinstance(loss, BlackboxRecallLoss):
        assert value.item() == pytest.approx(math.log(1 + 7))  # it is not bounded
    else:
        assert 0.5 < value <= 1


@every_loss
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_gradient_step_decreases_loss(loss, chunk_size):
    embeddings, labels = batch()
    loss = type(loss)(chunk_size=chunk_size)
    before = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(before, embeddings)
    length = 0.1 if isinstance(loss, BLACKBOX) else 1e-4
    after = loss(embeddings - length * gradient / gradient.norm(), labels)
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
    if loss.self_is_relevant:
        expected = loss(embeddings[answerable], labels[answerable], ref_emb=embeddings, ref_labels=labels)
    else:  # among its references, the query is of no class
        each = [
            loss(
                embeddings[query : query + 1],
                labels[query : query + 1],
                ref_emb=embeddings,
                ref_labels=labels.index_fill(0, torch.tensor(query), -1),
            )
            for query in answerable.nonzero().flatten().tolist()
        ]
        expected = torch.stack(each).mean()
    assert_same(actual, expected, embeddings)
    assert actual != loss(embeddings[answerable], labels[answerable])


@every_loss
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_unanswerable_queries_are_reported(loss, chunk_size):
    loss = type(loss)(chunk_size=chunk_size)
    embeddings, labels = batch((4, 1, 5, 1, 3, 1))
    loss(embeddings, labels[:, :1])
    assert loss.logged == {"queries_left_out": 3.0}
    loss(embeddings, labels[:, :1], ref_emb=embeddings, ref_labels=labels[:, :1] + 1)
    assert loss.logged == {"queries_left_out": 4.0}  # class 0 is not among the references
    loss(*batch())
    assert loss.logged == {}


@every_loss
def test_only_hierarchical_losses_look_at_coarser_levels(loss):
    embeddings, labels = batch()
    of_the_finest = loss(embeddings, labels[:, :1])
    assert (loss(embeddings, labels) == of_the_finest) == (not isinstance(loss, HIERARCHICAL))
    assert loss(embeddings, labels.flip(1)) != of_the_finest


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
def test_references_are_taken_whole(loss, include_self):
    """With references nothing is excluded: the batch as its own references is the batch with ``include_self``."""
    embeddings, labels = batch()
    actual = type(loss)(include_self=include_self)(embeddings, labels, ref_emb=embeddings, ref_labels=labels)
    if loss.self_is_relevant:
        expected = type(loss)(include_self=True)(embeddings, labels)
    else:  # which is then an item like any other
        expected = plainly(loss, embeddings, labels, embeddings, labels)
    assert_same(actual, expected, embeddings)


@every_loss
@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_the_batch_can_be_ranked_with_references(loss, include_self, chunk_size):
    """As if the references were queries that do not count."""
    (embeddings, labels), (references, ref_labels) = batch((3, 4, 2)), batch((4, 2, 2), seed=1)
    references = references.detach()
    loss = type(loss)(include_self=include_self, chunk_size=chunk_size)
    weights = torch.tensor([1.0] * 9 + [0.0] * 8)
    expected = loss(torch.cat([embeddings, references]), torch.cat([labels, ref_labels]), query_weights=weights)
    actual = loss(embeddings, labels, ref_emb=references, ref_labels=ref_labels, include_batch=True)
    assert expected > 0
    assert_same(actual, expected, embeddings)


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


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_gradient_taken_in_the_forward_pass_is_that_of_autograd(loss, include_self, chunk_size):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7), levels=3)
    loss = type(loss)(include_self=include_self, chunk_size=chunk_size)
    assert_same(loss(embeddings, labels), plainly(loss, embeddings, labels), embeddings, rtol=1e-9, atol=1e-12)


@every_loss
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_gradient_against_references_is_that_of_autograd(loss, chunk_size):
    (embeddings, labels), (references, ref_labels) = batch(levels=3), batch((5, 5, 1, 3), levels=3, seed=1)
    actual = type(loss)(chunk_size=chunk_size)(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    expected = plainly(loss, embeddings, labels, references, ref_labels)
    assert_same(actual, expected, (embeddings, references), rtol=1e-9, atol=1e-12)


@every_loss
def test_gradient_grows_with_that_of_the_value(loss):
    """A gradient scaler multiplies the loss; a loss used twice adds its gradients."""
    embeddings, labels = batch()
    value = loss(embeddings, labels)
    (once,) = torch.autograd.grad(value, embeddings, retain_graph=True)
    (scaled,) = torch.autograd.grad(2**16 * value, embeddings, retain_graph=True)
    torch.testing.assert_close(scaled, 2**16 * once)
    (value + 2 * value).backward()
    torch.testing.assert_close(embeddings.grad, 3 * once)


@every_loss
def test_a_second_derivative_is_refused(loss):
    """The gradient was taken in the forward pass: a penalty on it must fail rather than be without effect."""
    embeddings, labels = batch()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(loss(embeddings, labels), embeddings, create_graph=True)


@every_loss
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_value_needs_no_gradient(loss, chunk_size):
    embeddings, labels = batch()
    loss = type(loss)(chunk_size=chunk_size)
    expected = loss(embeddings, labels)
    with torch.no_grad():
        value = loss(embeddings, labels)
    assert value == expected
    assert not value.requires_grad
    assert loss(embeddings.detach(), labels) == expected


@every_loss
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_query_weights_are_those_of_a_mean(loss, chunk_size):
    (embeddings, labels), (references, ref_labels) = batch(), batch((5, 5, 1, 3), seed=1)
    gallery = {"ref_emb": references, "ref_labels": ref_labels[:, :1]}
    weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(3)).double()
    actual = type(loss)(chunk_size=chunk_size)(embeddings, labels[:, :1], **gallery, query_weights=weights)
    queries = [slice(query, query + 1) for query in range(len(labels)) if labels[query, 0] < 4]  # the rest is left out
    costs = torch.stack([loss(embeddings[query], labels[query, :1], **gallery) for query in queries])
    weights = torch.cat([weights[query] for query in queries])
    expected = (weights * costs).sum() / weights.sum()
    if isinstance(loss, BLACKBOX):  # how far the gradient looks depends on the weight
        torch.testing.assert_close(actual, expected)
    else:
        assert_same(actual, expected, (embeddings, references))


@every_loss
@pytest.mark.parametrize("include_self", [True, False])
def test_equal_query_weights_change_nothing(loss, include_self):
    embeddings, labels = batch((4, 1, 7, 2, 3, 7))
    loss = type(loss)(include_self=include_self)
    actual = loss(embeddings, labels, query_weights=torch.ones(len(labels)))
    assert_same(actual, loss(embeddings, labels), embeddings)


@every_loss
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_queries_of_no_weight_are_left_out(loss, chunk_size):
    (embeddings, labels), (references, ref_labels) = batch(), batch(seed=1)
    gallery = {"ref_emb": references, "ref_labels": ref_labels}
    kept = torch.arange(len(labels)) % 3 > 0
    loss = type(loss)(chunk_size=chunk_size)
    actual = loss(embeddings, labels, **gallery, query_weights=kept.float())
    assert_same(actual, loss(embeddings[kept], labels[kept], **gallery), (embeddings, references))
    (gradient,) = torch.autograd.grad(loss(embeddings, labels, **gallery, query_weights=kept.float()), embeddings)
    assert not gradient[~kept].any()


@every_loss
def test_no_weight_at_all_is_zero_with_zero_gradient(loss):
    embeddings, labels = batch()
    value = loss(embeddings, labels, query_weights=torch.zeros(len(labels)))
    assert value == 0
    assert not torch.autograd.grad(value, embeddings)[0].any()


@every_loss
def test_query_weights_must_be_one_for_each_query_and_not_negative(loss):
    embeddings, labels = batch()
    for weights, seen in [
        (torch.ones(23), r"\[23\]"),
        (torch.ones(24, 1), r"\[24, 1\]"),
        (torch.ones(24).index_fill(0, torch.tensor(5), -0.5), r"-0\.5"),
        (torch.ones(24).index_fill(0, torch.tensor(5), torch.nan), "nan"),
    ]:
        with pytest.raises(ValueError, match=f"query_weights must be 24 .*{seen}"):
            loss(embeddings, labels, query_weights=weights)


@every_loss
def test_a_copy_is_the_same_loss(loss):
    embeddings, labels = batch()
    loss = type(loss)(include_self=False, chunk_size=7)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert_same(copied(embeddings, labels), loss(embeddings, labels), embeddings, rtol=0, atol=0)


def compiled(loss, backend):
    torch.compiler.reset()  # or it falls back to the loss itself after eight of them
    return torch.compile(loss, backend=backend)


@every_loss
def test_compilation_changes_nothing(loss):
    embeddings, labels = batch()
    actual = compiled(type(loss)(chunk_size=7), "eager")(embeddings, labels)
    assert_same(actual, loss(embeddings, labels), embeddings)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compilation_by_other_backends_changes_nothing(backend):
    embeddings, labels = batch()
    actual = compiled(SmoothAPLoss(), backend)(embeddings, labels)
    assert_same(actual, SmoothAPLoss()(embeddings, labels), embeddings)
