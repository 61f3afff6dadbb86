"""The ranker for evaluation: true ranks, by counting."""

import torch
from torch import Tensor

from dml.ranking.blocks import Block, gallery_of, walk
from dml.ranking.ranks import Ranks


def exact_ranks(scores: Tensor, relevance: Tensor, valid: Tensor) -> Ranks:
    """Rank the relevant items of each query. Ties count against the item. No gradient.

    Counting the items above each relevant one beats sorting the gallery: there are few relevant items, and a comparison
    costs less than a place in a sort.

    Args:
        scores: ``[Q, N]``.
        relevance: ``[Q, N]``, bool or float in [0, 1].
        valid: ``[Q, N]`` bool.

    Returns:
        Ranks of the valid items with relevance above 0.
    """
    with torch.no_grad():
        pairs = [_count(block, scores, relevance, valid) for block in walk(relevance, valid)]
        none = scores.new_empty(0)
        pairs.append((none.long(), none, none, none))
        query, own, rank, hrank = (torch.cat(column) for column in zip(*pairs, strict=True))
        return Ranks(query, own, rank, hrank, torch.ones_like(rank), len(scores))


def _count(block: Block, scores: Tensor, relevance: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gallery = gallery_of(block, scores, valid)  # [b, N]
    own = gallery.gather(1, block.items)
    weight = relevance[block.rows].gather(1, block.items).to(scores.dtype) * block.present
    above = torch.empty_like(gallery)  # on a CPU, summing floats is several times faster than summing booleans
    rank, hrank = torch.empty_like(own), torch.empty_like(own)
    for rows, items in block.slabs(gallery.shape[1]):
        item = own[:rows, items].unsqueeze(2)
        slab = above[:rows].unsqueeze(1) if item.shape[1] == 1 else above.new_empty(rows, item.shape[1], above.shape[1])
        # The item is not below itself: it counts once in both sums, as the definition of the ranks has it.
        rank[:rows, items] = torch.ge(gallery[:rows].unsqueeze(1), item, out=slab).sum(dim=2)
    for rows, items in block.slabs(own.shape[1]):
        shared = torch.minimum(weight[:rows, items].unsqueeze(2), weight[:rows].unsqueeze(1))
        not_below = own[:rows].unsqueeze(1) >= own[:rows, items].unsqueeze(2)
        hrank[:rows, items] = (shared * not_below).sum(dim=2)
    return block.query, block.to_pairs(weight), block.to_pairs(rank), block.to_pairs(hrank)
