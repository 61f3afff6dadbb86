"""SupRecall."""

from collections.abc import Sequence

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import SoftRecall, UpperBound, heaviside, pairwise_ranks


class SupRecallLoss(RankLoss):
    r"""Recall@k averaged over several k, on an upper bound of the ranks.

    Recall counts every relevant item, not whether any was found. The least value is above 0, because an item at rank k
    counts half; see :class:`~dml.ranking.SoftRecall`. Irrelevant items above a relevant one are counted by
    :class:`~dml.ranking.UpperBound`, relevant ones exactly and without a gradient.

    Ramzi et al., "Optimization of Rank Losses for Image Retrieval" (SupRank), 2023, https://arxiv.org/abs/2309.08250.
    The authors' code needs classes of one size; this equals it there in value and gradient.

    Args:
        at_k: Values of k, averaged.
        temperature: :math:`\tau`, of the sigmoid below 0.
        slope: :math:`\rho`, the slope beyond ``margin``.
        margin: :math:`\delta`.
        jump: What is added to the sigmoid above 0 (``start`` in the authors' code).
        offset: Value of the step just beyond ``margin``. None makes it continuous there. The authors' configurations
            have 1.44 for Stanford Online Products and, with a jump of 0, 1.0 for iNaturalist.
        recall_temperature: :math:`\tau_k` of the sigmoid that decides whether a rank is among the first k.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        at_k: Sequence[int] = (1, 2, 4, 8, 16),
        temperature: float = 0.01,
        slope: float = 100.0,
        margin: float = 0.05,
        jump: float = 0.5,
        offset: float | None = None,
        recall_temperature: float = 1.0,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = UpperBound(temperature, slope, margin, jump, offset)
        self.recall = SoftRecall(tuple(at_k), recall_temperature)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        ranks = pairwise_ranks(scores, relevance, valid, positive_step=heaviside, negative_step=self.step)
        return self.recall(ranks)
