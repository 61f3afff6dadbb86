"""Measures of a ranking: functions from :class:`~dml.ranking.ranks.Ranks` to one value per query ``[Q]``.

Each exists once and serves as loss (soft ranks) and as metric (exact ranks). A query without relevant items scores 0.
Where ranks are exact, ties count against the item: a relevant item shares its rank with the last item of its score.
"""

import torch
from torch import Tensor

from dml.ranking.ranks import Ranks


def average_precision(ranks: Ranks) -> Tensor:
    """Average precision ``[Q]``; hierarchical AP (Ramzi et al., ECCV 2022) when relevance is graded."""
    precision = ranks.sum_per_query(ranks.weight * ranks.hrank / ranks.rank)
    return precision / ranks.sum_per_query(ranks.weight * ranks.relevance).clamp(min=1e-12)


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
