"""Measures of a ranking: functions from :class:`~dml.ranking.ranks.Ranks` to one value per query ``[Q]``.

Each exists once and serves as loss (soft ranks) and as metric (exact ranks). A query without relevant items scores 0.
Where ranks are exact, ties count against the item: a relevant item shares its rank with the last item of its score.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dml.ranking.ranks import Ranks


def average_precision(ranks: Ranks) -> Tensor:
    """Average precision ``[Q]``; hierarchical AP (Ramzi et al., ECCV 2022) when relevance is graded."""
    precision = ranks.sum_per_query(ranks.weight * ranks.hrank / ranks.rank)
    return precision / ranks.sum_per_query(ranks.weight * ranks.relevance).clamp(min=1e-12)


def tie_aware_average_precision(ranks: Ranks, *, simplified: bool = False) -> Tensor:
    r"""Average precision ``[Q]`` of binned ranks, about what it is if the items of a bin come in random order.

    With :math:`c` items in a bin, :math:`c^+` of them relevant, and :math:`C, C^+` items in the bins above,

    .. math:: \frac{1}{\sum c^+} \sum_{bins} \frac{c^+}{c}
        \left( c\, r + (C^+ + 1 - r (C + 1)) \ln \frac{C + c + 1}{C + 1} \right), \qquad
        r = \frac{\max(c^+ - 1, 0)}{\max(c - 1, 0)}

    He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018, https://arxiv.org/abs/1705.08562, as in the code of
    Revaud et al.; ``simplified`` is the bound of that paper that needs no logarithm.
    """
    shape = ranks.num_queries, len(ranks.rank) // max(1, ranks.num_queries)
    rank, hrank, relevant = (values.view(shape) for values in (ranks.rank, ranks.hrank, ranks.weight))
    rank_above, hrank_above = (torch.nn.functional.pad(values[:, :-1], (1, 0)) for values in (rank, hrank))
    if simplified:
        per_bin = relevant * (hrank_above + hrank + 1) / (rank_above + rank + 1)
    else:
        items = rank - rank_above
        ratio = (relevant - 1).clamp(min=0) / ((items - 1).clamp(min=0) + 1e-8)
        logarithm = ((rank + 1) / (rank_above + 1)).log()
        per_bin = relevant * (items * ratio + (hrank_above + 1 - ratio * (rank_above + 1)) * logarithm) / (items + 1e-8)
    return per_bin.sum(dim=1) / relevant.sum(dim=1).clamp(min=1e-12)


def ndcg(ranks: Ranks) -> Tensor:
    """Normalised discounted cumulative gain ``[Q]``, with relevance as the gain.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002. The ideal ranking is that of
    the whole gallery.
    """
    best_first = ranks.relevance.argsort(descending=True, stable=True)
    best_first = best_first[ranks.query[best_first].argsort(stable=True)]  # by query, then by relevance
    num_relevant = ranks.sum_per_query(torch.ones_like(ranks.rank)).long()
    first_pair = num_relevant.cumsum(0) - num_relevant
    position = torch.arange(len(ranks.query), device=ranks.query.device) - first_pair[ranks.query]
    ideal = ranks.sum_per_query(ranks.relevance[best_first] / (position + 2).to(ranks.rank.dtype).log2())
    return ranks.sum_per_query(ranks.relevance / (1 + ranks.rank).log2()) / ideal.clamp(min=1e-12)


@dataclass(frozen=True)
class SoftRecall:
    r"""Share of the relevant items among the first k ``[Q]``, as far as k has room for them: smoothed, mean over k.

    .. math:: \frac{1}{|K|} \sum_{k \in K} \frac{1}{\min(k, |P|)} \sum_{i \in P} \sigma((k - r_i) / T)

    An item at rank k counts half, so a perfect ranking stays below 1. With fewer than ``|P|`` places, items just behind
    the k-th add up, and the share may exceed 1 unless it is ``capped``.

    Args:
        at_k: Values of k.
        temperature: :math:`T`.
        capped: Whether each share is at most 1, where its gradient vanishes.

    Raises:
        ValueError: If a k is below 1, there is none, or ``temperature`` is not positive.
    """

    at_k: tuple[int, ...]
    temperature: float = 1.0
    capped: bool = False

    def __post_init__(self) -> None:
        if not self.at_k or min(self.at_k) < 1:
            raise ValueError(f"at_k is {list(self.at_k)}; it must be one or more ranks, each at least 1")
        if not self.temperature > 0:
            raise ValueError(f"recall_temperature is {self.temperature}; it must be above 0")

    def __call__(self, ranks: Ranks) -> Tensor:
        num_relevant = ranks.sum_per_query(torch.ones_like(ranks.rank)).clamp(min=1)
        total = torch.zeros_like(num_relevant)
        for k in self.at_k:
            retrieved = ((k - ranks.rank) / self.temperature).sigmoid()
            share = ranks.sum_per_query(retrieved) / num_relevant.clamp(max=k)
            total = total + (share.clamp(max=1) if self.capped else share)
        return total / len(self.at_k)


def recall_at_k(ranks: Ranks, k: int) -> Tensor:
    """Recall@k as metric learning means it: 1 if any relevant item is among the first ``k``, else 0 ``[Q]``.

    For exact ranks and binary relevance. Relevant items with one score do not push each other out of the first ``k``:
    what counts is how many irrelevant ones are above.
    """
    hit = (ranks.rank - ranks.hrank < k).to(ranks.rank.dtype)
    return ranks.sum_per_query(hit).clamp(max=1)


def r_precision(ranks: Ranks) -> Tensor:
    """Share of the ``R`` relevant items among the first ``R`` ``[Q]``, for exact ranks and binary relevance."""
    num_relevant = ranks.sum_per_query(torch.ones_like(ranks.rank))
    retrieved = (ranks.rank <= num_relevant[ranks.query]).to(ranks.rank.dtype)
    return ranks.sum_per_query(retrieved) / num_relevant.clamp(min=1)


def mean_average_precision_at_r(ranks: Ranks) -> Tensor:
    """mAP@R ``[Q]``: precision summed over the relevant items among the first ``R``, over ``R``.

    Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, https://arxiv.org/abs/2003.08505. For exact ranks and
    binary relevance.
    """
    num_relevant = ranks.sum_per_query(torch.ones_like(ranks.rank))
    retrieved = (ranks.rank <= num_relevant[ranks.query]).to(ranks.rank.dtype)
    return ranks.sum_per_query(retrieved * ranks.hrank / ranks.rank) / num_relevant.clamp(min=1)
