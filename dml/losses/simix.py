"""Similarity mixup."""

import torch
from torch import Tensor, nn

from dml.losses.base import RankLoss, checked_inputs
from dml.losses.noise import SavedGenerator


class SiMix(nn.Module):
    """Any rank loss, on a batch to which every two embeddings of a class add a mixture of themselves.

    Mixtures are not brought back to unit norm: their scores mix the scores of what they are made of. They are queries
    and items like any other, m (m - 1) / 2 for a class of m.

    Patel et al., "Recall@k Surrogate Loss with Large Batches and Similarity Mixup", CVPR 2022,
    https://arxiv.org/abs/2108.11179. The published code knows classes of 3, 4 and 6, and draws from a global generator.

    Args:
        loss: The loss of the mixed batch.
        seed: Of the draws of how much of each embedding goes into a mixture.
    """

    def __init__(self, loss: RankLoss, seed: int = 0) -> None:
        super().__init__()
        self.loss = loss
        self.noise = SavedGenerator(seed)

    @property
    def logged(self) -> dict[str, float]:
        """What the loss has to report beside its value."""
        return self.loss.logged

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
    ) -> Tensor:
        """The loss, with mixtures added to the queries, and to the gallery where that is the batch itself.

        Args:
            embeddings: ``[B, D]``.
            labels: ``[B]`` or ``[B, L]``, finest level first; the finest says what is mixed.
            ref_emb: ``[N, D]``, a gallery other than the batch.
            ref_labels: ``[N]`` or ``[N, L]``, needed with ``ref_emb``.
            include_batch: Rank the batch, mixtures included, together with ``ref_emb``.

        Raises:
            ValueError: If shapes do not fit, or an embedding is not finite.
        """
        inputs = checked_inputs(embeddings, labels, ref_emb, ref_labels)
        embeddings, classes = inputs.embeddings, inputs.labels[:, 0]
        one, other = (classes.unsqueeze(1) == classes).triu(diagonal=1).nonzero(as_tuple=True)
        share = torch.rand(len(one), 1, generator=self.noise.generator).to(embeddings)
        mixtures = share * embeddings[one] + (1 - share) * embeddings[other]
        value: Tensor = self.loss(
            torch.cat([embeddings, mixtures]),
            torch.cat([labels, labels[one]]),
            ref_emb=ref_emb,
            ref_labels=ref_labels,
            include_batch=include_batch,
        )
        return value
