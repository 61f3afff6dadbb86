"""Sums over queries, a chunk of them at a time: memory linear in the batch, at no cost in time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dml.ranking.once import once_differentiable
from dml.ranking.precision import matmul_precision

# Unless told otherwise, a chunk has as many queries as make so many scores (8 MiB of float32), but enough of them to
# keep the matrix products efficient.
CHUNK_SCORES = 2**21
CHUNK_QUERIES = 256

Term = Callable[[Tensor, slice], Tensor]

_shared: ContextVar[bool] = ContextVar("shared", default=False)


@contextmanager
def shared_queries() -> Iterator[None]:
    """Let the processes of a run divide the queries of each :func:`sum_over_queries` among them.

    All of them must call it with the same arguments, those of the whole batch. Each scores its own share of the queries
    against the whole gallery, and all get the sum over all queries, with its whole gradient: what is computed with them
    needs to know nothing of processes.
    """
    token = _shared.set(distributed.is_available() and distributed.is_initialized())
    try:
        yield
    finally:
        _shared.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the gradient is taken inside: nothing to trace
def sum_over_queries(
    term: Term,
    embeddings: Tensor,
    *ref_emb: Tensor,
    chunk_size: int | None = None,
    parameters: Sequence[nn.Parameter] = (),
) -> Tensor:
    """Sum a function of the scores over the queries, without ever holding the scores of all of them.

    The gradient of a chunk is taken as soon as its value is known, in the forward pass, and the backward pass only
    scales the sum: nothing ``[Q, N]`` is kept and nothing is computed twice, as it would be with activation
    checkpointing. What is left are the three matrix products that any loss of the scores needs.

    Args:
        term: Called with the scores ``[q, N]`` of a chunk and the slice of queries it covers; a scalar.
        embeddings: ``[Q, D]`` of the queries.
        ref_emb: ``[N, D]`` of the gallery, in one part or more; may be ``embeddings`` itself.
        chunk_size: Queries at a time; None chooses.
        parameters: Of ``term``, to be differentiated as well.

    Returns:
        Scalar, once differentiable.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """
    chunks = query_chunks(len(embeddings), sum(map(len, ref_emb)), chunk_size)
    if not torch.is_grad_enabled():
        embeddings, ref_emb, parameters = embeddings.detach(), tuple(part.detach() for part in ref_emb), ()
    with torch.autocast(embeddings.device.type, enabled=False):
        total: Tensor = _SumOverQueries.apply(term, chunks, len(ref_emb), embeddings, *ref_emb, *parameters)
    return total


def query_chunks(num_queries: int, num_items: int, chunk_size: int | None) -> list[slice]:
    """The queries a chunk at a time; one empty chunk if there is none. None chooses the size.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """
    check_chunk_size(chunk_size)
    if chunk_size is None:
        chunk_size = max(CHUNK_QUERIES, CHUNK_SCORES // max(1, num_items))
    return [slice(start, min(start + chunk_size, num_queries)) for start in range(0, max(1, num_queries), chunk_size)]


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise ``ValueError`` unless it is None or at least 1."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it is a number of queries, at least 1, or None to choose")


class _SumOverQueries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, term: Term, chunks: list[slice], num_parts: int, embeddings: Tensor, *others: Tensor
    ) -> Tensor:
        total = embeddings.new_zeros(())
        gallery, parameters = others[:num_parts], others[num_parts:]
        grads = [torch.zeros_like(t) if t.requires_grad else None for t in (embeddings, *others)]
        grad_queries, grad_gallery, grad_parameters = grads[0], grads[1 : 1 + num_parts], grads[1 + num_parts :]
        ranked = [parameter for parameter in parameters if parameter.requires_grad]
        for chunk in _own(chunks) if _shared.get() else chunks:
            queries = embeddings[chunk]
            scores = _scores(queries, gallery)
            if all(grad is None for grad in grads):
                total = total + term(scores, chunk)
                continue
            with torch.enable_grad():
                value = term(scores.requires_grad_(), chunk)
            total = total + value.detach()
            if not value.requires_grad:
                continue  # a chunk with nothing to retrieve
            grad_scores, *of_parameters = torch.autograd.grad(
                value, [scores, *ranked], allow_unused=True, materialize_grads=True
            )
            into = None if grad_queries is None else grad_queries[chunk]
            _add_products(grad_scores, queries, gallery, into, grad_gallery)
            for grad, more in zip([g for g in grad_parameters if g is not None], of_parameters, strict=True):
                grad += more
        if _shared.get():
            for summand in [total, *(grad for grad in grads if grad is not None)]:
                distributed.all_reduce(summand)
        ctx.grads = grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Any, ...]:
        return None, None, None, *(None if grad is None else grad * grad_total for grad in ctx.grads)


def _own(chunks: list[slice]) -> list[slice]:
    """The chunks of the queries that fall to this process, of no more than the same size."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    size, num_queries = chunks[0].stop, chunks[-1].stop
    first, end = num_queries * rank // processes, num_queries * (rank + 1) // processes
    # Without a query, an empty chunk still shows what the sum is like.
    return [slice(start, min(start + size, end)) for start in range(first, max(end, first + 1), max(1, size))]


def _scores(queries: Tensor, gallery: Sequence[Tensor]) -> Tensor:
    with matmul_precision("highest"):
        parts = [queries @ part.T for part in gallery]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add_products(
    grad_scores: Tensor,
    queries: Tensor,
    gallery: Sequence[Tensor],
    grad_queries: Tensor | None,
    grad_gallery: Sequence[Tensor | None],
) -> None:
    """Add what the gradient of the scores ``[q, N]`` is for queries and gallery."""
    columns = torch.split(grad_scores, [len(part) for part in gallery], dim=1)
    with matmul_precision("highest"):
        for grads, part, grad_part in zip(columns, gallery, grad_gallery, strict=True):
            if grad_queries is not None:
                grad_queries.addmm_(grads, part)
            if grad_part is not None:
                grad_part.addmm_(grads.mT, queries)
