"""SupHAP."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import (
    UpperBound,
    average_precision,
    heaviside,
    pairwise_ranks,
    shared_levels,
    split_over_population,
)


class SupHAPLoss(RankLoss):
    r"""A smooth upper bound of 1 - hierarchical AP over all label levels.

    A mistake costs less if the item above shares a coarser level with the query. Less relevant items above an item are
    counted by :class:`~dml.ranking.UpperBound`, others exactly and without a gradient. With one level it is SupAP.

    Ramzi et al., "Hierarchical Average Precision Training for Pertinent Image Retrieval" (HAPPIER), ECCV 2022,
    https://arxiv.org/abs/2207.04873. Equals the authors' code in value and gradient.

    Args:
        temperature: :math:`\tau`, of the sigmoid below 0.
        slope: :math:`\rho`, the slope beyond ``margin``.
        margin: :math:`\delta`.
        jump: What is added to the sigmoid above 0 (``start`` in the authors' code).
        offset: Value of the step just beyond ``margin``. None makes it continuous there. The authors' configurations
            have 1.44 for Stanford Online Products and, with a jump of 0, 1.0 for iNaturalist.
        level_exponent: :math:`\alpha`, how steeply relevance grows with the levels that are shared; see
            :func:`~dml.ranking.split_over_population`.
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
        level_exponent: float = 1.0,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = UpperBound(temperature, slope, margin, jump, offset)
        self.level_exponent = level_exponent

    def relevance(self, labels: Tensor, ref_labels: Tensor) -> Tensor:
        return shared_levels(labels, ref_labels)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        gains = split_over_population(relevance, valid, exponent=self.level_exponent)
        ranks = pairwise_ranks(scores, gains, valid, levels=relevance, positive_step=heaviside, negative_step=self.step)
        return average_precision(ranks)
