"""Black-box AP."""

import torch
from torch import Tensor

from dml.losses.base import Inputs, RankLoss
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
        self._seed_of_batch = 0

    def measure(self, scores: Tensor, relevance: Tensor, valid: Tensor) -> Tensor:
        handicap = self.margin * (relevance.to(scores.dtype) - 0.5)
        if self.noise is not None:
            handicap *= self._draw(scores)
        return average_precision(blackbox_ranks(scores - handicap, relevance, valid, interpolation=self.lambda_val))

    def _loss(self, inputs: Inputs, weights: Tensor) -> Tensor:
        if self.noise is not None:
            self._seed_of_batch = int(torch.randint(2**32, (), generator=self.noise.generator))
        return super()._loss(inputs, weights)

    def _draw(self, scores: Tensor) -> Tensor:
        # Each row from a seed of its own: the draws do not depend on how the queries are cut into chunks, nor on which
        # process ranks them.
        generator, draws = torch.Generator(), torch.empty(scores.shape)
        for query, row in zip(range(self.queries.start, self.queries.stop), draws, strict=True):
            generator.manual_seed((self._seed_of_batch + query) % 2**32)  # more bits are not looked at
            torch.randn(len(row), generator=generator, out=row)
        return draws.abs().to(scores)
