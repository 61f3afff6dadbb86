"""The pairwise ranker: every relevant item against the gallery, with any step.

Autograd would keep several ``[M, N]`` tensors for the backward pass. This function keeps the scores, and recomputes the
slopes a block of queries at a time, so its memory is the scores and their gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dml.ranking.blocks import Block, walk
from dml.ranking.ranks import Ranks
from dml.ranking.steps import Step


def pairwise_ranks(
    scores: Tensor, relevance: Tensor, valid: Tensor, *, positive_step: Step, negative_step: Step
) -> Ranks:
    r"""Rank the relevant items of each query with a (differentiable) step.

    .. math:: \mathrm{rank}_i = 1 + \sum_{j \ne i} H(s_j - s_i), \qquad
        \mathrm{hrank}_i = r_i + \sum_{j \ne i} \min(r_i, r_j) H^+(s_j - s_i)

    where :math:`H` is the positive step :math:`H^+` if :math:`r_j \ge r_i`, else the negative step.

    Args:
        scores: ``[Q, N]``; gradients flow to it, once.
        relevance: ``[Q, N]``, bool or float in [0, 1].
        valid: ``[Q, N]`` bool.
        positive_step: Applied between a relevant item and the items at least as relevant.
        negative_step: Applied between a relevant item and the less relevant ones.

    Returns:
        Ranks of the valid items with relevance above 0.
    """
    ranks: tuple[Tensor, Tensor, Tensor, Tensor] = _PairwiseRanks.apply(
        scores, relevance, valid, positive_step, negative_step
    )
    query, relevance, rank, hrank = ranks
    return Ranks(query, relevance, rank, hrank, torch.ones_like(rank), len(scores))


class _PairwiseRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, relevance: Tensor, valid: Tensor, positive_step: Step, negative_step: Step
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(scores, relevance, valid)
        ctx.steps = positive_step, negative_step
        pairs = [
            _ranks_of_block(block, scores, relevance, valid, positive_step, negative_step)
            for block in walk(relevance, valid)
        ]
        none = scores.new_empty(0)
        pairs.append((none.long(), none, none, none))
        query, own, rank, hrank = (torch.cat(column) for column in zip(*pairs, strict=True))
        ctx.mark_non_differentiable(query, own)
        return query, own, rank, hrank

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _query: Tensor, _own: Tensor, grad_rank: Tensor, grad_hrank: Tensor) -> tuple[Any, ...]:
        scores, relevance, valid = ctx.saved_tensors
        grad = torch.zeros_like(scores)
        first = 0
        for block in walk(relevance, valid):
            pairs = slice(first, first := first + len(block.query))
            incoming = block.to_padded(grad_rank[pairs]), block.to_padded(grad_hrank[pairs])
            grad[block.rows] = _gradient_of_block(block, scores, relevance, valid, ctx.steps, incoming)
        return grad, None, None, None, None


class _Layers:
    """What both passes need of a block: its scores, and those of its relevant items."""

    def __init__(self, block: Block, scores: Tensor, relevance: Tensor, valid: Tensor) -> None:
        # An item that is not in the gallery is infinitely far below: every step is 0 there.
        self.scores = scores[block.rows].masked_fill_(~valid[block.rows], -torch.inf)  # [b, N]
        own = self.scores.gather(1, block.items)
        self.relevant = own.masked_fill(~block.present, -torch.inf)  # [b, P]
        self.relevance = relevance[block.rows].gather(1, block.items).to(scores.dtype) * block.present  # [b, P]
        self.own = own
        self.buffer = torch.empty_like(self.scores)

    def differences(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """Scores of all items ``[rows, N]`` and of the relevant ones ``[rows, P]`` less that of the layer's item."""
        own = self.own[:rows, layer : layer + 1]
        return torch.sub(self.scores[:rows], own, out=self.buffer[:rows]), self.relevant[:rows] - own

    def weights(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """``min(r_i, r_j)`` and ``r_j >= r_i`` over the relevant items ``[rows, P]``, 0 for the item itself."""
        own, others = self.relevance[:rows, layer : layer + 1], self.relevance[:rows]
        shared, as_relevant = torch.minimum(own, others), (others >= own).to(others.dtype)
        shared[:, layer] = 0
        as_relevant[:, layer] = 0
        return shared, as_relevant


def _ranks_of_block(
    block: Block, scores: Tensor, relevance: Tensor, valid: Tensor, positive: Step, negative: Step
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layers = _Layers(block, scores, relevance, valid)
    rank, hrank = torch.ones_like(layers.own), layers.relevance.clone()
    itself = negative(scores.new_zeros(1))  # the item is not above itself, but the sum below counts it
    for k, rows in enumerate(block.layers):
        difference, among_relevant = layers.differences(k, rows)
        shared, as_relevant = layers.weights(k, rows)
        above = positive(among_relevant)
        rank[:rows, k] += negative(difference).sum(dim=1) - itself
        hrank[:rows, k] += (above * shared).sum(dim=1)
        if positive != negative:
            rank[:rows, k] += ((above - negative(among_relevant)) * as_relevant).sum(dim=1)
    return block.query, block.to_pairs(layers.relevance), block.to_pairs(rank), block.to_pairs(hrank)


def _gradient_of_block(
    block: Block,
    scores: Tensor,
    relevance: Tensor,
    valid: Tensor,
    steps: tuple[Step, Step],
    incoming: tuple[Tensor, Tensor],
) -> Tensor:
    positive, negative = steps
    grad_rank, grad_hrank = incoming  # [b, P]
    layers = _Layers(block, scores, relevance, valid)
    grad, grad_relevant = torch.zeros_like(layers.scores), torch.zeros_like(layers.own)
    for k, rows in enumerate(block.layers):
        difference, among_relevant = layers.differences(k, rows)
        shared, as_relevant = layers.weights(k, rows)
        by_rank, by_hrank = grad_rank[:rows, k : k + 1], grad_hrank[:rows, k : k + 1]
        slope = negative.slope(difference).mul_(by_rank)
        grad[:rows] += slope
        pull = positive.slope(among_relevant)
        push = pull * shared * by_hrank
        if positive != negative:
            push += (pull - negative.slope(among_relevant)) * as_relevant * by_rank
        grad_relevant[:rows] += push
        # Raising the item itself lowers every difference. Its own term is in both sums and cancels.
        grad_relevant[:rows, k] -= slope.sum(dim=1) + push.sum(dim=1)
    return grad.scatter_add_(1, block.items, grad_relevant * block.present)
