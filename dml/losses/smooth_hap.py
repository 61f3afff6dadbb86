"""Smooth hierarchical average precision."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Sigmoid, average_precision, pairwise_ranks, shared_levels, split_over_population


class SmoothHAPLoss(RankLoss):
    r"""Hierarchical average precision over all label levels, with the sigmoid of Smooth-AP as the step.

    A mistake costs less if the item above shares a coarser level with the query. With one level it is Smooth-AP.

    The smooth variant in Ramzi et al., "Optimization of Rank Losses for Image Retrieval", 2023,
    https://arxiv.org/abs/2309.08250; relevance as in HAPPIER, :func:`~dml.ranking.split_over_population`. Equals the
    authors' code in value and gradient.

    Args:
        temperature: :math:`\tau` of the sigmoid.
        level_exponent: :math:`\alpha`, how steeply relevance grows with the levels that are shared.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        level_exponent: float = 1.0,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = Sigmoid(temperature)
        self.level_exponent = level_exponent

    def relevance(self, labels: Tensor, ref_labels: Tensor) -> Tensor:
        return shared_levels(labels, ref_labels)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        gains = split_over_population(relevance, valid, exponent=self.level_exponent)
        ranks = pairwise_ranks(scores, gains, valid, positive_step=self.step, negative_step=self.step)
        return average_precision(ranks)
