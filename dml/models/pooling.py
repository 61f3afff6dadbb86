"""From the features of a backbone at each position of an image to one vector."""

from typing import Any, Literal

import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

PoolingName = Literal["avg", "max", "avg+max", "gem", "cls"]


class GeM(nn.Module):
    """Generalised-mean pooling, ``(mean of x^p)^(1/p)``, with one learned ``p``: 1 is the mean, infinity the maximum.

    Radenovic, Tolias & Chum: Fine-tuning CNN Image Retrieval with No Human Annotation, https://arxiv.org/abs/1711.02512

    Args:
        exponent: ``p`` at the start.
        eps: What features are raised to, if they are less: a power of a negative number is not real.
    """

    def __init__(self, exponent: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([exponent]))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """From ``[B, C, P]`` to ``[B, C]``."""
        # Cubes of float16 overflow at 41, and bfloat16 cannot hold eps beside 1; powers and means stay float32 under
        # autocast.
        powers = features.float().clamp(min=self.eps).pow(self.exponent)
        return powers.mean(dim=2).pow(1 / self.exponent)


class Average(nn.Module):
    """The mean over positions."""

    def forward(self, features: Tensor) -> Tensor:
        """From ``[B, C, P]`` to ``[B, C]``."""
        return features.mean(dim=2)


class Maximum(nn.Module):
    """The maximum over positions."""

    def forward(self, features: Tensor) -> Tensor:
        """From ``[B, C, P]`` to ``[B, C]``."""
        return features.amax(dim=2)


class AverageAndMaximum(nn.Module):
    """The sum of mean and maximum over positions, as Proxy-Anchor pools (https://arxiv.org/abs/2003.13911)."""

    def forward(self, features: Tensor) -> Tensor:
        """From ``[B, C, P]`` to ``[B, C]``."""
        return features.mean(dim=2) + features.amax(dim=2)


class PooledBackbone(nn.Module):
    """Calls a backbone of timm without its own pooling, and pools in its stead.

    The backbone is not a part of it, so that its weights have one name whatever the pooling.

    Args:
        backbone: Whose pooling is taken out.
        name: Of the backbone, for errors.
        pooling: What to do instead. ``cls`` takes the class token; the others pool over all positions of the image,
            without class, distillation and register tokens.

    Raises:
        ValueError: If the backbone cannot be pooled so.
    """

    def __init__(self, backbone: Any, name: str, pooling: PoolingName) -> None:
        super().__init__()
        self.name, self.pooling = name, pooling
        self.num_prefix_tokens: int = getattr(backbone, "num_prefix_tokens", 0)
        self.channels_are_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        # Its head mixes two tokens, whatever it is told.
        self.skips_head = isinstance(backbone, VisionTransformerDistilled)
        has_class_token = self.num_prefix_tokens > 0 and getattr(backbone, "cls_token", None) is not None
        if pooling == "cls" and not has_class_token:
            raise ValueError(f"pooling is 'cls', but {name!r} has no class token; avg, max, avg+max or gem fits")
        self.over_positions = {
            "avg": Average,
            "max": Maximum,
            "avg+max": AverageAndMaximum,
            "gem": GeM,
            "cls": nn.Identity,
        }[pooling]()
        try:
            # Not when the model is created: the norm after timm's pooling, where there is one, has weights to load.
            backbone.reset_classifier(0, "")
        except (AssertionError, TypeError, ValueError, NotImplementedError) as error:
            raise self._pools_itself() from error

    def forward(self, backbone: Any, images: Tensor) -> Tensor:
        """From normalised images ``[B, C, H, W]`` to ``[B, F]``."""
        features: Tensor = backbone.forward_features(images) if self.skips_head else backbone(images)
        if features.ndim == 2:
            raise self._pools_itself()
        if self.pooling == "cls":
            return features[:, 0]
        if features.ndim == 3:  # tokens [B, T, F]
            features = features[:, self.num_prefix_tokens :].transpose(1, 2)
        elif self.channels_are_last:
            features = features.permute(0, 3, 1, 2)
        pooled: Tensor = self.over_positions(features.flatten(2))
        return pooled

    def _pools_itself(self) -> ValueError:
        return ValueError(f"pooling is {self.pooling!r}, but {self.name!r} only has a pooling of its own; leave it out")
