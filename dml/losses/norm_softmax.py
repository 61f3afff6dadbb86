"""Normalised softmax."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dml.losses.proxies import Proxies
from dml.ranking import check_chunk_size, sum_over_queries


class NormSoftmaxLoss(nn.Module):
    r"""Classification by the nearest of one learned proxy per class: cross entropy of :math:`x^\top \bar w_c / T`.

    Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019,
    https://arxiv.org/abs/1811.12649; the cluster loss of HAPPIER (Ramzi et al., ECCV 2022). Proxies are parameters of
    the model, trained at ``model.groups.loss``, saved and synchronised with it.

    Args:
        num_classes: Training classes; labels of the finest level are below it.
        embedding_dim: Of the embeddings.
        temperature: :math:`T`.
        chunk_size: Embeddings compared with all proxies at a time; None chooses.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, temperature: float = 0.05, chunk_size: int | None = None
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.proxies = Proxies(num_classes, embedding_dim)
        self.temperature, self.chunk_size = temperature, chunk_size

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
    ) -> Tensor:
        """The mean cross entropy, a scalar; 0 for an empty batch.

        Args:
            embeddings: ``[B, D]``, unit norm.
            labels: ``[B]`` or ``[B, L]``, finest level first, from 0.
            ref_emb: Not looked at: embeddings are compared with proxies.
            ref_labels: Not looked at.
            include_batch: Not looked at.

        Raises:
            ValueError: If shapes do not fit, an embedding is not finite, or a label has no proxy.
        """
        embeddings, labels, proxies = self.proxies(embeddings, labels)

        def cost(scores: Tensor, queries: slice) -> Tensor:
            return cross_entropy(scores / self.temperature, labels[queries, 0], reduction="sum")

        total = sum_over_queries(cost, embeddings, normalize(proxies, dim=1), chunk_size=self.chunk_size)
        mean: Tensor = total / max(1, len(embeddings))
        return mean
