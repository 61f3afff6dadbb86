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

from dml.metrics.evaluation import EvaluatedDataset, Evaluation
from dml.metrics.retrieval import RetrievalMetrics
from dml.metrics.search import Search
from dml.ranking import ranks_of_pairs


class _JudgedMetrics(RetrievalMetrics):
    """Values of the queries that were judged, whatever their labels are.

    Args:
        block_size: Queries scored at a time; memory is ``block_size * N`` floats.
        search: What the gallery is ranked by. Ties count against, whatever it says.
    """

    words: ClassVar[tuple[str, ...]]
    """What a judgement may be."""

    def __init__(self, block_size: int | None = None, search: Search = Search()) -> None:  # noqa: B008  # frozen
        super().__init__(block_size=block_size, search=search)
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
        self.search.seconds.clear()
        self.last_per_query = self.per_query()
        values = {name: value.nanmean() for name, value in self.last_per_query[1].items()}
        empty = [name for name, value in values.items() if value.isnan()]
        if empty:
            rank_zero_warn(f"no query has a positive in the gallery for {empty}: they are 0")
        return {name: value.nan_to_num() for name, value in values.items()}

    def measured_blocks(self, evaluation: Evaluation) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """``index`` of the judged queries of this process, and each value of theirs ``[b]``, NaN if there is none."""
        if self._judgements is None:
            raise ValueError(f"{type(self).__name__} was told of no dataset; call begin(dataset) before compute()")
        yield evaluation.query_index[:0], self._columns([])
        place = pd.Index(evaluation.gallery_index.cpu().numpy()).get_indexer(pd.Index(self._judgements["item"]))
        judgements = self._judgements.assign(item=place)[place >= 0]
        of_query = {query: (rows["item"], rows["judgement"]) for query, rows in judgements.groupby("query")}
        # Of Google Landmarks, one query in a hundred is judged: the others are not worth their scores.
        index = evaluation.query_index
        judged = evaluation.only(
            torch.isin(index, torch.tensor(list(of_query), dtype=index.dtype, device=index.device))
        )
        for rows, scores in self.scored_blocks(judged):
            index, values = judged.query_index[rows], []
            for row, (query, itself) in enumerate(zip(index.tolist(), judged.own[rows].tolist(), strict=True)):
                items, words = (column.to_numpy() for column in of_query[query])
                others = items != itself
                values.append(self._values(*_ranked(scores[row], items[others], words[others])))
            yield index, self._columns(values)

    def _columns(self, rows: list[dict[str, float]]) -> dict[str, Tensor]:
        names = list(self._values(np.array([], dtype=object), torch.empty(0)))
        values = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64, device=self.device)
        return dict(zip(names, values.reshape(-1, len(names)).unbind(dim=1), strict=True))

    @abstractmethod
    def _values(self, words: npt.NDArray[np.object_], above: Tensor) -> dict[str, float]:
        """Name and value of each measure of one query; NaN if it has nothing to retrieve.

        Args:
            words: ``[J]``, the judgement of each judged image, best first.
            above: ``[J]``, how many images without a judgement are not below it: ties count against.
        """


def _ranked(
    scores: Tensor, items: npt.NDArray[np.int64], words: npt.NDArray[np.object_]
) -> tuple[npt.NDArray[np.object_], Tensor]:
    """The words of judged items, best first, and how many others of the gallery ``[N]`` are not below each."""
    item = torch.from_numpy(items).to(scores.device)
    order = scores[item].argsort(descending=True, stable=True)
    ranks = ranks_of_pairs(scores[None], torch.zeros_like(item), item[order])
    return words[order.cpu().numpy()], (ranks.rank - ranks.hrank).cpu()


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
        search: What the gallery is ranked by. Ties count against, whatever it says.
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
        search: What the gallery is ranked by. Ties count against, whatever it says.
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
