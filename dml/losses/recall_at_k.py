"""Recall@k."""

from collections.abc import Sequence

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import Sigmoid, SoftRecall, pairwise_ranks


class RecallAtKLoss(RankLoss):
    r"""Recall@k averaged over several k, made for batches of thousands.

    .. math:: \mathcal{L} = 1 - \frac{1}{|K|} \sum_{k \in K}
        \frac{\min(k, \sum_{i \in P_q} \sigma((k - r_i) / \tau_k))}{\min(k, |P_q|)}, \qquad
        r_i = 1 + \sum_{j \ne i} \sigma((s_j - s_i) / \tau)

    Patel et al., "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022,
    https://arxiv.org/abs/2108.11179. The similarity mixup is :class:`~dml.losses.SiMix`. The authors' code lets the
    query take the first rank of its own gallery without being retrieved, which shifts every rank by one against k;
    ``include_self`` reproduces it, in value and gradient.

    Args:
        at_k: Values of k, averaged.
        temperature: :math:`\tau` of the sigmoid that makes the ranks.
        recall_temperature: :math:`\tau_k` of the sigmoid that decides whether a rank is among the first k.
        include_self: Whether the query takes up a rank of its own gallery. It is never a relevant item.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    self_is_relevant = False

    def __init__(
        self,
        at_k: Sequence[int] = (1, 2, 4, 8, 16),
        temperature: float = 0.01,
        recall_temperature: float = 1.0,
        include_self: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.step = Sigmoid(temperature)
        self.recall = SoftRecall(tuple(at_k), recall_temperature, capped=True)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        ranks = pairwise_ranks(scores, relevance, valid, positive_step=self.step, negative_step=self.step)
        return self.recall(ranks)
