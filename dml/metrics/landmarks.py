"""Landmark retrieval: lists of judged images say what is relevant to a query."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from dml.metrics.retrieval import EvaluatedDataset, RetrievalMetrics, similarities


class _JudgedMetrics(RetrievalMetrics):
    """Values of the queries that were judged, whatever their labels are.

    Args:
        block_size: Queries scored at a time; memory is ``block_size * N`` floats.
    """

    words: ClassVar[tuple[str, ...]]
    """What a judgement may be."""

    def __init__(self, block_size: int = 64) -> None:
        super().__init__(block_size=block_size)
        self._judgements: pd.DataFrame | None = None

    def begin(self, dataset: EvaluatedDataset | None) -> None:
        """Take the dataset's judgements.

        Raises:
            ValueError: If there is no dataset, it has no judgements, or they are other words.
        """
        judgements = None if dataset is None else dataset.judgements()
        if judgements is None:
            what = "None" if dataset is None else f"{type(dataset).__name__}, whose judgements() is None"
            raise ValueError(f"dataset is {what}; {type(self).__name__} needs one with judgements {list(self.words)}")
        unknown = sorted(set(judgements["judgement"].unique()) - set(self.words))
        if unknown:
            raise ValueError(f"judgements are {unknown}; {type(self).__name__} knows {list(self.words)}")
        self._judgements = judgements

    def compute(self) -> dict[str, Tensor]:
        """Mean of each value over the queries that have it; 0, with a warning, if none has."""
        values = {name: value.nanmean() for name, value in self.per_query()[1].items()}
        empty = [name for name, value in values.items() if value.isnan()]
        if empty:
            rank_zero_warn(f"no query has a positive in the gallery for {empty}: they are 0")
        return {name: value.nan_to_num() for name, value in values.items()}

    def per_query(self) -> tuple[Tensor, dict[str, Tensor]]:
        """``index`` of the queries that were judged, and each value of theirs, NaN if it has none, all ``[Q]``."""
        queries, rows = [], []
        for query, words, above in self._judged():
            queries.append(query)
            rows.append(list(self._values(words, above).values()))
        names = list(self._values(np.array([], dtype=object), torch.empty(0)))
        columns = torch.tensor(rows, device=self.device).reshape(-1, len(names)).unbind(dim=1)
        return torch.tensor(queries, dtype=torch.long, device=self.device), dict(zip(names, columns, strict=True))

    @abstractmethod
    def _values(self, words: npt.NDArray[np.object_], above: Tensor) -> dict[str, float]:
        """Name and value of each measure of one query; NaN if it has nothing to retrieve.

        Args:
            words: ``[J]``, the judgement of each judged image, best first.
            above: ``[J]``, how many images without a judgement are not below it: ties count against.
        """

    def _judged(self) -> Iterator[tuple[int, npt.NDArray[np.object_], Tensor]]:
        if self._judgements is None:
            raise ValueError(f"{type(self).__name__} was told of no dataset; call begin(dataset) before compute()")
        index, embeddings, _, is_query, is_gallery = self.images()
        items, item_index = embeddings[is_gallery], index[is_gallery]
        place = pd.Index(item_index.cpu().numpy()).get_indexer(pd.Index(self._judgements["item"]))
        judgements = self._judgements.assign(item=place)[place >= 0]
        of_query = {query: (rows["item"], rows["judgement"]) for query, rows in judgements.groupby("query")}
        judged = is_query & torch.isin(index, torch.tensor(list(of_query), dtype=index.dtype, device=index.device))
        for block in torch.split(judged.nonzero().squeeze(1), self.block_size):
            for query, scores in zip(index[block].tolist(), similarities(embeddings[block], items), strict=True):
                rows, words = (column.to_numpy() for column in of_query[query])
                row = torch.tensor(rows, device=index.device)
                own, order = scores[row].sort(descending=True, stable=True)
                scores[row] = -torch.inf
                scores[item_index == query] = -torch.inf
                above = len(scores) - torch.searchsorted(scores.sort().values, own)
                yield query, words[order.cpu().numpy()], above.cpu()


class LandmarkMetrics(_JudgedMetrics):
    """mAP and mP@k of the revisited Oxford and Paris: Easy, Medium and Hard.

    Radenović et al., "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018,
    https://arxiv.org/abs/1803.11285; equal to ``python/evaluate.py`` of https://github.com/filipradenovic/revisitop.
    The dataset judges images as easy, hard or junk:

    ======  ===========  ==========================
    suffix  positive     removed before ranking
    ======  ===========  ==========================
    ``_E``  easy         hard, junk
    ``_M``  easy, hard   junk
    ``_H``  hard         easy, junk
    ======  ===========  ==========================

    ``mAP_E`` and so on is the mean average precision by trapezoids: of each positive, the mean of the precision just
    before and at it. ``mP@1_E``, ``mP@5_E``, ``mP@10_E`` is the share of positives among the first ``min(k, r)``, where
    ``r`` is the rank of the last positive. Queries without a positive are skipped. Ties count against: of images with
    one score, the positives come last.

    Args:
        block_size: Queries scored at a time; memory is ``block_size * N`` floats.
    """

    words = ("easy", "hard", "junk")

    def _values(self, words: npt.NDArray[np.object_], above: Tensor) -> dict[str, float]:
        positives = {"E": ("easy",), "M": ("easy", "hard"), "H": ("hard",)}
        ranks = {suffix: _ranks(above[np.isin(words, positive)]) for suffix, positive in positives.items()}
        values = {f"mAP_{suffix}": _trapezoid_average_precision(rank) for suffix, rank in ranks.items()}
        for suffix, rank in ranks.items():
            values |= {f"mP@{k}_{suffix}": _precision(rank, k) for k in (1, 5, 10)}
        return values


class GoogleLandmarkMetrics(_JudgedMetrics):
    """mAP@100 of Google Landmarks v2, over all queries that were judged, the public ones, and the private ones.

    Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, https://arxiv.org/abs/2004.01804. A query's average
    precision is the precision at each relevant image among the first 100, summed and divided by how many there can be:
    100, or the number of relevant images if that is smaller. The dataset judges the relevant images of a public query
    as public, those of a private one as private; ignored queries have no judgement. The values are ``mAP@100``,
    ``mAP@100_public`` and ``mAP@100_private``. Ties count against: of images with one score, the relevant ones come
    last.

    Args:
        block_size: Queries scored at a time; memory is ``block_size * N`` floats.
    """

    words = ("public", "private")

    def _values(self, words: npt.NDArray[np.object_], above: Tensor) -> dict[str, float]:
        parts = {"mAP@100": self.words, "mAP@100_public": ("public",), "mAP@100_private": ("private",)}
        return {name: _average_precision(_ranks(above[np.isin(words, part)]), 100) for name, part in parts.items()}


def _ranks(above: Tensor) -> Tensor:
    """Ranks ``[P]`` of the positives, best first, from how many irrelevant images are before each."""
    return above + torch.arange(1, len(above) + 1)


def _trapezoid_average_precision(rank: Tensor) -> float:
    found = torch.arange(1, len(rank) + 1, dtype=torch.float64)
    before = torch.where(rank == 1, 1, (found - 1) / (rank - 1))
    return float(((before + found / rank) / 2).mean())


def _precision(rank: Tensor, k: int) -> float:
    if len(rank) == 0:
        return torch.nan
    cutoff = min(k, int(rank[-1]))
    return int((rank <= cutoff).sum()) / cutoff


def _average_precision(rank: Tensor, k: int) -> float:
    if len(rank) == 0:
        return torch.nan
    precision = torch.arange(1, len(rank) + 1, dtype=torch.float64) / rank
    return float(precision[rank <= k].sum()) / min(k, len(rank))
