"""From images to unit-norm embeddings, with any backbone of timm."""

from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn


class TimmEmbedder(nn.Module):
    """A timm backbone, its pooling, and a linear head.

    Images come as uint8 and are normalised here, on the device, with what the backbone was trained with.

    Args:
        name: Any model of ``timm.list_models()``.
        embedding_dim: ``D``.
        pretrained: Start from timm's weights, which are downloaded once.
        weights: A local file of weights (``.safetensors`` or ``.pth``) for the backbone, instead of a download.
        channels: 1 (greyscale) or 3 (RGB).
        image_size: Side of the images in pixels; by default what timm's data config says.
        drop_path_rate: Stochastic depth of the backbone.
        channels_last: Lay images out with the channels last, which is faster for most convolutional backbones.

    Raises:
        ValueError: If timm has no such model, or its weights cannot be had.
    """

    def __init__(
        self,
        name: str = "resnet50",
        embedding_dim: int = 512,
        pretrained: bool = True,
        weights: str | None = None,
        channels: int = 3,
        image_size: int | None = None,
        drop_path_rate: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; it must be 1 (greyscale) or 3 (RGB)")
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim is {embedding_dim}; it must be at least 1")
        backbone: Any = _backbone(name, pretrained, weights, channels, drop_path_rate)
        config: dict[str, Any] = resolve_model_data_config(backbone)  # type: ignore[no-untyped-call]
        self.image_size: int = config["input_size"][-1] if image_size is None else image_size
        if image_size is not None and hasattr(backbone, "set_input_size"):
            backbone.set_input_size(img_size=image_size)  # position embeddings of transformers
        self.channels = channels
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.embedding_dim = embedding_dim
        self.backbone = backbone.to(memory_format=self.memory_format)
        self.head = nn.Linear(backbone.num_features, embedding_dim)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _per_channel(config["mean"], channels), persistent=False)
        self.register_buffer("std", _per_channel(config["std"], channels), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: ``[B, C, H, W]`` uint8.

        Returns:
            ``[B, D]`` of unit norm, float32.
        """
        normalised = (images.float() / 255 - self.mean) / self.std
        embeddings = self.head(self.backbone(normalised.contiguous(memory_format=self.memory_format)))
        # bfloat16 cannot hold a unit norm to better than 0.4 %.
        return nn.functional.normalize(embeddings.float(), dim=1)


def _backbone(name: str, pretrained: bool, weights: str | None, channels: int, drop_path_rate: float) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0].rstrip('0123456789')}*")[:5]
        raise ValueError(f"timm has no model {name!r}; similar ones: {near or 'none, see timm.list_models()'}")
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=pretrained or weights is not None,
            pretrained_cfg_overlay=None if weights is None else {"file": weights},
            in_chans=channels,
            num_classes=0,
            drop_path_rate=drop_path_rate,
        )
    except (OSError, RuntimeError) as error:
        if not pretrained and weights is None:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"the weights of {name!r} could not be had from {weights or 'the hub'} ({reason}); set pretrained=false to "
            "start from scratch, or weights to a local file"
        ) from error
    return model


def _per_channel(values: tuple[float, float, float], channels: int) -> Tensor:
    """``[1, C, 1, 1]``; a greyscale image is normalised with the mean over the colours."""
    tensor = torch.tensor(values)
    return (tensor if channels == 3 else tensor.mean().reshape(1)).reshape(1, -1, 1, 1)
