import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dml.ranking import chunked
from dml.ranking.chunked import sum_over_queries

NUM_QUERIES = 7
every_chunk_size = pytest.mark.parametrize("chunk_size", [1, 2, 3, 6, 7, 8, 100, None])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Term(nn.Module):
    """Different for every query, not linear in the scores, with two parameters."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, -0.7], dtype=dtype))
        self.shift = nn.Parameter(torch.tensor(0.3, dtype=dtype))

    def forward(self, scores, queries):
        weights = 1 + torch.arange(queries.start, queries.start + len(scores), dtype=scores.dtype).unsqueeze(1)
        return (weights * torch.sin(self.scale[0] * scores) + self.scale[1] * (scores - self.shift) ** 2).sum()


def whole(term, embeddings, ref_emb):
    return term(embeddings @ ref_emb.T, slice(0, len(embeddings)))


def gradients(value, tensors):
    return torch.autograd.grad(value, [t for t in tensors if t.requires_grad], retain_graph=True)


def assert_equals_the_plain_sum(term, embeddings, ref_emb, chunk_size, scale=1.0, **tolerances):
    parameters = list(term.parameters())
    inputs = [embeddings, *([] if ref_emb is embeddings else [ref_emb]), *parameters]
    actual = sum_over_queries(term, embeddings, ref_emb, chunk_size=chunk_size, parameters=parameters)
    expected = whole(term, embeddings, ref_emb)
    torch.testing.assert_close(actual, expected, **tolerances)
    for got, wanted in zip(gradients(scale * actual, inputs), gradients(scale * expected, inputs), strict=True):
        torch.testing.assert_close(got, wanted, **tolerances)


@every_chunk_size
@pytest.mark.parametrize("num_items", [1, 5, 20])
def test_equals_the_plain_sum(num_items, chunk_size):
    embeddings, ref_emb = normal(NUM_QUERIES, 4).requires_grad_(), normal(num_items, 4, seed=1).requires_grad_()
    assert_equals_the_plain_sum(Term(), embeddings, ref_emb, chunk_size)


@every_chunk_size
def test_a_batch_may_be_its_own_gallery(chunk_size):
    embeddings = normal(NUM_QUERIES, 4).requires_grad_()
    assert_equals_the_plain_sum(Term(), embeddings, embeddings, chunk_size)


@every_chunk_size
def test_gradients_flow_on_to_what_the_embeddings_were_made_of(chunk_size):
    weight = normal(4, 3).requires_grad_()
    features, ref_features = normal(NUM_QUERIES, 4, seed=1), normal(5, 4, seed=2)
    term = Term()
    actual = sum_over_queries(term, features @ weight, ref_features @ weight, chunk_size=chunk_size)
    expected = whole(term, features @ weight, ref_features @ weight)
    torch.testing.assert_close(gradients(actual, [weight]), gradients(expected, [weight]))


@pytest.mark.parametrize("scale", [3.0, -0.5, 0.0])
def test_the_incoming_gradient_scales_every_gradient(scale):
    embeddings, ref_emb = normal(NUM_QUERIES, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    assert_equals_the_plain_sum(Term(), embeddings, ref_emb, 3, scale=scale)


def test_functions_of_the_sum_are_differentiated():
    embeddings, term = normal(NUM_QUERIES, 4).requires_grad_(), Term()
    actual = sum_over_queries(term, embeddings, embeddings, chunk_size=2).square().log1p()
    expected = whole(term, embeddings, embeddings).square().log1p()
    torch.testing.assert_close(gradients(actual, [embeddings]), gradients(expected, [embeddings]))


@pytest.mark.parametrize("learnt", [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1)])
def test_what_is_frozen_has_no_gradient(learnt):
    embeddings, ref_emb, term = normal(NUM_QUERIES, 4), normal(5, 4, seed=1), Term()
    for tensor, requires_grad in zip([embeddings, ref_emb, *term.parameters()], learnt, strict=True):
        tensor.requires_grad_(bool(requires_grad))
    assert_equals_the_plain_sum(term, embeddings, ref_emb, 3)


def test_if_everything_is_frozen_so_is_the_sum():
    embeddings, term = normal(NUM_QUERIES, 4), Term().requires_grad_(False)
    value = sum_over_queries(term, embeddings, embeddings, chunk_size=3, parameters=list(term.parameters()))
    assert not value.requires_grad
    torch.testing.assert_close(value, whole(term, embeddings, embeddings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_has_the_precision_of_the_embeddings(dtype):
    embeddings, term = normal(NUM_QUERIES, 4, dtype=dtype).requires_grad_(), Term(dtype)
    assert_equals_the_plain_sum(term, embeddings, embeddings, 3, rtol=1e-4, atol=1e-4)
    assert sum_over_queries(term, embeddings, embeddings).dtype == dtype


def test_memory_layout_is_irrelevant():
    embeddings, ref_emb = normal(4, NUM_QUERIES).requires_grad_(), normal(1, 4, seed=1).requires_grad_()
    assert_equals_the_plain_sum(Term(), embeddings.T, ref_emb.expand(5, 4), 3)


@every_chunk_size
@pytest.mark.parametrize("flat", [(0,), (1, 2, 3), (6,), tuple(range(7))], ids=str)
def test_chunks_without_a_gradient_still_count(flat, chunk_size):
    """With every chunk flat, the gradient is zero."""
    learnt = torch.tensor([query not in flat for query in range(NUM_QUERIES)])

    def term(scores, queries):
        kept = learnt[queries]
        return (scores[kept] ** 2).sum() + 2 * (~kept).sum() if kept.any() else scores.new_full((), 2 * len(kept))

    embeddings, ref_emb = normal(NUM_QUERIES, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    value = sum_over_queries(term, embeddings, ref_emb, chunk_size=chunk_size)
    expected = ((embeddings @ ref_emb.T)[learnt] ** 2).sum() + 2 * len(flat)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients(value, [embeddings, ref_emb]), gradients(expected, [embeddings, ref_emb]))


def test_a_parameter_that_only_some_chunks_use():
    parameter = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def term(scores, queries):
        return scores.sum() * parameter if queries.start == 2 else scores.sum()

    embeddings, ref_emb = normal(6, 4).requires_grad_(), normal(5, 4, seed=1)
    value = sum_over_queries(term, embeddings, ref_emb, chunk_size=2, parameters=[parameter])
    (of_parameter,) = gradients(value, [parameter])
    torch.testing.assert_close(of_parameter, (embeddings[2:4] @ ref_emb.T).sum())


@every_chunk_size
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_a_term_may_be_a_vector(mode, chunk_size):
    embeddings, ref_emb = normal(NUM_QUERIES, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    term = Term()

    def moments(scores, queries):
        assert not scores.requires_grad
        return torch.stack([term(scores, queries), scores.abs().sum(), scores.new_tensor(len(scores))])

    with mode():
        value = sum_over_queries(
            moments, embeddings, ref_emb, chunk_size=chunk_size, parameters=list(term.parameters())
        )
        torch.testing.assert_close(value, whole(moments, embeddings, ref_emb))
    assert not value.requires_grad


def test_nothing_is_left_in_the_parameters():
    embeddings, term = normal(NUM_QUERIES, 4).requires_grad_(), Term()
    value = sum_over_queries(term, embeddings, embeddings, chunk_size=2, parameters=list(term.parameters()))
    assert embeddings.grad is None
    assert all(parameter.grad is None for parameter in term.parameters())
    value.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in term.parameters()]
    value.backward()
    for parameter, grad in zip(term.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * grad)


def test_a_second_derivative_is_refused():
    embeddings = normal(NUM_QUERIES, 4).requires_grad_()
    value = sum_over_queries(Term(), embeddings, embeddings).square()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(value, embeddings, create_graph=True)


@pytest.mark.parametrize(("num_queries", "num_items"), [(0, 5), (NUM_QUERIES, 0), (0, 0)])
def test_nothing_to_sum_is_zero_with_a_zero_gradient(num_queries, num_items):
    embeddings, ref_emb = normal(num_queries, 4).requires_grad_(), normal(num_items, 4).requires_grad_()
    value = sum_over_queries(Term(), embeddings, ref_emb)
    assert value.item() == 0
    for grad, tensor in zip(gradients(value, [embeddings, ref_emb]), (embeddings, ref_emb), strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@every_chunk_size
@pytest.mark.parametrize("requires_grad", [True, False])
def test_each_query_is_handed_to_the_term_once(chunk_size, requires_grad):
    embeddings, ref_emb = normal(NUM_QUERIES, 4).requires_grad_(requires_grad), normal(5, 4, seed=1)
    all_scores, seen = embeddings @ ref_emb.T, []

    def term(scores, queries):
        assert scores.shape[0] <= (chunk_size or NUM_QUERIES)
        torch.testing.assert_close(scores, all_scores[queries])
        seen.extend(range(NUM_QUERIES)[queries])
        return scores.sum()

    sum_over_queries(term, embeddings, ref_emb, chunk_size=chunk_size)
    assert seen == list(range(NUM_QUERIES))


@pytest.mark.parametrize(("num_items", "expected"), [(0, 64), (1, 64), (8, 8), (16, 4), (22, 2), (1000, 2)])
def test_a_chunk_holds_a_number_of_scores_but_never_too_few_queries(num_items, expected, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_SCORES", 64)
    monkeypatch.setattr(chunked, "CHUNK_QUERIES", 2)
    sizes = []

    def term(scores, queries):
        sizes.append(len(scores))
        return scores.sum()

    sum_over_queries(term, normal(64, 4), normal(num_items, 4))
    assert sizes == [expected] * (64 // expected)


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that any operation returns."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else [result]
        self.num_elements = max([self.num_elements, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize("chunk_size", [1, 10])
def test_no_tensor_is_larger_than_the_scores_of_a_chunk(chunk_size):
    embeddings, term = normal(100, 2).requires_grad_(), Term()
    with Largest() as largest:
        sum_over_queries(
            term, embeddings, embeddings, chunk_size=chunk_size, parameters=list(term.parameters())
        ).backward()
    assert largest.num_elements == max(chunk_size * 100, 100 * 2)
    with Largest() as largest:
        whole(term, embeddings, embeddings).backward()
    assert largest.num_elements == 100 * 100
