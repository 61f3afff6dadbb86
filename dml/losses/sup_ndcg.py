"""SupNDCG."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import UpperBound, exponential_gain, heaviside, ndcg, pairwise_ranks, shared_levels


class SupNDCGLoss(RankLoss):
    r"""A smooth upper bound of 1 - nDCG over all label levels.

    The gain of an item that shares :math:`l` levels with the query is :math:`2^l - 1`. Less relevant items above an
    item are counted by :class:`~dml.ranking.UpperBound`, others exactly and without a gradient.

    Ramzi et al., "Optimization of Rank Losses for Image Retrieval" (SupRank), 2023, https://arxiv.org/abs/2309.08250.
    Equals the authors' code in value and gradient.

    Args:
        temperature: :math:`\tau`, of the sigmoid below 0.
        slope: :math:`\rho`, the slope beyond ``margin``.
        margin: :math:`\delta`.
        jump: What is added to the sigmoid above 0 (``start`` in the authors' code).
        offset: Value of the step just beyond ``margin``. None makes it continuous there. The authors' configurations
            have 1.44 for Stanford Online Products and, with a jump of 0, 1.0 for iNaturalist.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        slope: float = 100.0,
        margin: float = 0.05,
        jump: float = 0.5,
        offset: float | None = None,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = UpperBound(temperature, slope, margin, jump, offset)

    def relevance(self, labels: Tensor, ref_labels: Tensor) -> Tensor:
        return exponential_gain(shared_levels(labels, ref_labels))

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        return ndcg(pairwise_ranks(scores, relevance, valid, positive_step=heaviside, negative_step=self.step))
