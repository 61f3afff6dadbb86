"""The pairwise ranker: every relevant item against the gallery, with any step.

Autograd would keep several ``[M, N]`` tensors for the backward pass. This function keeps the scores, and recomputes the
slopes a block of queries at a time, so its memory is the scores and their gradient. On a GPU, the kernels of
:mod:`dml.ranking.fused` do the same for the steps that they know.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dml.ranking.blocks import Block, gallery_of, walk
from dml.ranking.once import once_differentiable
from dml.ranking.ranks import Ranks
from dml.ranking.steps import Step


def pairwise_ranks(
    scores: Tensor,
    relevance: Tensor,
    valid: Tensor,
    *,
    positive_step: Step,
    negative_step: Step,
    levels: Tensor | None = None,
) -> Ranks:
    r"""Rank the relevant items of each query with a (differentiable) step.

    .. math:: \mathrm{rank}_i = 1 + \sum_{j \ne i} H(s_j - s_i), \qquad
        \mathrm{hrank}_i = r_i + \sum_{j \ne i} \min(r_i, r_j) H^+(s_j - s_i)

    where :math:`H` is the positive step :math:`H^+` if :math:`l_j \ge l_i`, else the negative step.

    Args:
        scores: ``[Q, N]``; gradients flow to it, once.
        relevance: ``[Q, N]``, :math:`r`, bool or float, not negative.
        valid: ``[Q, N]`` bool.
        positive_step: Applied between a relevant item and the items at least as relevant.
        negative_step: Applied between a relevant item and the less relevant ones.
        levels: ``[Q, N]``, :math:`l`, what "at least as relevant" compares; by default the relevance itself. It is
            positive where the relevance is, and only there.

    Returns:
        Ranks of the valid items with relevance above 0.
    """
    if _has_kernels(scores):
        from dml.ranking.fused import fused_ranks, supports  # elsewhere Triton may not be installed

        if supports(positive_step, negative_step):
            return fused_ranks(
                scores, relevance, valid, positive_step=positive_step, negative_step=negative_step, levels=levels
            )
    ranks: tuple[Tensor, Tensor, Tensor, Tensor] = _PairwiseRanks.apply(
        scores, relevance, valid, relevance if levels is None else levels, positive_step, negative_step
    )
    query, relevance, rank, hrank = ranks
    return Ranks(query, relevance, rank, hrank, torch.ones_like(rank), len(scores))


def _has_kernels(scores: Tensor) -> bool:
    return scores.is_cuda and scores.dtype in (torch.float32, torch.float64) and find_spec("triton") is not None


class _PairwiseRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        relevance: Tensor,
        valid: Tensor,
        levels: Tensor,
        positive_step: Step,
        negative_step: Step,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(scores, relevance, valid, levels)
        ctx.steps = positive_step, negative_step
        ctx.blocks = list(walk(relevance, valid))  # linear in the pairs: worth keeping for the backward
        pairs = [
            _ranks_of_block(block, _Comparisons(block, scores, relevance, valid, levels), positive_step, negative_step)
            for block in ctx.blocks
        ]
        none = scores.new_empty(0)
        pairs.append((none.long(), none, none, none))
        query, own, rank, hrank = (torch.cat(column) for column in zip(*pairs, strict=True))
        ctx.mark_non_differentiable(query, own)
        return query, own, rank, hrank

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _query: Tensor, _own: Tensor, grad_rank: Tensor, grad_hrank: Tensor) -> tuple[Any, ...]:
        grad = torch.zeros_like(ctx.saved_tensors[0])
        first = 0
        for block in ctx.blocks:
            pairs = slice(first, first := first + len(block.query))
            incoming = block.to_padded(grad_rank[pairs]), block.to_padded(grad_hrank[pairs])
            compared = _Comparisons(block, *ctx.saved_tensors)
            if isinstance(block.rows, slice):
                _add_gradient(grad[block.rows], block, compared, ctx.steps, incoming)
            else:
                grad[block.rows] = _add_gradient(grad[block.rows], block, compared, ctx.steps, incoming)
        return grad, None, None, None, None, None


class _Comparisons:
    """What both passes need of a block: its scores, and those of its relevant items."""

    def __init__(self, block: Block, scores: Tensor, relevance: Tensor, valid: Tensor, levels: Tensor) -> None:
        self.scores = gallery_of(block, scores, valid)  # [b, N]
        self.own = self.scores.gather(1, block.items).masked_fill_(~block.present, 0)  # [b, P]
        self.relevant = self.own.masked_fill(~block.present, -torch.inf)  # [b, P]
        self.relevance = relevance[block.rows].gather(1, block.items).to(scores.dtype) * block.present  # [b, P]
        self.level = self.relevance if levels is relevance else levels[block.rows].gather(1, block.items)  # [b, P]
        self.buffer = torch.empty_like(self.scores)

    def with_gallery(self, rows: int, items: slice) -> Tensor:
        """Scores of all items ``[r, p, N]`` less those of a slab's."""
        own = self.own[:rows, items].unsqueeze(2)
        # Most slabs are one item wide; theirs fit the buffer.
        out = self.buffer[:rows].unsqueeze(1) if own.shape[1] == 1 else None
        return torch.sub(self.scores[:rows].unsqueeze(1), own, out=out)

    def with_relevant(self, rows: int, items: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the relevant items ``[r, p, P]`` less those of a slab's; their ``min(r_i, r_j)``; ``l_j >= l_i``.

        The last two are 0 for the item itself.
        """
        difference = self.relevant[:rows].unsqueeze(1) - self.own[:rows, items].unsqueeze(2)
        shared = torch.minimum(self.relevance[:rows].unsqueeze(1), self.relevance[:rows, items].unsqueeze(2))
        as_relevant = torch.empty_like(shared)
        torch.ge(self.level[:rows].unsqueeze(1), self.level[:rows, items].unsqueeze(2), out=as_relevant)
        for weight in (shared, as_relevant):
            weight.diagonal(items.start, dim1=1, dim2=2).zero_()
        return difference, shared, as_relevant


def _ranks_of_block(
    block: Block, compared: _Comparisons, positive: Step, negative: Step
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The item is not above itself, but the sum over the gallery counts it.
    rank = torch.ones_like(compared.own).sub_(negative(compared.own.new_zeros(1)))
    hrank = compared.relevance.clone()
    for rows, items in block.slabs(compared.scores.shape[1]):
        rank[:rows, items].add_(negative(compared.with_gallery(rows, items)).sum(dim=2))
    for rows, items in block.slabs(compared.own.shape[1]):
        difference, shared, as_relevant = compared.with_relevant(rows, items)
        above = positive(difference)
        hrank[:rows, items].add_((above * shared).sum(dim=2))
        if positive != negative:
            rank[:rows, items].add_((above - negative(difference)).mul_(as_relevant).sum(dim=2))
    return block.query, block.to_pairs(compared.relevance), block.to_pairs(rank), block.to_pairs(hrank)


def _add_gradient(
    grad: Tensor, block: Block, compared: _Comparisons, steps: tuple[Step, Step], incoming: tuple[Tensor, Tensor]
) -> Tensor:
    """Add to ``grad [b, N]`` what the ranks of a block, whose gradients come in, want of its scores."""
    positive, negative = steps
    grad_rank, grad_hrank = incoming  # [b, P]
    grad_own = torch.zeros_like(compared.own)
    # Raising an item lowers its differences to all others. Its own term is in both sums and cancels.
    for rows, items in block.slabs(compared.scores.shape[1]):
        slope, by_rank = negative.slope(compared.with_gallery(rows, items)), grad_rank[:rows, items]
        for item in range(by_rank.shape[1]):  # a small batched product would cost three times as much
            grad[:rows].addcmul_(slope[:, item], by_rank[:, item, None])
        grad_own[:rows, items].sub_(slope.sum(dim=2).mul_(by_rank))
    for rows, items in block.slabs(compared.own.shape[1]):
        difference, shared, as_relevant = compared.with_relevant(rows, items)
        pull = positive.slope(difference)
        push = shared.mul_(pull).mul_(grad_hrank[:rows, items].unsqueeze(2))
        if positive != negative:
            push += (pull - negative.slope(difference)) * as_relevant * grad_rank[:rows, items].unsqueeze(2)
        grad_own[:rows].add_(push.sum(dim=1))
        grad_own[:rows, items].sub_(push.sum(dim=2))
    return grad.scatter_add_(1, block.items, grad_own.mul_(block.present))
