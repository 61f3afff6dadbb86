"""Any loss of pytorch-metric-learning."""

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor, nn

from dml.losses.base import at_least_float32


class PairLoss(nn.Module):
    """A loss of pytorch-metric-learning, with its miner, at one label level.

    Musgrave et al., "PyTorch Metric Learning", https://arxiv.org/abs/2008.09164. The value is that of ``loss`` itself;
    embeddings of half precision are passed on in float32.

    Args:
        loss: For example ``pytorch_metric_learning.losses.MultiSimilarityLoss``.
        miner: For example ``pytorch_metric_learning.miners.TripletMarginMiner``; None uses all pairs of the batch.
        level: Which column of the labels is the class, 0 for the finest.
    """

    def __init__(self, loss: BaseMetricLossFunction, miner: BaseMiner | None = None, level: int = 0) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.level = level

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
    ) -> Tensor:
        """The value of the loss, a scalar.

        Args:
            embeddings: ``[B, D]``.
            labels: ``[B]`` or ``[B, L]``, finest level first.
            ref_emb: ``[N, D]``, other embeddings to pair with; by default the batch itself.
            ref_labels: ``[N]`` or ``[N, L]``, needed with ``ref_emb``.
            include_batch: Pair with the batch and ``ref_emb``.

        Raises:
            ValueError: If the labels have no such level.
        """
        own = self._column(labels)
        others = None if ref_labels is None else self._column(ref_labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = at_least_float32(embeddings)
            ref_emb = None if ref_emb is None else at_least_float32(ref_emb)
            if include_batch and ref_emb is not None and others is not None:
                ref_emb, others = torch.cat([embeddings, ref_emb]), torch.cat([own, others])
            mined = None if self.miner is None else self.miner(embeddings, own, ref_emb, others)
            if include_batch and others is not None:
                mined = _without_self(lmu.get_all_pairs_indices(own, others) if mined is None else mined)
            value: Tensor = self.loss(embeddings, own, mined, ref_emb, others)
        return value

    def _column(self, labels: Tensor) -> Tensor:
        if labels.ndim == 1:
            labels = labels.unsqueeze(1)
        if not 0 <= self.level < labels.shape[1]:
            raise ValueError(f"level is {self.level}; the labels have levels 0 to {labels.shape[1] - 1}")
        return labels[:, self.level]


def _without_self(mined: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Pairs or triplets without those of an embedding and itself, where the others begin with the batch."""
    anchors, positives, *rest = mined
    apart = anchors != positives
    if len(rest) == 1:  # triplets
        return anchors[apart], positives[apart], rest[0][apart]
    return anchors[apart], positives[apart], *rest
