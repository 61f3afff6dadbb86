"""Retrieval metrics of several label levels, and of all of them together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dml.metrics.evaluation import EvaluatedDataset, Evaluation
from dml.metrics.relevant import SameLabel
from dml.metrics.retrieval import RetrievalMetrics
from dml.metrics.search import Search
from dml.ranking import Ranks, average_precision, average_set_intersection, ndcg, ranks_of_pairs


class HierarchicalMetrics(RetrievalMetrics):
    """Each measure at each label level, and H-AP, nDCG and ASI, which grade an item by how many levels it shares.

    Names end in the name of the level, but for the finest: ``AP``, ``AP_category``. ``AP_mean`` and so on are means
    of these over the levels, the average accuracy of DyML. Values of all levels together are

    - ``H-AP``, hierarchical average precision: Ramzi et al., "Hierarchical Average Precision Training for Pertinent
      Image Retrieval", ECCV 2022, https://arxiv.org/abs/2207.04873. An item that shares l of L levels has a relevance
      of ``(l / L)^alpha`` over how many images of the gallery share as many, the query counted with them if it is one
      of them. Levels whose relevances happen to be equal are no different from others.
    - ``nDCG``, with the gain ``2^l - 1``, the ideal ranking being that of the whole gallery.
    - ``ASI``, see :func:`dml.ranking.average_set_intersection`.
    - with ``only``, ``AP_category_only`` and so on: items of finer levels are removed, so that what counts is the order
      of those that share this level and nothing finer among the rest.

    H-AP, nDCG and ASI equal those of https://github.com/elias-ramzi/SupRank where no scores tie. A query counts in a
    measure if it has something to retrieve in it.

    Args:
        recall_at: Values of k.
        block_size: Queries ranked at a time.
        also: More measures of each level by name, see :class:`RetrievalMetrics`; ``nDCG`` is that of all levels.
        alpha: Exponent of the relevance of H-AP.
        only: Whether to report each level with finer items removed.
        search: What the gallery is ranked by, what happens to ties, where embeddings are kept.

    Raises:
        ValueError: If an argument is out of range; at :meth:`compute`, if levels are not nested.
    """

    def __init__(
        self,
        recall_at: Sequence[int] = (1, 10, 100, 1000),
        block_size: int | None = None,
        also: Sequence[str] = (),
        alpha: float = 1.0,
        only: bool = False,
        search: Search = Search(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(recall_at, 0, block_size, [name for name in also if name != "nDCG"], search)
        if not alpha >= 0:
            raise ValueError(f"alpha is {alpha}; it must be at least 0")
        self.alpha = alpha
        self.only = only
        self._names: tuple[str, ...] = ()
        self._num_levels, self._of_each = 1, list[str]()

    def begin(self, dataset: EvaluatedDataset | None) -> None:
        """Take the names of the levels; without a dataset they are called ``level1`` and so on."""
        self._names = () if dataset is None else tuple(dataset.levels)

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean of each measure over the queries that have it, and means of these over the levels."""
        means = super().mean(values)
        for name in self._of_each:
            levels = [means[f"{name}{self._suffix(level)}"] for level in range(self._num_levels)]
            means[f"{name}_mean"] = torch.stack(levels).mean()
        return means

    def measured_blocks(self, evaluation: Evaluation) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """See :meth:`RetrievalMetrics.measured_blocks`.

        Raises:
            ValueError: If images of one label differ in a coarser one.
        """
        _check_nested(torch.cat([evaluation.query_labels, evaluation.gallery_labels]))
        none, num_levels = evaluation.query_index[:0], evaluation.query_labels.shape[1]
        self._num_levels = num_levels
        nothing = torch.empty(0, 1, device=none.device)
        yield none, self._values(_Pairs(nothing, none, none, none, none, num_levels))
        same = SameLabel(evaluation.gallery_labels[:, -1])
        for rows, scores in self.scored_blocks(evaluation, same.largest):
            labels, own = evaluation.query_labels[rows], evaluation.own[rows]
            query, item = same.pairs(labels[:, -1], own)
            shared = torch.zeros_like(query)
            for own_labels, other_labels in zip(
                labels.unbind(dim=1), evaluation.gallery_labels.unbind(dim=1), strict=True
            ):
                shared += own_labels[query] == other_labels[item]
            answerable = torch.bincount(query, minlength=len(scores)) > 0
            values = self._values(_Pairs(scores, query, item, shared, own, num_levels))
            yield evaluation.query_index[rows][answerable], {name: value[answerable] for name, value in values.items()}

    def _values(self, pairs: "_Pairs") -> dict[str, Tensor]:
        """Name and value ``[b]`` of each measure, NaN for queries that have nothing to retrieve in it."""
        values: dict[str, Tensor] = {}
        for level in range(pairs.num_levels):
            measured = self._of(pairs, pairs.scores, pairs.shared >= pairs.num_levels - level)
            values |= {f"{name}{self._suffix(level)}": value for name, value in measured.items()}
        self._of_each = list(measured)
        ranks = self._ranks(pairs, self._relevance(pairs))
        values["H-AP"] = average_precision(ranks)
        values["nDCG"] = ndcg(self._ranks(pairs, pairs.shared.to(pairs.scores.dtype).exp2() - 1))
        values["ASI"] = average_set_intersection(self._ranks(pairs, pairs.shared))
        return values | (self._levels_alone(pairs) if self.only else {})

    def _ranks(self, pairs: "_Pairs", relevance: Tensor) -> Ranks:
        return ranks_of_pairs(pairs.scores, pairs.query, pairs.item, relevance, ties=self.search.ties)

    def _of(self, pairs: "_Pairs", scores: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """Measures of the pairs that are kept."""
        query = pairs.query[kept]
        lacks = torch.bincount(query, minlength=len(scores)) == 0
        measured = self.measures(ranks_of_pairs(scores, query, pairs.item[kept], ties=self.search.ties))
        return {name: value.masked_fill(lacks, torch.nan) for name, value in measured.items()}

    def _levels_alone(self, pairs: "_Pairs") -> dict[str, Tensor]:
        """Measures of each level but the finest, without items of finer ones."""
        values: dict[str, Tensor] = {}
        scores = pairs.scores.clone()
        for level in range(1, pairs.num_levels):
            finer = pairs.shared == pairs.num_levels - level + 1
            scores[pairs.query[finer], pairs.item[finer]] = -torch.inf
            measured = self._of(pairs, scores, pairs.shared == pairs.num_levels - level)
            values |= {f"{name}{self._suffix(level)}_only": value for name, value in measured.items()}
        return values

    def _relevance(self, pairs: "_Pairs") -> Tensor:
        """Relevance of each pair ``[M]``, those of one level sharing the weight of the level."""
        num_levels = pairs.num_levels
        cell = pairs.query * (num_levels + 1) + pairs.shared
        population = torch.bincount(cell, minlength=len(pairs.own) * (num_levels + 1))
        population = population.reshape(len(pairs.own), num_levels + 1)
        population[:, num_levels] += pairs.own >= 0
        weight = (pairs.shared.to(pairs.scores.dtype) / num_levels) ** self.alpha
        return weight / population[pairs.query, pairs.shared]

    def _suffix(self, level: int) -> str:
        if level == 0:
            return ""
        return f"_{self._names[level]}" if level < len(self._names) else f"_level{level}"


def _check_nested(labels: Tensor) -> None:
    for level in range(labels.shape[1] - 1):
        both = torch.unique(labels[:, level : level + 2], dim=0)
        repeated = both[1:, 0][both[:, 0].diff() == 0]
        if len(repeated):
            raise ValueError(
                f"labels of level {level} are not nested in those of level {level + 1}: {int(repeated[0])} is in "
                "several of them; HierarchicalMetrics needs a hierarchy, finest level first"
            )


class _Pairs(NamedTuple):
    """Queries of a block with the items that share a level with them."""

    scores: Tensor  # [b, N]
    query: Tensor  # [M]
    item: Tensor  # [M]
    shared: Tensor  # [M] how many levels, 1 to L
    own: Tensor  # [b] which item is the query itself, -1 if none is
    num_levels: int
