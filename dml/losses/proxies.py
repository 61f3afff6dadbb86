"""Learned representatives of the classes."""

import torch
from torch import Tensor, nn

from dml.losses.base import checked_inputs


class Proxies(nn.Module):
    """One learned vector per class, drawn from U(-1 / sqrt(D), 1 / sqrt(D)).

    Args:
        num_classes: ``C``, the classes of the training split.
        embedding_dim: ``D``.

    Raises:
        ValueError: If either is below 1.
    """

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("embedding_dim", embedding_dim)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        bound = embedding_dim**-0.5
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim).uniform_(-bound, bound))

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings ``[B, D]`` of at least float32, labels ``[B, L]``, and proxies ``[C, D]`` of the same type.

        Raises:
            ValueError: If shapes do not fit, an embedding is not finite, or a label has no proxy.
        """
        embeddings, labels, *_ = checked_inputs(embeddings, labels, None, None)
        num_classes, embedding_dim = self.weight.shape
        if embeddings.shape[1] != embedding_dim:
            raise ValueError(f"embedding_dim is {embedding_dim}; the embeddings have {embeddings.shape[1]} columns")
        outside = (labels[:, 0] < 0) | (labels[:, 0] >= num_classes)
        if outside.any():
            raise ValueError(
                f"num_classes is {num_classes}; the batch has label {labels[outside, 0][0].item()}. It must be the "
                "number of training classes"
            )
        return embeddings, labels.long(), self.weight.to(embeddings.dtype)
