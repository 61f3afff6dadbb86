"""Quantised AP."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Bins, average_precision, binned_ranks


class QuantizedAPLoss(RankLoss):
    r"""Average precision of soft histograms of the scores, over all classes of a batch of thousands.

    .. math:: \mathcal{L} = 1 - \frac{1}{B} \sum_q \sum_m
        \frac{H^+_m}{H_m} \frac{h^+_m}{\sum_{m'} h^+_{m'}}

    with :math:`h_m` the soft number of items in bin m, :math:`H_m` in the bins from the highest to m, and + for
    relevant items.

    He et al., "Local Descriptors Optimized for Average Precision", CVPR 2018; Revaud et al., "Learning with Average
    Precision: Training Image Retrieval with a Listwise Loss", ICCV 2019, https://arxiv.org/abs/1906.07589. Equals
    ``APLoss`` of the authors' code in value and gradient; its ``qw`` are the query weights of the call.

    Args:
        num_bins: Centres of bins over the scores, both ends included. The authors have 25 over [0, 1], where all
            negative scores share one bin and no gradient, and 20 over [-1, 1] in later work.
        min_score: Centre of the lowest bin.
        max_score: Centre of the highest bin.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        num_bins: int = 20,
        min_score: float = -1.0,
        max_score: float = 1.0,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.bins = Bins(num_bins, min_score, max_score)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        return average_precision(binned_ranks(scores, relevance, valid, bins=self.bins))
