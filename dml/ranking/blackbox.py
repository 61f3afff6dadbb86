"""The black-box ranker: true ranks, with the gradient of a piecewise linear interpolation."""

from typing import Any

import torch
from torch import Tensor

from dml.ranking.blocks import Block, gallery_of, walk
from dml.ranking.exact import exact_ranks
from dml.ranking.once import once_differentiable
from dml.ranking.ranks import Ranks


def blackbox_ranks(scores: Tensor, relevance: Tensor, valid: Tensor, *, interpolation: float) -> Ranks:
    r"""True ranks whose gradient looks at what the ranks become when the scores follow it.

    Ranks are piecewise constant. Rolinek et al., "Optimizing Rank-based Metrics with Blackbox Differentiation", CVPR
    2020, https://arxiv.org/abs/1912.03500, move the scores along the incoming gradient and take the difference:

    .. math:: s' = s + \lambda \, \partial L / \partial r(s), \qquad
        \partial L / \partial s := -\frac{r(s) - r(s')}{\lambda}

    with ranks :math:`r` divided by the size of the gallery. Only relevant items receive a gradient from a measure, so
    only they move, and the difference of the ranks is a count of the items that they pass: no sort is needed.

    Args:
        scores: ``[Q, N]``; gradients flow to it, once.
        relevance: ``[Q, N]``, bool or float in [0, 1].
        valid: ``[Q, N]`` bool.
        interpolation: :math:`\lambda`.

    Returns:
        The ranks of :func:`~dml.ranking.exact.exact_ranks`; ``rank`` has a gradient, ``hrank`` has none.

    Raises:
        ValueError: If ``interpolation`` is not positive.
    """
    if not interpolation > 0:
        raise ValueError(f"interpolation (lambda) is {interpolation}; it must be above 0")
    ranks = exact_ranks(scores, relevance, valid)
    return ranks._replace(rank=_Blackbox.apply(scores, relevance, valid, ranks.rank, interpolation))


class _Blackbox(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, relevance: Tensor, valid: Tensor, rank: Tensor, interpolation: float
    ) -> Tensor:
        ctx.save_for_backward(scores, relevance, valid, rank)
        ctx.interpolation = interpolation
        return rank.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rank: Tensor) -> tuple[Any, ...]:
        scores, relevance, valid, rank = ctx.saved_tensors
        grad = torch.zeros_like(scores)
        first = 0
        for block in walk(relevance, valid):
            pairs = slice(first, first := first + len(block.query))
            # The ranks here are not divided by the size of the gallery: their gradient is that much smaller.
            reach = valid[block.rows].sum(dim=1, keepdim=True, dtype=scores.dtype) * ctx.interpolation
            push = block.to_padded(grad_rank[pairs]) * reach
            gallery = gallery_of(block, scores, valid)
            change = _change_of_ranks(block, gallery, block.to_padded(rank[pairs]), push)
            grad[block.rows] = change.div_(reach)
        return grad, None, None, None, None


def _change_of_ranks(block: Block, gallery: Tensor, rank: Tensor, push: Tensor) -> Tensor:
    """By how much the rank of each item ``[b, N]`` grows when the scores of the relevant ones grow by ``push``."""
    before = gallery.gather(1, block.items)
    after = before + push
    moved = gallery.scatter_add(1, block.items, push)
    change, counted = torch.zeros_like(gallery), torch.empty_like(gallery)
    for column, rows in enumerate(block.num_rows):
        own, above = slice(column, column + 1), counted[:rows]
        change[:rows].add_(torch.le(gallery[:rows], after[:rows, own], out=above))
        change[:rows].sub_(torch.le(gallery[:rows], before[:rows, own], out=above))
        rank[:rows, column] -= torch.ge(moved[:rows], after[:rows, own], out=above).sum(dim=1)
    # A relevant item does not pass itself: its rank was counted, before and after.
    return change.scatter_add_(1, block.items, (-rank - change.gather(1, block.items)) * block.present)
