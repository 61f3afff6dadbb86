"""Sums over queries, a chunk of them at a time: memory linear in the batch, at no cost in time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dml.ranking.once import once_differentiable

# Unless told otherwise, a chunk has as many queries as make so many scores (8 MiB of float32), but enough of them to
# keep the matrix products efficient.
CHUNK_SCORES = 2**21
CHUNK_QUERIES = 256

Term = Callable[[Tensor, slice], Tensor]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the gradient is taken inside: nothing to trace
def sum_over_queries(
    term: Term,
    embeddings: Tensor,
    ref_emb: Tensor,
    *,
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
        ref_emb: ``[N, D]`` of the gallery; may be ``embeddings`` itself.
        chunk_size: Queries at a time; None chooses.
        parameters: Of ``term``, to be differentiated as well.

    Returns:
        Scalar, once differentiable.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """
    chunks = query_chunks(len(embeddings), len(ref_emb), chunk_size)
    if not torch.is_grad_enabled():
        embeddings, ref_emb, parameters = embeddings.detach(), ref_emb.detach(), ()
    with torch.autocast(embeddings.device.type, enabled=False):
        total: Tensor = _SumOverQueries.apply(term, chunks, embeddings, ref_emb, *parameters)
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
        ctx: Any, term: Term, chunks: list[slice], embeddings: Tensor, ref_emb: Tensor, *parameters: nn.Parameter
    ) -> Tensor:
        total = embeddings.new_zeros(())
        grads = [torch.zeros_like(t) if t.requires_grad else None for t in (embeddings, ref_emb, *parameters)]
        grad_queries, grad_gallery, *grad_parameters = grads
        ranked = [parameter for parameter in parameters if parameter.requires_grad]
        for chunk in chunks:
            queries = embeddings[chunk]
            with _full_precision():
                scores = queries @ ref_emb.T
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
            with _full_precision():
                if grad_queries is not None:
                    torch.mm(grad_scores, ref_emb, out=grad_queries[chunk])
                if grad_gallery is not None:
                    grad_gallery.addmm_(grad_scores.mT, queries)
            for grad, more in zip([g for g in grad_parameters if g is not None], of_parameters, strict=True):
                grad += more
        ctx.grads = grads
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Any, ...]:
        return None, None, *(None if grad is None else grad * grad_total for grad in ctx.grads)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in full float32: TF32 and bfloat16 round a score by 1e-3, a tenth of the usual temperature."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # settings of each backend are in use, which do not mix with this one
        with _full_precision_of_backends():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _full_precision_of_backends() -> Iterator[None]:
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
