"""What the rank losses share: shapes, checks, float32 scores, chunks of queries, and the mean over answerable ones."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from dml.ranking import over_queries


class RankLoss(nn.Module, ABC):
    """One minus a measure of the ranking that each embedding gives of the others, averaged over the queries.

    A loss is its :meth:`measure`. Queries that have nothing to retrieve are left out of the mean and counted in
    ``unanswerable``.

    Args:
        include_self: Whether a query stays in its own gallery, as an item that is relevant and always first. Published
            code differs; each loss defaults to its own. Queries without another relevant item are left out either way.
        chunk_size: Queries ranked at a time, recomputed in the backward pass: memory linear in the batch, for a little
            more time. None ranks all at once.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """

    def __init__(self, *, include_self: bool, chunk_size: int | None = None) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(
                f"chunk_size is {chunk_size}; it is a number of queries, at least 1, or None for all at once"
            )
        self.include_self = include_self
        self.chunk_size = chunk_size
        self.unanswerable = 0
        """Queries of the last batch that had nothing to retrieve."""

    @abstractmethod
    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        """The quality of each ranking ``[Q]``, 1 at best, differentiable with respect to ``scores``.

        Args:
            scores: ``[Q, N]`` float32 or float64.
            relevance: ``[Q, N]``, what :meth:`relevance` returned.
            valid: ``[Q, N]`` bool, False where an item is not in the gallery of the query.
        """

    def relevance(self, labels: Tensor, ref_labels: Tensor) -> Tensor:
        """Relevance ``[Q, N]`` of each item: by default, whether it is of the query's class at the finest level.

        Args:
            labels: ``[Q, L]`` of the queries, finest level first.
            ref_labels: ``[N, L]`` of the gallery.
        """
        return labels[:, :1] == ref_labels[:, 0]

    def forward(
        self, embeddings: Tensor, labels: Tensor, *, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Tensor:
        """Mean over the queries that have something to retrieve.

        Args:
            embeddings: ``[B, D]``, unit norm. Half precision is ranked in float32.
            labels: ``[B]`` or ``[B, L]``, finest level first.
            ref_emb: ``[N, D]``, the gallery to rank; by default the batch itself. It is taken to hold other images than
                the queries.
            ref_labels: ``[N]`` or ``[N, L]``, needed with ``ref_emb``.

        Returns:
            Scalar; 0 with a zero gradient if no query has anything to retrieve.

        Raises:
            ValueError: If shapes do not fit, or an embedding is not finite.
        """
        labels = _checked_labels("embeddings", embeddings, "labels", labels)
        # A temperature of 0.01 resolves score gaps that half precision cannot represent: rank in float32.
        embeddings = _at_least_float32(embeddings)
        own_gallery = ref_emb is None
        if ref_emb is None or ref_labels is None:
            if ref_emb is not None or ref_labels is not None:
                raise ValueError("ref_emb and ref_labels go together; only one of them was given")
            ref_emb, ref_labels = embeddings, labels
        else:
            ref_labels = _checked_labels("ref_emb", ref_emb, "ref_labels", ref_labels)
            if ref_emb.shape[1] != embeddings.shape[1] or ref_labels.shape[1] != labels.shape[1]:
                raise ValueError(
                    f"ref_emb {list(ref_emb.shape)} and ref_labels {list(ref_labels.shape)} must have the columns of "
                    f"embeddings {list(embeddings.shape)} and labels {list(labels.shape)}"
                )
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._loss(embeddings, labels, _at_least_float32(ref_emb), ref_labels, own_gallery)

    def _loss(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, own_gallery: bool
    ) -> Tensor:
        item = torch.arange(len(ref_emb), device=embeddings.device)

        def answerable_and_measured(queries: slice) -> Tensor:
            relevance = self.relevance(labels[queries], ref_labels)
            itself = (
                item[queries].unsqueeze(1) == item if own_gallery else torch.zeros_like(relevance, dtype=torch.bool)
            )
            answerable = (relevance.bool() & ~itself).any(dim=1)
            valid = torch.ones_like(itself) if self.include_self else ~itself
            measured = self.measure(embeddings[queries] @ ref_emb.T, relevance, valid)
            return torch.stack([answerable.to(measured.dtype), measured], dim=1)

        columns = over_queries(answerable_and_measured, len(embeddings), self.chunk_size)
        answerable, measured = columns[:, 0].detach(), columns[:, 1]
        self.unanswerable = len(embeddings) - int(answerable.sum())
        return ((1 - measured) * answerable).sum() / answerable.sum().clamp(min=1)


def _at_least_float32(embeddings: Tensor) -> Tensor:
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
    finite = embeddings.detach().isfinite().all(dim=1)
    if not finite.all():
        rows = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"{emb_name} must be finite; {len(rows)} of {len(finite)} rows are not, first rows {rows[:5]}")
    return labels.unsqueeze(1) if labels.ndim == 1 else labels
