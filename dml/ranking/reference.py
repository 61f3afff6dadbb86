"""What the rankers compute, in plain loops: the definition they are tested against. For tests and notebooks only."""

from collections.abc import Callable

import torch
from torch import Tensor

from dml.ranking.ranks import Ranks

StepFunction = Callable[[Tensor], Tensor]


def reference_ranks(
    scores: Tensor,
    relevance: Tensor,
    valid: Tensor,
    *,
    positive_step: StepFunction,
    negative_step: StepFunction,
    levels: Tensor | None = None,
) -> Ranks:
    """Rank the relevant items of each query, one pair at a time, in float64.

    Everything is a chain of 0-dim tensor operations, so autograd differentiates the definition itself: the steps
    need a value and no hand-derived slope.

    Args:
        scores: ``[Q, N]``.
        relevance: ``[Q, N]``, bool or in ``[0, 1]``; an item with relevance 0 is not to be retrieved.
        valid: ``[Q, N]`` bool; an invalid item is not in the query's gallery at all.
        positive_step: Score difference to "is above", for items at least as relevant as the ranked one.
        negative_step: The same for less relevant items.
        levels: ``[Q, N]``, what "as relevant" compares, positive where the relevance is; by default that.

    Returns:
        The ranks of the valid relevant items, ordered by query, then by item.
    """
    scores, relevance = scores.double(), relevance.double()
    levels = relevance if levels is None else levels.double()
    num_queries, num_items = scores.shape
    pairs = [
        (query, item)
        for query in range(num_queries)
        for item in range(num_items)
        if valid[query, item] and relevance[query, item] > 0
    ]
    nothing = scores.flatten()[:0]  # keeps the (zero) gradient when there is no pair
    rank, hrank = [nothing], [nothing]
    for query, item in pairs:
        others = [other for other in range(num_items) if other != item and valid[query, other]]
        own_rank, own_hrank = _rank_item(
            scores[query, item],
            relevance[query, item],
            scores[query, others],
            relevance[query, others],
            levels[query, others] >= levels[query, item],
            positive_step=positive_step,
            negative_step=negative_step,
        )
        rank.append(own_rank.reshape(1))
        hrank.append(own_hrank.reshape(1))
    query_of, item_of = torch.tensor(pairs, dtype=torch.long, device=scores.device).reshape(-1, 2).unbind(dim=1)
    own = relevance[query_of, item_of]
    return Ranks(query_of, own, torch.cat(rank), torch.cat(hrank), torch.ones_like(own), num_queries)


def _rank_item(
    score: Tensor,
    relevance: Tensor,
    other_scores: Tensor,
    other_relevances: Tensor,
    as_relevant: Tensor,
    *,
    positive_step: StepFunction,
    negative_step: StepFunction,
) -> tuple[Tensor, Tensor]:
    """Rank and hierarchical rank of one item against the other items of its query's gallery."""
    rank, hrank = torch.ones_like(relevance), relevance.clone()
    for other_score, other_relevance, positive in zip(other_scores, other_relevances, as_relevant, strict=True):
        difference = other_score - score
        step = positive_step if positive else negative_step
        rank = rank + step(difference)
        hrank = hrank + torch.minimum(relevance, other_relevance) * positive_step(difference)
    return rank, hrank
