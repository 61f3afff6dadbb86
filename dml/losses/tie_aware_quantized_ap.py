"""Tie-aware quantised AP."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Bins, binned_ranks, tie_aware_average_precision


class TieAwareQuantizedAPLoss(RankLoss):
    """Average precision of soft histograms of the scores, with the items of a bin in random order.

    :class:`~dml.losses.QuantizedAPLoss` ranks every item of a bin last in it; this takes the mean over their orders.
    The formula is that of :func:`~dml.ranking.tie_aware_average_precision`.

    He et al., "Hashing as Tie-Aware Learning to Rank", CVPR 2018, https://arxiv.org/abs/1705.08562, for binary codes;
    here as ``TAPLoss`` of the code of Revaud et al., ICCV 2019, https://arxiv.org/abs/1906.07589, which it equals in
    value and gradient. Its ``qw`` are the query weights of the call.

    Args:
        num_bins: Centres of bins over the scores, both ends included.
        min_score: Centre of the lowest bin.
        max_score: Centre of the highest bin.
        simplified: Take the bound of the paper that needs no logarithm.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        num_bins: int = 20,
        min_score: float = -1.0,
        max_score: float = 1.0,
        simplified: bool = False,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.bins = Bins(num_bins, min_score, max_score)
        self.simplified = simplified

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        ranks = binned_ranks(scores, relevance, valid, bins=self.bins)
        return tie_aware_average_precision(ranks, simplified=self.simplified)
