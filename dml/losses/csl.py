"""Cross-level similarity."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from dml.losses.proxies import Proxies
from dml.ranking import check_chunk_size, sum_over_queries


class CSLLoss(nn.Module):
    r"""Proxies of the finest classes, apart from those of other classes by a margin that grows with the level.

    .. math:: \mathcal{L} = \sum_l \frac{1}{B} \sum_x \mathrm{softplus} \Big(
        \log \sum_{c: y^l_c \ne y^l_x} e^{s \cos(x, w_c)} - s \cos(x, w_{y_x}) + s\, m_l \Big)

    Sun et al., "Dynamic Metric Learning: Towards a Scalable Metric Space to Accommodate Multiple Semantic Scales", CVPR
    2021, https://arxiv.org/abs/2103.11781. Proxies are parameters of the model, trained at
    ``model.groups.loss``, saved and synchronised with it.

    Which coarser classes a class belongs to is learned from the labels as they come. A class that no batch has shown
    yet takes no part; the published code reads all labels beforehand.

    Args:
        num_classes: Training classes of the finest level.
        embedding_dim: Of the embeddings.
        scale: :math:`s`.
        margins: :math:`m_l` of each level, finest first; the authors have .25 and .45 for two levels.
        chunk_size: Embeddings compared with all proxies at a time; None chooses.
    """

    proxy_labels: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        scale: float = 32.0,
        margins: Sequence[float] = (0.25, 0.35, 0.45),
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        self.proxies = Proxies(num_classes, embedding_dim)
        self.scale, self.margins, self.chunk_size = scale, tuple(margins), chunk_size
        # Labels of each class at all levels, -1 until a batch has shown it.
        self.register_buffer("proxy_labels", torch.full((num_classes, len(self.margins)), -1))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
    ) -> Tensor:
        """The sum over the levels of the mean over the batch, a scalar; 0 for an empty batch.

        Args:
            embeddings: ``[B, D]``, unit norm.
            labels: ``[B]`` or ``[B, L]``, finest level first, from 0; one margin for each level.
            ref_emb: Not looked at: embeddings are compared with proxies.
            ref_labels: Not looked at.
            include_batch: Not looked at.

        Raises:
            ValueError: If shapes do not fit, an embedding is not finite, a label has no proxy, or the levels are not as
                many as the margins.
        """
        embeddings, labels, proxies = self.proxies(embeddings, labels)
        if labels.shape[1] != len(self.margins):
            raise ValueError(f"margins are {list(self.margins)}; the labels have {labels.shape[1]} levels")
        if self.training:
            self.proxy_labels[labels[:, 0]] = labels
        seen = self.proxy_labels[:, 0] >= 0

        def cost(scores: Tensor, queries: slice) -> Tensor:
            scaled = self.scale * scores
            own = scaled.gather(1, labels[queries, :1]).squeeze(1)
            total = scores.new_zeros(())
            for level, margin in enumerate(self.margins):
                other = (self.proxy_labels[:, level] != labels[queries, level, None]) & seen
                # Far below, not infinitely: where a level has one class only, the gradient is to be 0, not NaN.
                nearest_others = scaled.masked_fill(~other, -1e4).logsumexp(dim=1)
                total = total + softplus(nearest_others - own + self.scale * margin).sum()
            return total

        total = sum_over_queries(cost, embeddings, normalize(proxies, dim=1), chunk_size=self.chunk_size)
        mean: Tensor = total / max(1, len(embeddings))
        return mean
