"""Black-box recall."""

from torch import Tensor

from dml.losses.base import RankLoss
from dml.ranking import blackbox_ranks


class BlackboxRecallLoss(RankLoss):
    r"""Logarithm of how many irrelevant items are above each relevant one, differentiated by interpolation.

    .. math:: \mathcal{L} = \frac{1}{B} \sum_q \frac{1}{|P_q|} \sum_{i \in P_q} \log(1 + n_i)

    with :math:`n_i` the irrelevant items above i, after relevant items were given a handicap of the margin. It bounds
    every Recall@k, and is not bounded by 1.

    Rolinek et al., "Optimizing Rank-based Metrics with Blackbox Differentiation", CVPR 2020,
    https://arxiv.org/abs/1912.03500. The published code multiplies ranks, which it has divided by the size of the
    gallery, by the number of queries; here they are true ranks, the same where the batch is its own gallery. It takes
    one mean over all relevant items of the batch; here it is the mean of the queries' means, the same where classes are
    of equal size.

    Args:
        lambda_val: :math:`\lambda`, how far the interpolation looks.
        margin: Between the handicap of relevant items and the advantage of the rest.
        log_of_log: Take :math:`\log(1 + \log(1 + n_i))`, which the authors suggest for rankings that are far off.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        lambda_val: float = 4.0,
        margin: float = 0.02,
        log_of_log: bool = False,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.lambda_val, self.margin, self.log_of_log = lambda_val, margin, log_of_log

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        handicap = self.margin * (relevance.to(scores.dtype) - 0.5)
        ranks = blackbox_ranks(scores - handicap, relevance, valid, interpolation=self.lambda_val)
        penalty = (ranks.rank - ranks.hrank).log1p()
        penalty = penalty.log1p() if self.log_of_log else penalty
        return 1 - ranks.sum_per_query(penalty) / ranks.sum_per_query(ranks.weight).clamp(min=1)
