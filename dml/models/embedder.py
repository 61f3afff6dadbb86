"""From images to unit-norm embeddings, with any backbone of timm."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import timm
import torch
from pytorch_lightning.utilities import rank_zero_warn
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml.models.batch_norm import Recomputation, batch_norms
from dml.models.multi_scale import MultiScale, View
from dml.models.pooling import PooledBackbone, PoolingName
from dml.models.whitening import Whitening


class TimmEmbedder(nn.Module):
    """A timm backbone, its pooling, and a head.

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
        pooling: Of the backbone's features over positions: their mean, maximum, the sum of both, generalised mean, or
            the class token alone. By default what timm does for the model.
        layer_norm: A layer norm before the head, with learned scale and shift (``affine``) or without (``plain``).
        dropout: Share of the features that training hides from the head.
        head: One linear layer, two with a ReLU between, or none.
        freeze_batch_norm: Keep the running statistics of the backbone's batch norms as they are and use them in
            training too (``statistics``), and do not train scale and shift either (``affine``).
        chunk_size: Images that go through the model at a time in a large batch. Of all but these, training keeps the
            embeddings only and computes them a second time for the gradient: the batch is limited by time, and no
            longer by memory.
        compile: Compile the backbone with ``torch.compile``.
        whitening_dim: Dimension of whitened embeddings, which evaluation gives once whitening is learned, at the end
            of training. By default there is none.
        whitening_power: Of the eigenvalues in it; see :class:`~dml.models.Whitening`.
        scales: Evaluation embeds an image at each of these scales, and combines them before it whitens, as Radenovic
            et al. and Revaud et al. do; see :class:`~dml.models.multi_scale.MultiScale`. Training sees the image only.
            Transformers, where timm can, are built to take any size.
        flip: Evaluation embeds each scale mirrored as well.
        view_power: Of the generalised mean over scales and mirror images. By default it is that of the pooling if that
            is ``gem`` and no layer follows it, so that nothing is negative, as Radenovic et al. have it; else 1. Revaud
            et al. take 3 always, of the absolute values.

    Attributes:
        last_norms: ``[B]``, of the embeddings of the last batch in training, before they were normalised; or None.

    Raises:
        ValueError: If an argument is out of range, timm has no such model, its weights cannot be had, or the model does
            not fit pooling or head.
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
        pooling: PoolingName | None = None,
        layer_norm: Literal["affine", "plain"] | None = None,
        dropout: float = 0.0,
        head: Literal["linear", "mlp", "none"] = "linear",
        freeze_batch_norm: Literal["statistics", "affine"] | None = None,
        chunk_size: int | None = None,
        compile: bool = False,
        whitening_dim: int | None = None,
        whitening_power: float = 0.5,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        view_power: float | None = None,
    ) -> None:
        super().__init__()
        _check(channels, embedding_dim, dropout, chunk_size)
        any_size = any(scale != 1 for scale in scales)
        backbone: Any = _backbone(name, pretrained, weights, channels, drop_path_rate, any_size)
        config: dict[str, Any] = resolve_model_data_config(backbone)  # type: ignore[no-untyped-call]
        self.image_size: int = config["input_size"][-1] if image_size is None else image_size
        if image_size is not None and hasattr(backbone, "set_input_size"):
            backbone.set_input_size(img_size=image_size)  # position embeddings of transformers
        self.name, self.channels, self.embedding_dim = name, channels, embedding_dim
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.chunk_size = chunk_size
        self.freeze_batch_norm = freeze_batch_norm
        self.last_norms: Tensor | None = None
        self.pool = None if pooling is None else PooledBackbone(backbone, name, pooling)
        self.backbone = backbone.to(memory_format=self.memory_format)
        num_features = _num_features(backbone)
        self.layer_norm = _layer_norm(layer_norm, num_features)
        self.dropout = nn.Dropout(dropout)
        self.head = _head(head, name, num_features, embedding_dim)
        self.whitening_dim = whitening_dim
        self.whitening = None if whitening_dim is None else Whitening(embedding_dim, whitening_dim, whitening_power)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _per_channel(config["mean"], channels), persistent=False)
        self.register_buffer("std", _per_channel(config["std"], channels), persistent=False)
        last = self.pool.over_positions if self.pool is not None and head == "none" and layer_norm is None else None
        self.multi_scale = MultiScale(backbone, name, scales, flip, view_power, last)
        self._warned_of_chunks = False
        if freeze_batch_norm == "affine":
            for layer in batch_norms(backbone):
                layer.requires_grad_(False)
        self.train()
        if compile:
            self._compile()

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: ``[B, C, H, W]`` uint8.

        Returns:
            ``[B, D]`` of unit norm, of at least float32; ``[B, K]`` in evaluation, once whitening is learned.

        Raises:
            ValueError: If a program is being exported and there are several views.
        """
        if self.training:
            unscaled = _at_least_float32(self._in_chunks(images))
            self.last_norms = unscaled.detach().norm(dim=1)
            return nn.functional.normalize(unscaled, dim=1)
        embeddings = self.multi_scale(images, lambda view: _at_least_float32(self._in_chunks(images, view)))
        if self.whitening is not None and self.whitening.learned:
            whitened: Tensor = self.whitening(embeddings)
            return whitened
        return embeddings

    @property
    def view_seconds(self) -> dict[str, float]:
        """Seconds that evaluation has spent on each view, by its name; :meth:`reset_view_seconds` starts over."""
        return self.multi_scale.clock.seconds()

    def reset_view_seconds(self) -> None:
        """Forget what views have cost so far."""
        self.multi_scale.clock.reset()

    def train(self, mode: bool = True) -> "TimmEmbedder":
        """Set training or evaluation mode; frozen batch norms stay in evaluation."""
        super().train(mode)
        if self.freeze_batch_norm is not None:
            for layer in batch_norms(self.backbone):
                layer.eval()
        return self

    def _embed(self, images: Tensor, view: View | None = None) -> Tensor:
        """``[B, D]``, not normalised."""
        # Of each chunk by itself: the images of a whole batch as floats are four times their bytes.
        pixels = images.float() if view is None else self.multi_scale.apply(images.float(), view)
        normalised = (pixels / 255 - self.mean) / self.std
        normalised = normalised.to(self.mean.dtype).contiguous(memory_format=self.memory_format)
        features = self.backbone(normalised) if self.pool is None else self.pool(self.backbone, normalised)
        embeddings: Tensor = self.head(self.dropout(self.layer_norm(features)))
        return embeddings

    def _in_chunks(self, images: Tensor, view: View | None = None) -> Tensor:
        if self.chunk_size is None or len(images) <= self.chunk_size:
            return self._embed(images, view)
        chunks = torch.split(images, self.chunk_size)
        self._warn_of_chunks(len(images))
        if not (self.training and torch.is_grad_enabled()):
            return torch.cat([self._embed(chunk, view) for chunk in chunks])
        # It draws the same dropout the second time, and keeps autocast and DDP as they are.
        return torch.cat(
            [checkpoint(self._embed, chunk, use_reentrant=False, context_fn=self._contexts) for chunk in chunks]
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of a chunk, the first and the second time."""
        return nullcontext(), Recomputation(self.backbone)

    def _warn_of_chunks(self, num_images: int) -> None:
        if self._warned_of_chunks or not any(layer.training for layer in batch_norms(self.backbone)):
            return
        self._warned_of_chunks = True
        rank_zero_warn(
            f"chunk_size is {self.chunk_size} in a batch of {num_images}: batch normalisation sees a chunk at a "
            "time, and the batch does not give what it would as a whole; freeze_batch_norm=statistics makes it the same"
        )

    def _compile(self) -> None:
        if self.pool is not None and self.pool.skips_head:
            raise ValueError(
                f"compile is true and pooling is {self.pool.pooling!r}, which do not go together for {self.name!r}; "
                "leave one out"
            )
        # In place: the weights keep their names. Chunks get one graph for each size, or the last and smallest would
        # make the graph a dynamic one, by which the others would be computed the second time.
        self.backbone.compile(dynamic=None if self.chunk_size is None else False)


def _check(channels: int, embedding_dim: int, dropout: float, chunk_size: int | None) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; it must be 1 (greyscale) or 3 (RGB)")
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim is {embedding_dim}; it must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and less than 1")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or left out for whole batches")


def _at_least_float32(embeddings: Tensor) -> Tensor:
    # bfloat16 cannot hold a unit norm to better than 0.4 %.
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()


def _backbone(
    name: str, pretrained: bool, weights: str | None, channels: int, drop_path_rate: float, any_size: bool
) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0].rstrip('0123456789')}*")[:5]
        raise ValueError(f"timm has no model {name!r}; similar ones: {near or 'none, see timm.list_models()'}")
    create = functools.partial(
        timm.create_model,
        name,
        pretrained=pretrained or weights is not None,
        pretrained_cfg_overlay=None if weights is None else {"file": weights},
        in_chans=channels,
        num_classes=0,
    )
    try:
        return (_of_any_size if any_size else _with_drop_path)(create, name, drop_path_rate)
    except (OSError, RuntimeError) as error:
        if not pretrained and weights is None:
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"the weights of {name!r} could not be had from {weights or 'the hub'} ({reason}); set pretrained=false to "
            "start from scratch, or weights to a local file"
        ) from error


def _of_any_size(create: Callable[..., nn.Module], name: str, drop_path_rate: float) -> nn.Module:
    """A transformer that fits its position embeddings to the image, if it is one."""
    try:
        return _with_drop_path(functools.partial(create, dynamic_img_size=True), name, drop_path_rate)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return _with_drop_path(create, name, drop_path_rate)


def _with_drop_path(create: Callable[..., nn.Module], name: str, drop_path_rate: float) -> nn.Module:
    try:
        return create(drop_path_rate=drop_path_rate)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        if drop_path_rate:
            raise ValueError(
                f"drop_path_rate is {drop_path_rate}, but {name!r} has no stochastic depth; leave it at 0"
            ) from error
        return create()


def _num_features(backbone: Any) -> int:
    """Width of what comes out, which for some, as MobileNetV3, is that of a layer after the pooling."""
    features: int = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return features


def _layer_norm(kind: str | None, num_features: int) -> nn.Module:
    return nn.Identity() if kind is None else nn.LayerNorm(num_features, elementwise_affine=kind == "affine")


def _head(kind: str, name: str, num_features: int, embedding_dim: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(num_features, embedding_dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(num_features, num_features), nn.ReLU(), nn.Linear(num_features, embedding_dim))
    if embedding_dim != num_features:
        raise ValueError(
            f"head is 'none' and embedding_dim is {embedding_dim}; without a head it must be {num_features}, the "
            f"number of features of {name!r}"
        )
    return nn.Identity()


def _per_channel(values: tuple[float, float, float], channels: int) -> Tensor:
    """``[1, C, 1, 1]``; a greyscale image is normalised with the mean over the colours."""
    tensor = torch.tensor(values)
    return (tensor if channels == 3 else tensor.mean().reshape(1)).reshape(1, -1, 1, 1)
