"""Retrieval metrics over the whole gallery."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors

from dml.metrics.evaluation import EvaluatedDataset, Evaluation, Images, once
from dml.metrics.named import named_measure
from dml.metrics.processes import gathered
from dml.metrics.relevant import SameLabel
from dml.metrics.search import Search, in_precision
from dml.ranking import (
    Ranks,
    average_precision,
    mean_average_precision_at_r,
    r_precision,
    ranks_of_pairs,
    recall_at_k,
)

# A pair of query and relevant item takes a few hundred bytes while it is ranked, as much as that many scores.
_PAIRS_PER_ITEM = 50
_MOST_PAIRS = 2**20


class RetrievalMetrics(Metric):
    """AP, mAP@R, R-precision and Recall@k of every query against the gallery, averaged over queries.

    One metric rather than a collection: scores and ranks cost everything, the measures nothing. Override
    :meth:`measures` to add one. ``torchmetrics.retrieval`` is no substitute: it treats items with ``score <= 0`` as
    irrelevant, which is wrong for cosine similarity.

    The ranks are exact, over the whole gallery; nothing is cut off after some neighbours. Queries without a relevant
    item in the gallery are left out; :attr:`num_unanswerable` says how many. Processes divide the queries among them;
    the values are those of one process.

    Args:
        recall_at: Values of k.
        level: Which column of the labels is the class, 0 for the finest.
        block_size: Queries ranked at a time, by default as many as are fast and take little memory: ``block_size * N``
            floats, and some dozens for each pair of a query and a relevant item.
        also: More measures by name: ``MRR``; ``nDCG``, with a gain of 1; and for any k ``P@k``, the share of the first
            k that is relevant; ``found@k``, the relevant ones among the first k over ``min(R, k)``, which other fields
            call recall; ``mAP@k``, over ``min(R, k)``; ``nDCG@k``; ``R@k``.
        search: What the gallery is ranked by, what happens to ties, where embeddings are kept.

    Raises:
        ValueError: If a k is below 1, a measure is not known, or ``block_size`` is below 1.

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

    def __init__(
        self,
        recall_at: Sequence[int] = (1, 10, 100, 1000),
        level: int = 0,
        block_size: int | None = None,
        also: Sequence[str] = (),
        search: Search = Search(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        if not all(isinstance(k, int) and k >= 1 for k in recall_at):
            raise ValueError(f"recall_at is {list(recall_at)}; each k must be a whole number, at least 1")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size is {block_size}; it is a number of queries, at least 1")
        self.recall_at = tuple(recall_at)
        self.level = level
        self.block_size = block_size
        self.also = {name: named_measure(name) for name in also}
        self.search = search
        self.last_per_query: tuple[Tensor, dict[str, Tensor]] | None = None
        """What :meth:`per_query` gave at the last :meth:`compute`."""
        self.num_unanswerable = 0
        """How many queries had nothing to retrieve at the last :meth:`per_query`."""
        for state in ("embeddings", "labels", "index", "is_query", "is_gallery"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        self.dist_sync_fn = self.dist_sync_fn or gathered

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
            ValueError: If an embedding is not finite, lengths differ, or the labels have no such level.
        """
        if labels.ndim not in (1, 2):
            raise ValueError(f"labels have shape {list(labels.shape)}; they must be [B] or [B, L]")
        labels = labels.unsqueeze(1) if labels.ndim == 1 else labels
        everything = torch.ones_like(index, dtype=torch.bool)
        is_query = everything if is_query is None else is_query.bool()
        is_gallery = everything if is_gallery is None else is_gallery.bool()
        if not 0 <= self.level < labels.shape[1]:
            raise ValueError(f"level is {self.level}; the labels have levels 0 to {labels.shape[1] - 1}")
        if not len(embeddings) == len(labels) == len(index) == len(is_query) == len(is_gallery):
            raise ValueError(
                f"lengths differ: {len(embeddings)} embeddings, {len(labels)} labels, {len(index)} indices, "
                f"{len(is_query)} of is_query, {len(is_gallery)} of is_gallery"
            )
        finite = embeddings.isfinite().all(dim=1)
        if not finite.all():
            culprits = index[~finite].tolist()
            raise ValueError(f"{len(culprits)} embeddings are not finite, those of images {culprits[:5]}")
        kept = in_precision(embeddings, self.search)
        self.embeddings.append(kept.cpu() if self.search.keep_on == "cpu" else kept)
        self.labels.append(labels)
        self.index.append(index.long())
        self.is_query.append(is_query)
        self.is_gallery.append(is_gallery)

    def compute(self) -> dict[str, Tensor]:
        """Mean of each measure over the queries that have something to retrieve; 0, with a warning, if none has."""
        self.search.seconds.clear()
        index, values = self.per_query()
        self.last_per_query = index, values
        if len(index) == 0:
            rank_zero_warn("no query has a relevant item in the gallery: every metric is 0")
        return self.mean(values)

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean of each measure ``[Q]`` over the queries that have it; 0 if none has."""
        return {name: value.nansum() / (~value.isnan()).sum().clamp(min=1) for name, value in values.items()}

    def per_query(self) -> tuple[Tensor, dict[str, Tensor]]:
        """``index`` of the queries that have something to retrieve, in order, and each measure of theirs, all ``[Q]``.

        A measure is NaN where a query lacks it.
        """
        return self.per_query_of(self.images().split())

    def per_query_of(self, evaluation: Evaluation) -> tuple[Tensor, dict[str, Tensor]]:
        """What :meth:`per_query` says, of queries and a gallery that are given."""
        indices, tables = [], []
        for index, values in self.measured_blocks(evaluation):
            names = list(values)
            indices.append(index)
            tables.append(torch.stack([value.double() for value in values.values()], dim=1))
        index, table = self._of_all_processes(torch.cat(indices), torch.cat(tables))
        self.num_unanswerable = len(evaluation.query_index) - len(index)
        return index, dict(zip(names, table.to(evaluation.queries.dtype).unbind(dim=1), strict=True))

    def measures(self, ranks: Ranks) -> dict[str, Tensor]:
        """Name and per-query value ``[Q]`` of each measure; of a query without relevant items, it is of no account.

        It is also asked of no query at all, for the names.
        """
        recalls = {f"R@{k}": recall_at_k(ranks, k) for k in self.recall_at}
        return {
            "AP": average_precision(ranks),
            "mAP@R": mean_average_precision_at_r(ranks),
            "RP": r_precision(ranks),
            **recalls,
            **{name: measure(ranks) for name, measure in self.also.items()},
        }

    def images(self) -> Images:
        """Every image once, in order of ``index``; it has each role that it was given.

        Raises:
            ValueError: If there is none, or the labels of one differ.
        """
        if len(self.index) == 0:
            raise ValueError(f"there are no images; call update of {type(self).__name__} with some first")
        index, order = dim_zero_cat(self.index).sort(stable=True)
        is_first = index.diff(prepend=index[:1] - 1) > 0
        columns = [
            dim_zero_cat(each) for each in (self.index, self.embeddings, self.labels, self.is_query, self.is_gallery)
        ]
        if not is_first.all():
            return once(Images(*columns), order, is_first)
        if (order.diff() < 0).any():  # embeddings may be large: no copy unless there is need
            columns = [column[order.to(column.device)] for column in columns]
        return Images(*columns)

    def scored_blocks(self, evaluation: Evaluation, num_relevant: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Scores of the queries of this process, a block at a time.

        Args:
            evaluation: What to retrieve from what.
            num_relevant: Relevant items that a query has at most; many make the blocks smaller.

        Yields:
            Which queries; and their scores ``[b, N]`` with the gallery, then with the distractors of :attr:`search`,
            minus infinity where an item is the query itself. The next block overwrites the scores.
        """
        return self.search.blocks(
            evaluation.queries,
            evaluation.gallery,
            evaluation.own,
            block_size=self.block_size or self._block_size(len(evaluation.gallery), num_relevant),
            share=self._share(),
            device=self.device,
        )

    def measured_blocks(self, evaluation: Evaluation) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """``index`` of the answerable queries of this process, a block at a time, and each measure of theirs ``[b]``.

        The first block is empty, so that there is one.
        """
        none = evaluation.query_index[:0]
        yield none, self.measures(ranks_of_pairs(torch.empty(0, 1, device=none.device), none, none))
        same = SameLabel(evaluation.gallery_labels[:, self.level])
        for rows, scores in self.scored_blocks(evaluation, same.largest):
            query, item = same.pairs(evaluation.query_labels[rows, self.level], evaluation.own[rows])
            ranks = ranks_of_pairs(scores, query, item, ties=self.search.ties)
            answerable = torch.bincount(query, minlength=len(scores)) > 0
            values = {name: value[answerable] for name, value in self.measures(ranks).items()}
            yield evaluation.query_index[rows][answerable], values

    def _block_size(self, num_items: int, num_relevant: int) -> int | None:
        """Queries of a block whose pairs take no more memory than their scores; None for as many as are fast."""
        # Each item may get each place if all tie.
        pairs = max(num_relevant, num_items if self.search.ties == "expected" else 1)
        return None if pairs * _PAIRS_PER_ITEM <= num_items else max(1, _MOST_PAIRS // pairs)

    def _share(self) -> tuple[int, int]:
        """Which of the blocks of queries are this process's: all, if it does not have the images of all processes."""
        if not (self._is_synced and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return 0, 1
        group = self.process_group
        return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)

    def _of_all_processes(self, index: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of all queries, in order of ``index``, from those of this process's."""
        if self._share()[1] > 1:
            index = torch.cat(gather_all_tensors(index, self.process_group))
            table = torch.cat(gather_all_tensors(table, self.process_group))
        index, order = index.sort()
        return index, table[order]
