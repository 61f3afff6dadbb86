"""FastAP."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Bins, average_precision, binned_ranks


class FastAPLoss(RankLoss):
    """Average precision of soft histograms of the distances to the query, which is not in its own gallery.

    Squared distances of unit vectors lie in [0, 4], scores in [1, -1]: the bins are those of the scores.

    Cakir et al., "Deep Metric Learning to Rank", CVPR 2019,
    https://openaccess.thecvf.com/content_CVPR_2019/html/Cakir_Deep_Metric_Learning_to_Rank_CVPR_2019_paper.html. Equals
    the implementation in pytorch-metric-learning in value and gradient.

    Args:
        num_bins: Width of the distances over that of a bin; there is one centre more.
        include_self: Whether the query stays in its own gallery; as published it does not. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(self, num_bins: int = 10, include_self: bool = False, chunk_size: int | None = None) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        if num_bins < 1:
            raise ValueError(f"num_bins is {num_bins}; it must be at least 1")
        self.bins = Bins(num_bins + 1)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        return average_precision(binned_ranks(scores, relevance, valid, bins=self.bins))
