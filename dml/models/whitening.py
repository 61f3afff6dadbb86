"""Whitening of embeddings, learned after training."""

import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """Centre embeddings, turn them to their principal axes, shrink the axes that vary much, normalise.

    ``y = (x - mean) W / eigenvalues^power``, where the columns of ``W`` are the eigenvectors of the largest
    eigenvalues of the covariance. With ``power`` 0.5 all axes vary alike; 0.25 is the square root of that, which
    Revaud et al. use: Learning with Average Precision, https://arxiv.org/abs/1906.07589

    Args:
        embedding_dim: ``D``.
        dim: ``K``, axes to keep.
        power: Of the eigenvalues.

    Raises:
        ValueError: If ``dim`` is more than ``embedding_dim``, or an argument is out of range.
    """

    def __init__(self, embedding_dim: int, dim: int, power: float = 0.5) -> None:
        super().__init__()
        if not 1 <= dim <= embedding_dim:
            raise ValueError(f"whitening_dim is {dim}; it must be from 1 to embedding_dim, which is {embedding_dim}")
        if not 0 <= power <= 1:
            raise ValueError(f"whitening_power is {power}; it must be from 0 (rotate only) to 1; 0.5 whitens")
        self.power = power
        self.mean: Tensor
        self.projection: Tensor
        self.learned: Tensor
        self.register_buffer("mean", torch.zeros(embedding_dim))
        self.register_buffer("projection", torch.eye(embedding_dim)[:, :dim].clone())
        self.register_buffer("learned", torch.tensor(False))

    def forward(self, embeddings: Tensor) -> Tensor:
        """From ``[B, D]`` to ``[B, K]`` of unit norm, float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            whitened = (embeddings.float() - self.mean.float()) @ self.projection.float()
        return nn.functional.normalize(whitened, dim=1)

    @torch.no_grad()
    def learn(self, embeddings: Tensor) -> None:
        """Find mean and axes.

        Args:
            embeddings: ``[N, D]``, one for each image.

        Raises:
            ValueError: If there are too few, one is not finite, or they vary in fewer than ``K`` directions.
        """
        dim = self.projection.shape[1]
        self.check_number(len(embeddings))
        exact = embeddings.double()
        if not exact.isfinite().all():
            raise ValueError("whitening cannot be learned: an embedding is not finite")
        mean = exact.mean(dim=0)
        eigenvalues, axes = torch.linalg.eigh((exact - mean).T.cov())
        eigenvalues, axes = eigenvalues.flip(0)[:dim], axes.flip(1)[:, :dim]
        # A standard deviation of 1e-5 of the largest is what float32 leaves of none.
        varying = int((eigenvalues > 1e-10 * eigenvalues[0]).sum())
        if varying < dim:
            raise ValueError(
                f"whitening_dim is {dim}, but the embeddings vary in {varying} directions only; set it to that at most"
            )
        self.mean.copy_(mean)
        self.projection.copy_(axes / eigenvalues**self.power)
        self.learned.fill_(True)

    def check_number(self, num_images: int) -> None:
        """Raise a ValueError if so many embeddings cannot show how all dimensions vary."""
        if num_images <= len(self.mean):
            raise ValueError(
                f"whitening is to be learned from {num_images} images; embeddings of dimension {len(self.mean)} need "
                "more images than that"
            )
