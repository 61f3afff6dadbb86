"""The binned ranker: ranks from soft histograms of the scores.

The score axis is cut into bins. An item counts in the two bins around its score, by how near it is to each, and every
item of a bin is taken to have the rank of the last one. What is needed of a histogram is how many items are in a bin
or above it, and that is a sum of ramps: one clamp of the scores for each bin, without a tensor ``[Q, N, bins]``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dml.ranking.blocks import spans
from dml.ranking.once import once_differentiable
from dml.ranking.ranks import Ranks


@dataclass(frozen=True)
class Bins:
    """Centres of bins, evenly from ``max_score`` to ``min_score``, both included.

    Args:
        num_bins: Number of centres.
        min_score: Centre of the lowest bin, which also takes every score below.
        max_score: Centre of the highest bin, which also takes every score above.

    Raises:
        ValueError: If ``num_bins`` is below 2, or ``min_score`` is not below ``max_score``.
    """

    num_bins: int
    min_score: float = -1.0
    max_score: float = 1.0

    def __post_init__(self) -> None:
        if self.num_bins < 2:
            raise ValueError(f"num_bins is {self.num_bins}; there must be at least 2 centres")
        if not self.min_score < self.max_score:
            raise ValueError(f"min_score is {self.min_score}, max_score {self.max_score}; min_score must be the lower")

    def position(self, scores: Tensor) -> Tensor:
        """Where scores lie: 0 at the centre of the highest bin, ``num_bins - 1`` at the lowest."""
        return (self.max_score - scores) * ((self.num_bins - 1) / (self.max_score - self.min_score))


# The score of an embedding with itself lies at the upper end, give or take its rounding: it has no slope there, rather
# than one at random.
AT_END = 1e-5


def binned_ranks(scores: Tensor, relevance: Tensor, valid: Tensor, *, bins: Bins) -> Ranks:
    """Rank the bins of a soft histogram instead of the items; its pairs are (query, bin).

    Args:
        scores: ``[Q, N]``; gradients flow to it, once.
        relevance: ``[Q, N]``, bool or float; what is above 0 is relevant.
        valid: ``[Q, N]`` bool.
        bins: Of the scores.

    Returns:
        For each query and bin, highest bin first: ``weight``, the soft number of relevant items in the bin; ``hrank``
        and ``rank``, the soft numbers of relevant items and of all items in the bin or above.
    """
    position = bins.position(scores)
    rank = count_above(position, valid, bins.num_bins)
    hrank = count_above(position, valid & relevance.bool(), bins.num_bins)
    weight = hrank.diff(dim=1, prepend=hrank.new_zeros(len(hrank), 1))
    query = torch.arange(len(scores), device=scores.device).repeat_interleave(bins.num_bins)
    # Above the highest scores bins are empty: nothing is ranked there, and nothing is divided by zero.
    rank, hrank, weight = rank.flatten().add(1e-16), hrank.flatten(), weight.flatten()
    return Ranks(query, torch.ones_like(weight), rank, hrank, weight, len(scores))


def count_above(position: Tensor, counted: Tensor, num_bins: int) -> Tensor:
    r"""Soft number of items in each bin or above it ``[Q, bins]``.

    .. math:: \sum_j \mathrm{clamp}(m + 1 - p_j, 0, 1)

    Args:
        position: ``[Q, N]``, where the items lie: 0 at the centre of the highest bin, ``num_bins - 1`` at the lowest.
        counted: ``[Q, N]`` bool.
        num_bins: Number of bins.
    """
    counts: Tensor = _CountAbove.apply(position, counted, num_bins)
    return counts


class _CountAbove(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, position: Tensor, counted: Tensor, num_bins: int) -> Tensor:
        ctx.save_for_backward(position, counted)
        ctx.num_bins = num_bins
        counts = position.new_empty(len(position), num_bins)
        for rows in spans(*position.shape):
            # What is not counted lies beyond the last bin. What is beyond an end lies at it.
            place = position[rows].clamp(0, num_bins - 1).masked_fill_(~counted[rows], num_bins)
            ramp = torch.empty_like(place)
            for bin_ in range(num_bins):
                torch.sub(bin_ + 1, place, out=ramp).clamp_(0, 1)
                counts[rows, bin_] = ramp.sum(dim=1)
        return counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_counts: Tensor) -> tuple[Any, ...]:
        position, counted = ctx.saved_tensors
        grad = torch.empty_like(position)
        for rows in spans(*position.shape):
            place = position[rows]
            inside = (place > AT_END) & (place < ctx.num_bins - 1 - AT_END) & counted[rows]
            bin_ = place.clamp(0, ctx.num_bins - 1).nan_to_num_(0).long()
            grad[rows] = grad_counts[rows].neg().gather(1, bin_).mul_(inside)
        return grad, None, None
