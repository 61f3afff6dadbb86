"""Batch normalisation that is frozen, or whose batch is computed twice."""

from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Its layers of batch normalisation: torch's, timm's with an activation, and those synchronised over processes."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


class Recomputation:
    """A context in which batches leave no trace in the running statistics of batch normalisation.

    They have been counted when the batch was first computed. ``track_running_stats`` is not the switch for it: without
    the statistics, fewer tensors are saved for backward than the first time, and the two could not be matched.

    Not a generator, so that it can be entered again: backward may run more than once.

    Args:
        module: Whose layers are meant.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._kept: list[tuple[Any, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        for layer in batch_norms(self._module):
            counted: Tensor | None = layer.num_batches_tracked
            if layer.training and counted is not None:
                self._kept.append((layer, layer.momentum, counted))
                layer.momentum = 0.0
                layer.num_batches_tracked = counted.clone()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._kept:
            layer, momentum, counted = self._kept.pop()
            layer.momentum, layer.num_batches_tracked = momentum, counted
