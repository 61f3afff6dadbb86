"""Smooth-AP."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Sigmoid, average_precision, pairwise_ranks


class SmoothAPLoss(RankLoss):
    r"""Average precision, with a sigmoid as the step that decides who is above whom.

    .. math:: \mathcal{L} = 1 - \frac{1}{B} \sum_q \frac{1}{|P_q|} \sum_{i \in P_q}
        \frac{1 + \sum_{j \in P_q} \sigma((s_j - s_i) / \tau)}{1 + \sum_{j} \sigma((s_j - s_i) / \tau)}

    Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020,
    https://arxiv.org/abs/2007.12163. Equals the authors' code in value and gradient, for any class sizes in any order.

    Args:
        temperature: :math:`\tau`. Lower is closer to AP, but fewer pairs get a gradient.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(self, temperature: float = 0.01, include_self: bool = True, chunk_size: int | None = None) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = Sigmoid(temperature)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        ranks = pairwise_ranks(scores, relevance, valid, positive_step=self.step, negative_step=self.step)
        return average_precision(ranks)
