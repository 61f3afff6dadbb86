"""The items of a gallery that are nearest to each query."""

from typing import NamedTuple

import torch
from torch import Tensor

from dml.ranking.scores import score_blocks


class Neighbours(NamedTuple):
    """The ``k`` nearest items of each query, nearest first."""

    similarity: Tensor  # [Q, k], minus infinity where the gallery has no more items
    item: Tensor  # [Q, k]
    lowest: Tensor  # [Q] similarity of the farthest item


@torch.no_grad()
def nearest(queries: Tensor, gallery: Tensor, k: int, own: Tensor) -> Neighbours:
    """Find them, of inner products, by comparing all with all, a block of queries at a time.

    Of items as near as each other, the first of the gallery comes first: which ones are found does not depend on the
    device or on blocks.

    Args:
        queries: ``[Q, D]``.
        gallery: ``[N, D]``.
        k: How many; all there are, in a gallery of fewer.
        own: ``[Q]``, the row of the gallery that is no neighbour of the query, -1 if there is none.
    """
    k = min(k, len(gallery))
    found = Neighbours(
        queries.new_empty(len(queries), k), own.new_empty(len(queries), k), queries.new_full((len(queries),), torch.inf)
    )
    if len(gallery) == 0:
        return found
    for rows, scores in score_blocks(queries, [gallery]):
        found.lowest[rows] = scores.amin(dim=1)
        among = own[rows].ge(0).nonzero().squeeze(1)
        scores[among, own[rows][among]] = -torch.inf
        found.similarity[rows], found.item[rows] = _first(scores, k)
    return found


def _first(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The highest scores of each row, and the first of equal ones."""
    highest, item = scores.topk(k, dim=1)
    tied = (scores >= highest[:, -1:]).sum(dim=1) > k
    if tied.any():  # topk may have taken any of those that share the last place
        highest[tied], item[tied] = (part[:, :k] for part in scores[tied].sort(dim=1, descending=True, stable=True))
    item, order = item.sort(dim=1)
    highest, again = highest.gather(1, order).sort(dim=1, descending=True, stable=True)
    return highest, item.gather(1, again)
