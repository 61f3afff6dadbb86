"""Smooth recall@k."""

from collections.abc import Sequence

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Sigmoid, SoftRecall, pairwise_ranks


class SmoothRecallLoss(RankLoss):
    r"""Recall@k averaged over several k, with the sigmoid of Smooth-AP as the step.

    Recall counts every relevant item, not whether any was found. The least value is above 0, because an item at rank k
    counts half; see :class:`~dml.ranking.SoftRecall`.

    The smooth variant in Ramzi et al., "Optimization of Rank Losses for Image Retrieval", 2023,
    https://arxiv.org/abs/2309.08250. The authors' code needs classes of one size; this does not.

    Args:
        at_k: Values of k, averaged.
        temperature: :math:`\tau` of the sigmoid that makes the ranks.
        recall_temperature: :math:`\tau_k` of the sigmoid that decides whether a rank is among the first k.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        at_k: Sequence[int] = (1, 2, 4, 8, 16),
        temperature: float = 0.01,
        recall_temperature: float = 1.0,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = Sigmoid(temperature)
        self.recall = SoftRecall(tuple(at_k), recall_temperature)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        ranks = pairwise_ranks(scores, relevance, valid, positive_step=self.step, negative_step=self.step)
        return self.recall(ranks)
