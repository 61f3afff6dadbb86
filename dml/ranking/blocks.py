"""Walk the relevant items of many queries, a cache-sized block of queries at a time.

Rankers compare each relevant item with the whole gallery. Taken one by one that is slow, all at once it needs an
``[M, N]`` tensor. So a block holds the queries sorted by how many relevant items they have, and is walked in slabs: the
next few relevant items of each query that has so many, which are a prefix of the rows. Every operation works on views,
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

    rows: Tensor | slice  # [b] rows of ``scores``, those with most relevant items first
    items: Tensor  # [b, P] the relevant items of each row, padded with item 0
    present: Tensor  # [b, P] bool, False where padded
    num_rows: list[int]  # [P] how many rows have more than k relevant items
    pair: Tensor  # [b, P] number of the pair among those of the block
    query: Tensor  # [m] row of ``scores`` of each pair, in order
    item: Tensor  # [m] item of each pair

    def slabs(self, num_columns: int) -> Iterator[tuple[int, slice]]:
        """How many rows have an item in which columns of ``items``; each is compared with ``num_columns`` others."""
        width = max(1, BLOCK_ELEMENTS // (self.num_rows[0] * num_columns))
        for first in range(0, len(self.num_rows), width):
            yield self.num_rows[first], slice(first, first + width)

    def to_pairs(self, padded: Tensor) -> Tensor:
        """From one value per padded item ``[b, P]`` to one per pair ``[m]``."""
        return padded.new_empty(len(self.query)).index_put_((self.pair[self.present],), padded[self.present])

    def to_padded(self, values: Tensor) -> Tensor:
        """From one value per pair ``[m]`` to one per item ``[b, P]``, 0 where padded."""
        return values[self.pair] * self.present


def walk(relevance: Tensor, valid: Tensor) -> Iterator[Block]:
    """Blocks of the queries of ``relevance [Q, N]`` that have a valid relevant item, in order of the pairs."""
    for rows in spans(*relevance.shape):
        query, item = (relevance[rows].bool() & valid[rows]).nonzero(as_tuple=True)
        if len(query) > 0:
            yield _block(query, item, rows)


def spans(num_queries: int, num_items: int) -> list[slice]:
    """Rows of ``[Q, N]`` that make a block."""
    size = max(1, BLOCK_ELEMENTS // max(1, num_items))
    return [slice(start, min(start + size, num_queries)) for start in range(0, num_queries, size)]


def gallery_of(block: Block, scores: Tensor, valid: Tensor) -> Tensor:
    """Scores ``[b, N]`` of the rows of a block; an item that is not in the gallery is infinitely far below."""
    gallery, valid = scores[block.rows], valid[block.rows]
    # Booleans are slow to reduce, bytes are not.
    return gallery if valid.view(torch.uint8).amin() else gallery.masked_fill(~valid, -torch.inf)


def _block(query: Tensor, item: Tensor, span: slice) -> Block:
    count = torch.bincount(query, minlength=span.stop - span.start)
    first_pair = count.cumsum(0) - count
    smallest, largest = count.aminmax()
    # Queries with equally many relevant items, as a balanced batch has, are taken as they come: rows are a view.
    rows: Tensor | slice = span
    if smallest < largest:
        count, order = count.sort(descending=True, stable=True)
        order = order[: count.count_nonzero()]  # the rest has no pair
        count, first_pair, rows = count[: len(order)], first_pair[order], span.start + order
    position = torch.arange(int(largest), device=count.device)
    present = position < count.unsqueeze(1)
    pair = (first_pair.unsqueeze(1) + position) * present
    return Block(
        rows=rows,
        items=item[pair] * present,
        present=present,
        num_rows=present.sum(dim=0).tolist(),
        pair=pair,
        query=span.start + query,
        item=item,
    )
