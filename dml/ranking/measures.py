"""Measures of a ranking: functions from :class:`~dml.ranking.ranks.Ranks` to one value per query ``[Q]``.

Each exists once and serves as loss (soft ranks) and as metric (exact ranks). A query without relevant items scores 0.
Where ranks are exact, ties count against the item. Precision at a relevant item is that at the last item of its score,
as scikit-learn has it; whether it is among the first k, and its discount, are those of its place behind the irrelevant
items of its score. So a precision does not depend on an order that scores do not give, relevant items of one score do
not push each other out of the first k, and what is perfect is 1.
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


def average_precision_at_k(ranks: Ranks, k: int) -> Tensor:
    """mAP@k ``[Q]``: precision summed over the relevant items among the first ``k``, over ``min(R, k)``.

    With ``k`` 100, the measure of Google Landmarks v2: Weyand et al., CVPR 2020, https://arxiv.org/abs/2004.01804. For
    exact ranks and binary relevance.
    """
    precision = ranks.sum_per_query(ranks.weight * (_place(ranks) <= k) * ranks.hrank / ranks.rank)
    return precision / _num_relevant(ranks).clamp(min=1, max=k)


def ndcg(ranks: Ranks, k: int | None = None) -> Tensor:
    """Normalised discounted cumulative gain ``[Q]``, with relevance as the gain, of the first ``k`` or of all.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002. The ideal ranking is that of
    the whole gallery.
    """
    gain = ranks.weight * ranks.relevance / (1 + _place(ranks)).log2()
    if k is not None:
        gain = gain * (_place(ranks) <= k)
    best_first = ranks.relevance.argsort(descending=True, stable=True)
    best_first = best_first[ranks.query[best_first].argsort(stable=True)]  # by query, then by relevance
    # Each item takes as many places as its weight says; the discounts of all places up to there are one sum.
    filled = ranks.weight[best_first].double().cumsum(0)
    before = filled - ranks.weight[best_first]
    start = (_num_relevant(ranks).double().cumsum(0) - _num_relevant(ranks))[ranks.query[best_first]]
    discounts = _discounts_up_to(filled - start, k) - _discounts_up_to(before - start, k)
    ideal = ranks.sum_per_query(ranks.relevance[best_first] * discounts.to(ranks.rank.dtype))
    return ranks.sum_per_query(gain) / ideal.clamp(min=1e-12)


def _discounts_up_to(places: Tensor, k: int | None) -> Tensor:
    """Sum of the discounts ``1 / log2(1 + place)`` of the first so many places ``[M]``, linear between whole ones."""
    places = places.clamp(min=0) if k is None else places.clamp(min=0, max=k)
    whole = places.floor().long()
    most = int(whole.max()) + 1 if len(whole) else 1
    discount = 1 / torch.arange(2, most + 2, dtype=torch.float64, device=places.device).log2()
    total = torch.nn.functional.pad(discount.cumsum(0), (1, 0))
    return total[whole] + (places - whole) * discount[whole.clamp(max=most - 1)]


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

    For exact ranks and binary relevance. What other fields call recall is :func:`found_at_k`.
    """
    within = _place(ranks) <= k
    if ranks.first is not None:
        return ranks.sum_per_query(ranks.first * within)
    return ranks.sum_per_query(within.to(ranks.rank.dtype)).clamp(max=1)


def reciprocal_rank(ranks: Ranks) -> Tensor:
    """One over the rank of the first relevant item ``[Q]``; its mean is MRR. For exact ranks and binary relevance."""
    if ranks.first is not None:
        return ranks.sum_per_query(ranks.first / ranks.rank)
    inverse = 1 / _place(ranks)
    return inverse.new_zeros(ranks.num_queries).scatter_reduce(0, ranks.query, inverse, "amax")


def precision_at_k(ranks: Ranks, k: int) -> Tensor:
    """Share of the first ``k`` that is relevant ``[Q]``, for exact ranks and binary relevance."""
    return _found(ranks, ranks.rank.new_full((ranks.num_queries,), k)) / k


def found_at_k(ranks: Ranks, k: int) -> Tensor:
    """Share of the relevant items among the first ``k``, as far as k has room for them ``[Q]``.

    The relevant items found over ``min(R, k)``: recall as information retrieval means it, which a perfect ranking makes
    1. Metric learning calls something else Recall@k: :func:`recall_at_k`. For exact ranks and binary relevance.
    """
    return _found(ranks, ranks.rank.new_full((ranks.num_queries,), k)) / _num_relevant(ranks).clamp(min=1, max=k)


def r_precision(ranks: Ranks) -> Tensor:
    """Share of the ``R`` relevant items among the first ``R`` ``[Q]``, for exact ranks and binary relevance."""
    num_relevant = _num_relevant(ranks)
    return _found(ranks, num_relevant) / num_relevant.clamp(min=1)


def mean_average_precision_at_r(ranks: Ranks) -> Tensor:
    """mAP@R ``[Q]``: precision summed over the relevant items among the first ``R``, over ``R``.

    Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, https://arxiv.org/abs/2003.08505. For exact ranks and
    binary relevance.
    """
    num_relevant = _num_relevant(ranks)
    retrieved = _place(ranks) <= num_relevant[ranks.query]
    precision = ranks.sum_per_query(ranks.weight * retrieved * ranks.hrank / ranks.rank)
    return precision / num_relevant.clamp(min=1)


def average_set_intersection(ranks: Ranks) -> Tensor:
    r"""ASI: how well the levels of the first items agree with those of the best ranking, at every depth ``[Q]``.

    .. math:: \frac{1}{R} \sum_{k=1}^{R} \frac{1}{k} \sum_{l=1}^{L} \min(n_l(k), n^*_l(k))

    with :math:`n_l(k)` items of level :math:`l` among the first :math:`k`, and :math:`n^*_l(k)` of the best ranking.
    Sun et al., "Dynamic Metric Learning: Towards a Scalable Metric Space to Accommodate Multiple Semantic Scales", CVPR
    2021, https://arxiv.org/abs/2103.11781; as in the code of SupRank.

    Args:
        ranks: Exact ranks; the relevance is the level, 1 to ``L``. Expected ranks give the ASI of the expected counts.
    """
    num_relevant = _num_relevant(ranks)
    depth = torch.arange(1, int(num_relevant.max()) + 1 if len(num_relevant) else 1, device=ranks.rank.device)
    shared = ranks.rank.new_zeros(ranks.num_queries, len(depth))
    within = _place(ranks) <= len(depth)
    query, place, weight, level_of = (
        values[within] for values in (ranks.query, _place(ranks).long() - 1, ranks.weight, ranks.relevance)
    )
    better = ranks.rank.new_zeros(ranks.num_queries, 1)
    for level in torch.unique(ranks.relevance).flip(0):
        found = torch.zeros_like(shared).index_put_((query, place), weight * (level_of == level), accumulate=True)
        of_level = ranks.sum_per_query(ranks.weight * (ranks.relevance == level))[:, None]
        best = torch.minimum((depth - better).clamp(min=0), of_level)
        shared += torch.minimum(found.cumsum_(dim=1), best)
        better = better + of_level
    deep = depth <= num_relevant[:, None]
    return (shared / depth * deep).sum(dim=1) / num_relevant.clamp(min=1)


def _num_relevant(ranks: Ranks) -> Tensor:
    number = ranks.sum_per_query(ranks.weight)
    return number if ranks.first is None else number.round()  # probabilities add up to a whole number, or almost


def _found(ranks: Ranks, k: Tensor) -> Tensor:
    """How many relevant items are among the first ``k [Q]``."""
    return ranks.sum_per_query(ranks.weight * (_place(ranks) <= k[ranks.query]))


def _place(ranks: Ranks) -> Tensor:
    return ranks.rank if ranks.place is None else ranks.place
