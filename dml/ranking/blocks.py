"""Walk the relevant items of many queries, a cache-sized block of queries at a time.

Rankers compare each relevant item with the whole gallery. Taken one by one that is slow, all at once it needs an
``[M, N]`` tensor. So a block holds the queries sorted by how many relevant items they have; its layer ``k`` compares
the ``k``-th relevant item of each query that has one, which is a prefix of the rows: every operation works on views,
for any mixture of class sizes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Scores of a block stay in the cache of a core (1 MiB of float32), where a pass over them costs next to nothing.
BLOCK_ELEMENTS = 2**18


class Block(NamedTuple):
    """``b`` queries with at most ``P`` relevant items each; ``m`` of the ``M`` pairs."""

    rows: Tensor  # [b] rows of ``scores``, those with most relevant items first
    items: Tensor  # [b, P] the relevant items of each row, padded with item 0
    present: Tensor  # [b, P] bool, False where padded
    layers: list[int]  # [P] how many rows have more than k relevant items
    pair: Tensor  # [b, P] number of the pair among those of the block
    query: Tensor  # [m] row of ``scores`` of each pair, in order
    item: Tensor  # [m] item of each pair

    def to_pairs(self, padded: Tensor) -> Tensor:
        """From one value per padded item ``[b, P]`` to one per pair ``[m]``."""
        return padded.new_empty(len(self.query)).index_put_((self.pair[self.present],), padded[self.present])

    def to_padded(self, values: Tensor) -> Tensor:
        """From one value per pair ``[m]`` to one per item ``[b, P]``, 0 where padded."""
        return values[self.pair] * self.present


def walk(relevance: Tensor, valid: Tensor) -> Iterator[Block]:
    """Blocks of the queries of ``relevance [Q, N]`` that have a valid relevant item, in order of the pairs."""
    for start, stop in spans(*relevance.shape):
        relevant = relevance[start:stop].bool() & valid[start:stop]
        query, item = relevant.nonzero(as_tuple=True)
        if len(query) > 0:
            yield _block(query, item, start, stop - start)


def spans(num_queries: int, num_items: int) -> Iterator[tuple[int, int]]:
    """First and last-but-one query of each block."""
    size = max(1, BLOCK_ELEMENTS // max(1, num_items))
    for start in range(0, num_queries, size):
        yield start, min(start + size, num_queries)


def _block(query: Tensor, item: Tensor, first_row: int, num_rows: int) -> Block:
    count = torch.bincount(query, minlength=num_rows)
    first_pair = count.cumsum(0) - count
    count, order = count.sort(descending=True, stable=True)
    position = torch.arange(int(count[0]), device=count.device)
    present = position < count.unsqueeze(1)
    layers = present.sum(dim=0).tolist()
    pair = (first_pair[order].unsqueeze(1) + position) * present
    answerable = slice(0, layers[0])  # rows without a relevant item come last; they have no pair
    return Block(
        rows=first_row + order[answerable],
        items=(item[pair] * present)[answerable],
        present=present[answerable],
        layers=layers,
        pair=pair[answerable],
        query=first_row + query,
        item=item,
    )
