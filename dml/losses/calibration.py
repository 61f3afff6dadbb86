"""Calibration."""

import torch
from torch import Tensor, nn

from dml.losses.base import checked_inputs
from dml.ranking import check_chunk_size, sum_over_queries


class CalibrationLoss(nn.Module):
    r"""Contrastive loss that puts scores of one class above one number and others below another, in every batch.

    .. math:: \mathcal{L} = \mathrm{mean}_{> 0} [\beta^+ - s^+]_+ + \mathrm{mean}_{> 0} [s^- - \beta^-]_+

    AP of a batch does not say what a score is worth in another batch; this term of ROADMAP makes scores comparable, and
    so AP of the whole gallery follow AP of the batches. The means are over the pairs that violate their margin.

    Ramzi et al., "Robust and Decomposable Average Precision for Image Retrieval", NeurIPS 2021,
    https://arxiv.org/abs/2110.01445. Equals the authors' code in value and gradient. An embedding is not paired with
    itself.

    Args:
        positive_margin: :math:`\beta^+`.
        negative_margin: :math:`\beta^-`.
        chunk_size: Rows of scores at a time; None chooses.
    """

    def __init__(
        self, positive_margin: float = 0.9, negative_margin: float = 0.6, chunk_size: int | None = None
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        self.positive_margin, self.negative_margin = positive_margin, negative_margin
        self.chunk_size = chunk_size

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
    ) -> Tensor:
        """The sum of both means, a scalar; a mean over no violation is 0.

        Args:
            embeddings: ``[B, D]``, unit norm.
            labels: ``[B]`` or ``[B, L]``, finest level first; pairs are of the finest.
            ref_emb: ``[N, D]``, other embeddings to pair with; by default the batch itself.
            ref_labels: ``[N]`` or ``[N, L]``, needed with ``ref_emb``.
            include_batch: Pair with the batch and ``ref_emb``.

        Raises:
            ValueError: If shapes do not fit, or an embedding is not finite.
        """
        inputs = checked_inputs(embeddings, labels, ref_emb, ref_labels, include_batch=include_batch)
        classes, ref_classes = inputs.labels[:, 0], inputs.ref_labels[:, 0]

        def violations(scores: Tensor, queries: slice) -> Tensor:
            same = torch.eq(classes[queries].unsqueeze(1), ref_classes, out=torch.empty_like(scores.detach()))
            positive = (self.positive_margin - scores).clamp(min=0) * same
            negative = (scores - self.negative_margin).clamp(min=0)
            if inputs.own_gallery:
                positive.diagonal(queries.start).zero_()
            return torch.stack([positive, negative.addcmul(negative, same, value=-1)])

        def count(scores: Tensor, queries: slice) -> Tensor:
            return violations(scores, queries).sign_().sum(dim=(1, 2))  # booleans are slow to sum

        pairs = inputs.embeddings, *inputs.gallery
        with torch.no_grad():
            number = sum_over_queries(count, *pairs, chunk_size=self.chunk_size).clamp(min=1)
        value: Tensor = sum_over_queries(
            lambda scores, queries: (violations(scores, queries).sum(dim=(1, 2)) / number).sum(),
            *pairs,
            chunk_size=self.chunk_size,
        )
        return value
