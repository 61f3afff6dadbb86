"""What ranks are if items of one score are put into an order: the best one, or all of them alike."""

from typing import NamedTuple

import torch
from torch import Tensor

from dml.ranking.ranks import Ranks


class TiedRanks(NamedTuple):
    """Ranks with what is strictly above."""

    ranks: Ranks  # those of the last item of each score
    above: Tensor  # [M] how many items score more
    passed: Tensor  # [M] sum of min(r_i, r_j) over the relevant items j that score more


def optimistic_ranks(tied: TiedRanks) -> Ranks:
    """Relevant items come before the irrelevant ones of their score, the most relevant first."""
    ranks, above, passed = tied
    order, group = _groups(tied, ranks.relevance.neg())
    start = torch.arange(len(order), device=order.device)[group.diff(prepend=group[:1] - 1) > 0]
    place = torch.empty_like(above)
    place[order] = (torch.arange(len(order), device=order.device) - start[group]).to(above.dtype)
    # Those before it in its own group are at least as relevant, so each shares all of its relevance.
    return ranks._replace(rank=above + place + 1, hrank=passed + (place + 1) * ranks.relevance)


def expected_ranks(tied: TiedRanks) -> Ranks:
    r"""A pair for each place that an item may get, with its probability as the weight.

    In random order, each of :math:`c` items of one score is at each of their places with probability :math:`1/c`, and
    the others of its score are before it at place :math:`k` with probability :math:`(k - 1) / (c - 1)`. McSherry and
    Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR
    2008.
    Items of one query, score and relevance make the same pairs, which are given once. All values are float64.
    """
    # A group may be as large as the gallery: single precision would lose count of such small weights.
    tied = TiedRanks(_in_double(tied.ranks), tied.above.double(), tied.passed.double())
    ranks, above, passed = tied
    order, group = _groups(tied, ranks.relevance)
    # One of each kind: query, score, relevance; and how many there are of it.
    kind = torch.zeros_like(group)
    kind[1:] = ((group.diff() > 0) | (ranks.relevance[order].diff() != 0)).cumsum(0)
    first = torch.arange(len(order), device=order.device)[kind.diff(prepend=kind[:1] - 1) > 0]
    number = torch.bincount(kind).to(above.dtype)
    num_relevant = torch.bincount(group).to(above.dtype)[group[first]]
    one = order[first]
    size = ranks.rank[one] - above[one]  # c
    slot = torch.arange(len(one), device=order.device).repeat_interleave(size.long())
    # Places count from 0 within each kind.
    place = torch.arange(len(slot), device=order.device) - (size.long().cumsum(0) - size.long())[slot]
    place, one_of = place.to(above.dtype), one[slot]
    own = ranks.relevance[one_of]
    others = ranks.hrank[one_of] - passed[one_of] - own
    hrank = passed[one_of] + own + others * place / (size[slot] - 1).clamp(min=1)
    return Ranks(
        query=ranks.query[one_of],
        relevance=own,
        rank=above[one_of] + place + 1,
        hrank=hrank,
        weight=number[slot] / size[slot],
        num_queries=ranks.num_queries,
        first=_first(ranks, above, one, slot, place, size, num_relevant) * number[slot],
    )


def _in_double(ranks: Ranks) -> Ranks:
    doubles = {name: getattr(ranks, name).double() for name in ("relevance", "rank", "hrank", "weight")}
    return ranks._replace(**doubles)


def _groups(tied: TiedRanks, key: Tensor) -> tuple[Tensor, Tensor]:
    """An order of the pairs by query, score and ``key``; and in that order, which group of one score each is of."""
    ranks = tied.ranks
    order = key.argsort(stable=True)
    order = order[tied.above[order].argsort(stable=True)]
    order = order[ranks.query[order].argsort(stable=True)]
    query, above = ranks.query[order], tied.above[order]
    group = torch.zeros_like(query)
    group[1:] = ((query.diff() != 0) | (above.diff() != 0)).cumsum(0)
    return order, group


def _first(
    ranks: Ranks, above: Tensor, one: Tensor, slot: Tensor, place: Tensor, size: Tensor, num_relevant: Tensor
) -> Tensor:
    """Probability that one item at each place ``[M']`` is the first relevant one of its query.

    None of its score may be before it, by drawing without replacement, and none of a higher score at all.
    """
    lowest = above.new_full((ranks.num_queries,), torch.inf).scatter_reduce(0, ranks.query, above, "amin")
    leads = (above == lowest[ranks.query])[one][slot]
    items, relevant, before = (values.double() for values in (size[slot], num_relevant[slot], place))
    spare = (items - relevant - before).clamp(min=0)
    log_none = (
        torch.lgamma(items - relevant + 1)
        - torch.lgamma(spare + 1)
        + torch.lgamma(items - before + 1)
        - torch.lgamma(items + 1)
    )
    possible = before <= items - relevant
    return (log_none.exp() / (items - before) * possible * leads).to(above.dtype)
