"""The one data structure of the ranking layer, and the legend of its shapes.

========  ==========================================================================
letter    meaning
========  ==========================================================================
``Q``     queries, the rows of ``scores``
``N``     items of the gallery, the columns of ``scores``
``M``     (query, relevant item) pairs, ordered by query, then by item unless places are expected ones
``B, D``  embeddings of a batch and their dimension
``L``     label levels, finest first
========  ==========================================================================

Everywhere, ``scores [Q, N]`` are similarities (higher is closer), ``relevance [Q, N]`` is bool or a float in [0, 1],
and ``valid [Q, N]`` is False where an item is not in the gallery of the query.
"""

from typing import NamedTuple

from torch import Tensor


class Ranks(NamedTuple):
    """Ranks of the relevant items of ``Q`` queries, one row per (query, relevant item) pair.

    The pairs are flat because queries have different numbers of relevant items; padding them would cost memory and hide
    the mask in every formula.
    """

    query: Tensor  # [M] long, the row of ``scores`` the pair belongs to
    relevance: Tensor  # [M] in (0, 1], 1 for an exact match
    rank: Tensor  # [M] 1 + how many items score above the pair's item
    hrank: Tensor  # [M] relevance-weighted rank; with binary relevance, the rank among relevant items
    weight: Tensor  # [M] 1, except for binned rankers, where it is the soft count of the bin
    num_queries: int
    place: Tensor | None = None  # [M] rank if no two items had the same, irrelevant ones first; None if that is rank
    first: Tensor | None = None  # [M] probability of being the first relevant item; None where the places tell

    def sum_per_query(self, values: Tensor) -> Tensor:
        """Sum ``values`` of shape ``[M]`` over the pairs of each query, to shape ``[Q]``."""
        return values.new_zeros(self.num_queries).index_add(0, self.query, values)
