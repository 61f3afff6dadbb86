"""Backward passes derived by hand, which have no derivative of their own."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to be differentiated again, as soon as ``create_graph=True`` prepares for it.

    The decorator of this name in torch refuses later, and not where the gradient that comes in is a constant: a penalty
    on the gradient would then be silently wrong.

    Raises:
        RuntimeError: If a graph of the backward pass is wanted.
    """

    @wraps(backward)
    def refusing(ctx: Any, *grads: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True asks for the gradient of a gradient, but ranks are once_differentiable: their "
                "backward pass is derived by hand"
            )
        return backward(ctx, *grads)

    return refusing
