"""Smooth nDCG."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Sigmoid, exponential_gain, ndcg, pairwise_ranks, shared_levels


class SmoothNDCGLoss(RankLoss):
    r"""Normalised discounted cumulative gain over all label levels, with the sigmoid of Smooth-AP as the step.

    The gain of an item that shares :math:`l` levels with the query is :math:`2^l - 1`.

    The smooth variant in Ramzi et al., "Optimization of Rank Losses for Image Retrieval", 2023,
    https://arxiv.org/abs/2309.08250. Equals the authors' code in value and gradient.

    Args:
        temperature: :math:`\tau` of the sigmoid.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(self, temperature: float = 0.01, include_self: bool = True, chunk_size: int | None = None) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = Sigmoid(temperature)

    def relevance(self, labels: Tensor, ref_labels: Tensor) -> Tensor:
        return exponential_gain(shared_levels(labels, ref_labels))

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        return ndcg(pairwise_ranks(scores, relevance, valid, positive_step=self.step, negative_step=self.step))
