"""Black-box AP."""

import torch
from torch import Tensor

from dml.losses.base import RankLoss
from dml.losses.noise import SavedGenerator
from dml.ranking import average_precision, blackbox_ranks


class BlackboxAPLoss(RankLoss):
    r"""Average precision of the true ranks, differentiated by interpolation.

    Relevant items are ranked with a handicap, the rest with an advantage, so that a ranking is perfect only if classes
    are apart by the margin.

    Rolinek et al., "Optimizing Rank-based Metrics with Blackbox Differentiation", CVPR 2020,
    https://arxiv.org/abs/1912.03500. The published code draws the handicap of each item, so its value differs from call
    to call; ``seed`` reproduces that, and by default the handicap is constant, as in :class:`BlackboxRecallLoss`. Its
    option to blend in one ranking over all queries is not offered.

    Args:
        lambda_val: :math:`\lambda`, how far the interpolation looks.
        margin: Between the handicap of relevant items and the advantage of the rest.
        seed: Multiply the handicap of each item by the size of a normal draw, from this seed. None draws nothing.
        include_self: Whether the query stays in its own gallery, as published. See :class:`RankLoss`.
        chunk_size: Queries ranked at a time. See :class:`RankLoss`.
    """

    def __init__(
        self,
        lambda_val: float = 4.0,
        margin: float = 0.02,
        seed: int | None = None,
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(include_self=include_self, chunk_size=chunk_size)
        self.lambda_val, self.margin = lambda_val, margin
        self.noise = None if seed is None else SavedGenerator(seed)

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        handicap = self.margin * (relevance.to(scores.dtype) - 0.5)
        if self.noise is not None:
            handicap *= self._draw(scores)
        return average_precision(blackbox_ranks(scores - handicap, relevance, valid, interpolation=self.lambda_val))

    def _draw(self, scores: Tensor) -> Tensor:
        # Row by row: the draws do not depend on how the queries are cut into chunks.
        assert self.noise is not None
        rows = [torch.randn(scores.shape[1], generator=self.noise.generator) for _ in range(len(scores))]
        return torch.stack(rows).abs().to(scores)
