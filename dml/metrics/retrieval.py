"""Retrieval metrics over the whole gallery."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from dml.ranking import (
    Ranks,
    average_precision,
    exact_ranks,
    mean_average_precision_at_r,
    r_precision,
    recall_at_k,
)


class EvaluatedDataset(Protocol):
    """What a metric may ask of the dataset whose images it gets."""

    root: Path
    index: pd.DataFrame  # row i is the image of index i
    levels: tuple[str, ...]  # which columns of the index are the labels, finest first

    def judgements(self) -> pd.DataFrame | None:
        """Columns query and item (rows of the index) and judgement (a word); None if labels say what is relevant."""


class RetrievalMetrics(Metric):
    """AP, mAP@R, R-precision and Recall@k of every query against the gallery, averaged over queries.

    One metric rather than a collection: the similarity matrix and the ranks cost everything, the measures nothing.
    Override :meth:`measures` to add one. ``torchmetrics.retrieval`` is no substitute: it treats items with
    ``score <= 0`` as irrelevant, which is wrong for cosine similarity.

    Args:
        recall_at: Values of k.
        level: Which column of the labels is the class, 0 for the finest.
        block_size: Queries ranked at a time; peak memory is a few times ``block_size * N`` floats.

    Example:
        >>> metrics = RetrievalMetrics(recall_at=[1])
        >>> embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.3, 1.0], [0.2, 1.0]]))
        >>> metrics.update(embeddings, labels=torch.tensor([[0], [0], [1], [1]]), index=torch.arange(4))
        >>> metrics.compute()
        {'AP': tensor(1.), 'mAP@R': tensor(1.), 'RP': tensor(1.), 'R@1': tensor(1.)}
    """

    full_state_update = False

    embeddings: list[Tensor]
    labels: list[Tensor]
    index: list[Tensor]
    is_query: list[Tensor]
    is_gallery: list[Tensor]

    def __init__(self, recall_at: Sequence[int] = (1, 10, 100, 1000), level: int = 0, block_size: int = 256) -> None:
        super().__init__()
        if not all(k >= 1 for k in recall_at):
            raise ValueError(f"recall_at is {list(recall_at)}; each k must be at least 1")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; it is a number of queries, at least 1")
        self.recall_at = tuple(recall_at)
        self.level = level
        self.block_size = block_size
        self.last_per_query: tuple[Tensor, dict[str, Tensor]] | None = None
        """What :meth:`per_query` gave at the last :meth:`compute`."""
        for state in ("embeddings", "labels", "index", "is_query", "is_gallery"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def begin(self, dataset: EvaluatedDataset | None) -> None:
        """Prepare for the evaluation of a dataset, before its first batch: here, labels say all there is to know.

        Protocols that labels cannot express override it and take what they need.

        Args:
            dataset: Whose images the batches will hold; None if there are only batches.
        """

    def update(
        self,
        embeddings: Tensor,
        labels: Tensor,
        index: Tensor,
        is_query: Tensor | None = None,
        is_gallery: Tensor | None = None,
    ) -> None:
        """Add a batch. A query never retrieves its own ``index``; an index seen twice (DDP padding) counts once.

        Args:
            embeddings: ``[B, D]``, unit norm.
            labels: ``[B]`` or ``[B, L]``, finest level first.
            index: ``[B]``, which image each is.
            is_query: ``[B]`` bool; by default every image is a query.
            is_gallery: ``[B]`` bool; by default every image is in the gallery.

        Raises:
            ValueError: If an embedding is not finite, or the labels have no such level.
        """
        labels = labels.unsqueeze(1) if labels.ndim == 1 else labels
        if not 0 <= self.level < labels.shape[1]:
            raise ValueError(f"level is {self.level}; the labels have levels 0 to {labels.shape[1] - 1}")
        if not len(embeddings) == len(labels) == len(index):
            raise ValueError(
                f"lengths differ: {len(embeddings)} embeddings, {len(labels)} labels, {len(index)} indices"
            )
        finite = embeddings.isfinite().all(dim=1)
        if not finite.all():
            culprits = index[~finite].tolist()
            raise ValueError(f"{len(culprits)} embeddings are not finite, those of images {culprits[:5]}")
        everything = torch.ones_like(index, dtype=torch.bool)
        self.embeddings.append(embeddings.detach().float())
        self.labels.append(labels)
        self.index.append(index)
        self.is_query.append(everything if is_query is None else is_query)
        self.is_gallery.append(everything if is_gallery is None else is_gallery)

    def compute(self) -> dict[str, Tensor]:
        """Mean of each measure over the queries that have something to retrieve; 0, with a warning, if none has."""
        index, values = self.per_query()
        self.last_per_query = index, values
        if len(index) == 0:
            rank_zero_warn("no query has a relevant item in the gallery: every metric is 0")
        return {name: value.sum() / max(1, len(index)) for name, value in values.items()}

    def per_query(self) -> tuple[Tensor, dict[str, Tensor]]:
        """``index`` of the queries that have something to retrieve, and each measure of theirs, all ``[Q]``."""
        blocks = [(query, self.measures(ranks)) for query, ranks in self._ranked_blocks()]
        index = torch.cat([query for query, _ in blocks])
        return index, {name: torch.cat([values[name] for _, values in blocks]) for name in blocks[0][1]}

    def measures(self, ranks: Ranks) -> dict[str, Tensor]:
        """Name and per-query value ``[Q]`` of each measure."""
        recalls = {f"R@{k}": recall_at_k(ranks, k) for k in self.recall_at}
        return {
            "AP": average_precision(ranks),
            "mAP@R": mean_average_precision_at_r(ranks),
            "RP": r_precision(ranks),
            **recalls,
        }

    def images(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``index, embeddings, labels, is_query, is_gallery`` of every image once, in order of ``index``."""
        index, order = dim_zero_cat(self.index).sort()
        order = order[index.diff(prepend=index[:1] - 1) > 0]  # drop repeated indices
        columns = (self.index, self.embeddings, self.labels, self.is_query, self.is_gallery)
        index, embeddings, labels, is_query, is_gallery = (dim_zero_cat(column)[order] for column in columns)
        return index, embeddings, labels[:, self.level], is_query, is_gallery

    def _ranked_blocks(self) -> Iterator[tuple[Tensor, Ranks]]:
        index, embeddings, labels, is_query, is_gallery = self.images()
        gallery = is_gallery.nonzero().squeeze(1)
        items, item_labels, item_index = embeddings[gallery], labels[gallery], index[gallery]
        for block in torch.split(is_query.nonzero().squeeze(1), self.block_size):
            relevant = labels[block, None] == item_labels
            valid = index[block, None] != item_index
            answerable = (relevant & valid).any(dim=1)
            scores = similarities(embeddings[block], items)
            yield index[block][answerable], exact_ranks(scores[answerable], relevant[answerable], valid[answerable])


def similarities(queries: Tensor, items: Tensor) -> Tensor:
    """Inner products ``[Q, N]`` of embeddings ``[Q, D]`` and ``[N, D]``."""
    # Evaluation may run under autocast; half precision would tie items that differ.
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ items.T
