"""The ranker for evaluation: true ranks, by counting or by sorting, whichever takes less time."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dml.ranking.ranks import Ranks
from dml.ranking.ties import TiedRanks, expected_ranks, optimistic_ranks

Ties = Literal["pessimistic", "optimistic", "expected"]

# Scores that are compared again and again should stay in the cache of a core; a GPU wants as many as it can get.
_CACHED_SCORES = {"cpu": 2**18, "cuda": 2**26}
# From so many relevant items on, sorting a row of scores takes less time than comparing each of them with all.
_MANY_RELEVANT = 24


def exact_ranks(scores: Tensor, relevance: Tensor, valid: Tensor, *, ties: Ties = "pessimistic") -> Ranks:
    """Rank the relevant items of each query. No gradient.

    Args:
        scores: ``[Q, N]``.
        relevance: ``[Q, N]``, bool or float in [0, 1].
        valid: ``[Q, N]`` bool.
        ties: See :func:`ranks_of_pairs`.

    Returns:
        Ranks of the valid items with relevance above 0.
    """
    with torch.no_grad():
        parts = []
        for rows in _spans(len(scores), scores.shape[1] // 16, scores.device):
            query, item = (relevance[rows].bool() & valid[rows]).nonzero(as_tuple=True)
            gallery = scores[rows].masked_fill(~valid[rows], -torch.inf)
            part = ranks_of_pairs(gallery, query, item, relevance[rows][query, item].to(scores.dtype), ties=ties)
            parts.append(part._replace(query=part.query + rows.start))
        return _joined(parts, scores) if parts else _none(scores)


@torch.no_grad()
def ranks_of_pairs(
    scores: Tensor, query: Tensor, item: Tensor, relevance: Tensor | None = None, *, ties: Ties = "pessimistic"
) -> Ranks:
    """Rank given items of each query, those that are relevant to it. No gradient.

    Args:
        scores: ``[Q, N]``, minus infinity where an item is not in the gallery of the query.
        query: ``[M]``, the row of each pair, ascending.
        item: ``[M]``, the column of each pair.
        relevance: ``[M]``, above 0; all 1 by default.
        ties: What a relevant item gets that has the same score as others. ``"pessimistic"``: the rank of the last of
            them, and a place behind the irrelevant ones, where measures ask for places; so a model that gives every
            item one score is worth no more than chance. ``"optimistic"``: relevant items come first, the most relevant
            first of all. ``"expected"``: each place with its probability if they come in random order, as pairs of a
            weight below 1, so that measures are their expectation over all orders.

    Returns:
        Ranks of the pairs.

    Raises:
        ValueError: If ``ties`` is none of these.
    """
    if ties not in ("pessimistic", "optimistic", "expected"):
        raise ValueError(f"ties is {ties!r}; it must be 'pessimistic', 'optimistic' or 'expected'")
    if len(query) == 0:
        return _none(scores)
    own = scores[query, item]
    given = torch.ones_like(own) if relevance is None else relevance.to(scores.dtype)
    pairs = _sorted_pairs(query, own, len(scores), None if relevance is None else given)
    strictly = ties != "pessimistic"
    not_below, above = _counts(scores, pairs, strictly)
    reached, passed = _shared_relevance(pairs, None if relevance is None else given, strictly)
    ranks = Ranks(query, given, not_below, reached, torch.ones_like(own), len(scores))
    if not strictly:
        return ranks._replace(place=not_below - pairs.to_pairs(_behind_equals(pairs)))
    tied = TiedRanks(ranks, above, passed)
    return optimistic_ranks(tied) if ties == "optimistic" else expected_ranks(tied)


class _Pairs(NamedTuple):
    """The pairs of each query in a row, by score, ascending; rows with most pairs first, none without any.

    Padding comes first in a row. Scores in order are found in order, which the cache of a core rewards.
    """

    rows: Tensor  # [q] query of each row
    number: Tensor  # [q] how many pairs it has
    pair: Tensor  # [q, P] number of each pair, any where padded
    present: Tensor  # [q, P] bool, False where padded
    own: Tensor  # [q, P] score of each pair, minus infinity where padded
    place: Tensor  # [M] where in a flat [q, P] each pair is

    def to_padded(self, values: Tensor) -> Tensor:
        """From one value per pair ``[M]`` to ``[q, P]``, 0 where padded."""
        return values[self.pair].masked_fill_(~self.present, 0)

    def to_pairs(self, padded: Tensor) -> Tensor:
        """From ``[q, P]`` to one value per pair ``[M]``."""
        return padded.flatten()[self.place]


def _sorted_pairs(query: Tensor, own: Tensor, num_queries: int, relevance: Tensor | None) -> _Pairs:
    count = torch.bincount(query, minlength=num_queries)
    first = count.cumsum(0) - count
    count, rows = count.sort(descending=True, stable=True)
    rows = rows[: int(count.count_nonzero())]
    count = count[: len(rows)]
    position = torch.arange(int(count[0]), device=query.device)
    present = position < count[:, None]
    pair = (first[rows, None] + position) * present
    if relevance is not None:  # of one score, the most relevant first, to be ranked last
        order = relevance[pair].masked_fill_(~present, torch.inf).sort(dim=1, descending=True, stable=True).indices
        pair, present = pair.gather(1, order), present.gather(1, order)
    ascending, order = own[pair].masked_fill_(~present, -torch.inf).sort(dim=1, stable=True)
    pair, present = pair.gather(1, order), present.gather(1, order)
    filled = present.flatten().nonzero().squeeze(1)
    place = torch.empty_like(query).index_put_((pair.flatten()[filled],), filled)
    return _Pairs(rows, count, pair, present, ascending, place)


def _counts(scores: Tensor, pairs: _Pairs, strictly: bool) -> tuple[Tensor, Tensor]:
    """How many items have at least the score of each pair's item ``[M]``; and how many have more, if asked for."""
    own, widest = pairs.own, pairs.own.shape[1]
    not_below, above = torch.empty_like(own), torch.empty_like(own) if strictly else own
    spans = _spans(len(own), scores.shape[1], scores.device)
    # Memory that is there already: new pages cost as much as all else.
    gathered = scores.new_empty(spans[0].stop, scores.shape[1])
    compared = torch.empty_like(gathered)
    for rows in spans:
        size, first = rows.stop - rows.start, widest - int(pairs.number[rows.start])
        gallery = torch.index_select(scores, 0, pairs.rows[rows], out=gathered[:size])
        if widest - first >= _MANY_RELEVANT:
            gallery, thresholds = _sorted(gallery), own[rows, first:].contiguous()
            # Looked for from the left, a score is before all that equal it; from the right, behind them.
            not_below[rows, first:] = gallery.shape[1] - torch.searchsorted(gallery, thresholds)
            if strictly:
                above[rows, first:] = gallery.shape[1] - torch.searchsorted(gallery, thresholds, right=True)
            continue
        for column in range(first, widest):
            # On a CPU, summing floats is several times faster than summing booleans.
            item, each = own[rows, column, None], compared[:size]
            not_below[rows, column] = torch.ge(gallery, item, out=each).sum(dim=1)
            if strictly:
                above[rows, column] = torch.gt(gallery, item, out=each).sum(dim=1)
    return pairs.to_pairs(not_below), pairs.to_pairs(above)


def _sorted(scores: Tensor) -> Tensor:
    """Rows in ascending order; the argument is not to be used again."""
    if scores.device.type != "cpu":
        return scores.sort(dim=1).values
    scores.numpy().sort(axis=1)  # the same memory; ten times faster than torch, which sorts their places as well
    return scores


def _shared_relevance(pairs: _Pairs, relevance: Tensor | None, strictly: bool) -> tuple[Tensor, Tensor]:
    """Sum of ``min(r_i, r_j)`` over the relevant items ``j`` not below ``i`` ``[M]``; over those above, if asked for.

    Relevances take few values, tiers: what two items share is the sum of the steps up to the lower of both, so for each
    step it takes one count of the items that reach it.
    """
    own = pairs.own
    reached_from = torch.searchsorted(own, own)
    passed_from = torch.searchsorted(own, own, right=True) if strictly else reached_from
    if relevance is None:
        reached, passed = ((own.shape[1] - start).to(own.dtype) for start in (reached_from, passed_from))
        return pairs.to_pairs(reached), pairs.to_pairs(passed)
    reached, passed = torch.zeros_like(own), torch.zeros_like(own)
    for step, reaches in _tiers(pairs.to_padded(relevance)):
        # How many of the items from each place on reach the step; none from behind the last.
        behind = torch.nn.functional.pad(reaches.flip(1).cumsum(1).flip(1), (0, 1)).to(own.dtype)
        gain = step * reaches
        reached.addcmul_(gain, behind.gather(1, reached_from))
        if strictly:
            passed.addcmul_(gain, behind.gather(1, passed_from))
    return pairs.to_pairs(reached), pairs.to_pairs(passed)


def _behind_equals(pairs: _Pairs) -> Tensor:
    """How many relevant items of its score each item ``[q, P]`` is before, if they come in reverse of the row."""
    place = torch.arange(pairs.own.shape[1], device=pairs.own.device)
    return (place - torch.searchsorted(pairs.own, pairs.own)).to(pairs.own.dtype)


def _tiers(relevance: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """By how much each next higher relevance of a query is higher ``[q, 1]``, and which items have at least that."""
    lower = torch.zeros_like(relevance[:, :1])
    while True:
        # 0 in queries that have no higher one
        value = relevance.masked_fill(relevance <= lower, torch.inf).amin(dim=1, keepdim=True)
        value = torch.where(value == torch.inf, 0, value)
        if not value.any():
            return
        yield (value - lower).clamp(min=0), (relevance >= value) & (value > 0)
        lower = torch.maximum(lower, value)


def _spans(num_rows: int, num_items: int, device: torch.device) -> list[slice]:
    elements = _CACHED_SCORES.get(device.type, _CACHED_SCORES["cuda"])
    size = max(1, elements // max(1, num_items))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _joined(parts: list[Ranks], scores: Tensor) -> Ranks:
    parts = [part for part in parts if len(part.query)] or parts[:1]
    query, relevance, rank, hrank, weight = (torch.cat(column) for column in zip(*(p[:5] for p in parts), strict=True))
    place = [part.place for part in parts if part.place is not None]
    first = [part.first for part in parts if part.first is not None]
    more = (torch.cat(column) if column else None for column in (place, first))
    return Ranks(query, relevance, rank, hrank, weight, len(scores), *more)


def _none(scores: Tensor) -> Ranks:
    none = scores.new_empty(0)
    return Ranks(none.long(), none, none, none, none, len(scores))
