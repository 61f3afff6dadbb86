"""Steps: from a score difference ``s_j - s_i`` to how much item ``j`` is above item ``i``.

A step is a value and a slope, both elementwise. The slope is written by hand because the rankers recompute it block by
block in the backward pass. A step must be 0 with slope 0 at minus infinity: that is how masked items drop out.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Step(Protocol):
    """What a ranker asks of a step."""

    def __call__(self, difference: Tensor) -> Tensor:
        """How much "above" each score difference is, of the same shape."""

    def slope(self, difference: Tensor) -> Tensor:
        """Derivative of the value, of the same shape."""


@dataclass(frozen=True)
class Heaviside:
    """1 where the difference is at least 0: the true rank. A tie counts against the item. No gradient."""

    def __call__(self, difference: Tensor) -> Tensor:
        return (difference >= 0).to(difference.dtype)

    def slope(self, difference: Tensor) -> Tensor:
        return torch.zeros_like(difference)


heaviside = Heaviside()


@dataclass(frozen=True)
class Sigmoid:
    """``sigmoid(x / temperature)``, the step of Smooth-AP (Brown et al., ECCV 2020).

    Raises:
        ValueError: If ``temperature`` is not positive.
    """

    temperature: float = 0.01

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def __call__(self, difference: Tensor) -> Tensor:
        return (difference / self.temperature).sigmoid_()

    def slope(self, difference: Tensor) -> Tensor:
        value = self(difference)
        return torch.addcmul(value, value, value, value=-1).div_(self.temperature)
