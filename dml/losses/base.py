"""What the losses share: checked inputs, float32 scores, and the mean over queries that have something to retrieve."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dml.ranking import check_chunk_size, query_chunks, sum_over_queries


class Inputs(NamedTuple):
    """Checked inputs of a loss: embeddings of at least float32, labels of two dimensions."""

    embeddings: Tensor  # [B, D] of the queries
    labels: Tensor  # [B, L]
    gallery: tuple[Tensor, ...]  # its embeddings, [N, D] in all
    ref_labels: Tensor  # [N, L]
    own_gallery: bool  # the gallery begins with the batch


class RankLoss(nn.Module, ABC):
    """One minus a measure of the ranking that each embedding gives of the others, averaged over the queries.

    A loss is its :meth:`measure`. Queries that have nothing to retrieve are left out of the mean and counted in
    ``unanswerable``.

    Memory is linear in the batch: queries are ranked a chunk at a time, and their gradient is taken with them.

    Args:
        include_self: Whether a query stays in its own gallery, as an item that is relevant and always first. Published
            code differs; each loss defaults to its own. Queries without another relevant item are left out either way.
        chunk_size: Queries ranked at a time. It changes memory, not the value; None chooses.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """

    self_is_relevant: ClassVar[bool] = True
    """Whether a query that stays in its own gallery is to be retrieved there, or only takes up a rank."""

    def __init__(self, *, include_self: bool, chunk_size: int | None = None) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        self.include_self = include_self
        self.chunk_size = chunk_size
        self.unanswerable = 0
        """Queries of the last batch that had nothing to retrieve."""
        self.queries = slice(0)
        """Which queries of the batch :meth:`measure` is called for."""

    @abstractmethod
    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        """The quality of each ranking ``[Q]``, 1 at best, differentiable with respect to ``scores``.

        Args:
            scores: ``[Q, N]`` float32 or float64.
            relevance: ``[Q, N]``, what :meth:`relevance` returned.
            valid: ``[Q, N]`` bool, False where an item is not in the gallery of the query.
        """

    def relevance(self, labels: Tensor, ref_labels: Tensor) -> Tensor:
        """Relevance ``[Q, N]`` of each item, 0 if it is not to be retrieved.

        By default, whether it is of the query's class at the finest level.

        Args:
            labels: ``[Q, L]`` of the queries, finest level first.
            ref_labels: ``[N, L]`` of the gallery.
        """
        return labels[:, :1] == ref_labels[:, 0]

    @property
    def logged(self) -> dict[str, float]:
        """What the last batch has to report beside its value."""
        return {"queries_left_out": float(self.unanswerable)} if self.unanswerable else {}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
        query_weights: Tensor | None = None,
    ) -> Tensor:
        """Mean over the queries that have something to retrieve.

        Args:
            embeddings: ``[B, D]``, unit norm. Half precision is ranked in float32.
            labels: ``[B]`` or ``[B, L]``, finest level first.
            ref_emb: ``[N, D]``, the gallery to rank; by default the batch itself. It is taken to hold other images than
                the queries.
            ref_labels: ``[N]`` or ``[N, L]``, needed with ``ref_emb``.
            include_batch: Rank the batch together with ``ref_emb``.
            query_weights: ``[B]``, weights of the queries in the mean; by default all are 1.

        Returns:
            Scalar; 0 with a zero gradient if no query has anything to retrieve. Once differentiable.

        Raises:
            ValueError: If shapes do not fit, or an embedding is not finite.
        """
        inputs = checked_inputs(embeddings, labels, ref_emb, ref_labels, include_batch=include_batch)
        if query_weights is None:
            query_weights = inputs.embeddings.new_ones(len(embeddings))
        elif query_weights.shape != embeddings.shape[:1] or not ((query_weights >= 0) & query_weights.isfinite()).all():
            raise ValueError(
                f"query_weights must be {len(embeddings)} finite numbers, none below 0; they are "
                f"{list(query_weights.shape)}, from {query_weights.min().item() if query_weights.numel() else None}"
            )
        return self._loss(inputs, query_weights.to(inputs.embeddings.dtype))

    def _loss(self, inputs: Inputs, weights: Tensor) -> Tensor:
        # Before any score: the gradient of each chunk is to be that of the mean, which matters to black-box ranks.
        chunks = query_chunks(len(inputs.labels), len(inputs.ref_labels), self.chunk_size)
        answerable = torch.cat([self._answerable(inputs, queries) for queries in chunks])
        self.unanswerable = len(answerable) - int(answerable.sum())
        weights = answerable * weights
        weights = weights / weights.sum().clamp(min=1e-12)

        def cost(scores: Tensor, queries: slice) -> Tensor:
            self.queries = queries
            valid = torch.ones_like(scores, dtype=torch.bool)
            if inputs.own_gallery and not self.include_self:
                valid.diagonal(queries.start).zero_()
            measured = self.measure(scores, self._relevance(inputs, queries), valid)
            return ((1 - measured) * weights[queries]).sum()

        value: Tensor = sum_over_queries(
            cost,
            inputs.embeddings,
            *inputs.gallery,
            chunk_size=self.chunk_size,
            parameters=list(self.parameters()),
        )
        return value

    def _relevance(self, inputs: Inputs, queries: slice) -> Tensor:
        relevance = self.relevance(inputs.labels[queries], inputs.ref_labels)
        if inputs.own_gallery and not self.self_is_relevant:
            relevance.diagonal(queries.start).zero_()
        return relevance

    def _answerable(self, inputs: Inputs, queries: slice) -> Tensor:
        # Nothing is retrieved by retrieving oneself.
        least = int(inputs.own_gallery and self.self_is_relevant)
        return self._relevance(inputs, queries).bool().sum(dim=1, dtype=torch.int32) > least


def checked_inputs(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    include_batch: bool = False,
) -> Inputs:
    """Inputs of a loss, if they fit each other; without references the batch is its own gallery.

    Raises:
        ValueError: If shapes do not fit, or an embedding is not finite; the message has the value seen.
    """
    labels = _checked_labels("embeddings", embeddings, "labels", labels)
    # A temperature of 0.01 resolves score gaps that half precision cannot represent: rank in float32.
    embeddings = at_least_float32(embeddings)
    if ref_emb is None and ref_labels is None:
        return Inputs(embeddings, labels, (embeddings,), labels, own_gallery=True)
    if ref_emb is None or ref_labels is None:
        raise ValueError("ref_emb and ref_labels go together; only one of them was given")
    ref_labels = _checked_labels("ref_emb", ref_emb, "ref_labels", ref_labels)
    if ref_emb.shape[1] != embeddings.shape[1] or ref_labels.shape[1] != labels.shape[1]:
        raise ValueError(
            f"ref_emb {list(ref_emb.shape)} and ref_labels {list(ref_labels.shape)} must have the columns of "
            f"embeddings {list(embeddings.shape)} and labels {list(labels.shape)}"
        )
    ref_emb = ref_emb.to(embeddings.dtype)
    if include_batch:
        return Inputs(embeddings, labels, (embeddings, ref_emb), torch.cat([labels, ref_labels]), own_gallery=True)
    return Inputs(embeddings, labels, (ref_emb,), ref_labels, own_gallery=False)


def at_least_float32(embeddings: Tensor) -> Tensor:
    """The embeddings in float64 if they are, else in float32."""
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _checked_labels(emb_name: str, embeddings: Tensor, labels_name: str, labels: Tensor) -> Tensor:
    """Labels as ``[B, L]``, if they fit the embeddings."""
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"{emb_name} must be floating point of shape [B, D]; it is {embeddings.dtype} of {list(embeddings.shape)}"
        )
    if labels.ndim not in (1, 2) or len(labels) != len(embeddings) or labels.shape[-1] == 0 < len(labels):
        raise ValueError(
            f"{labels_name} must be [B] or [B, L] for {len(embeddings)} {emb_name}; it is {list(labels.shape)}"
        )
    # One number says whether to look closer.
    if not embeddings.detach().sum(dtype=torch.float64).isfinite():
        finite = embeddings.detach().isfinite().all(dim=1)
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"{emb_name} must be finite; {len(rows)} of {len(finite)} rows are not, first rows {rows[:5]}")
    return labels.unsqueeze(1) if labels.ndim == 1 else labels
