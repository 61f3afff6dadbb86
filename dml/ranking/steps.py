"""Steps: from a score difference ``s_j - s_i`` to how much item ``j`` is above item ``i``.

A step is a value and a slope, both elementwise. The slope is written by hand because the rankers recompute it block by
block in the backward pass. A step must be 0 with slope 0 at minus infinity: that is how masked items drop out.

They are written as sums of clamps: on a CPU, ``torch.where`` costs forty times as much as a clamp, and a comparison
that makes booleans five times as much as one that writes floats.
"""

import math
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
        return torch.ge(difference, 0, out=torch.empty_like(difference))

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
        _check_positive("temperature", self.temperature)

    def __call__(self, difference: Tensor) -> Tensor:
        return (difference / self.temperature).sigmoid_()

    def slope(self, difference: Tensor) -> Tensor:
        value = self(difference)
        return torch.addcmul(value, value, value, value=-1).div_(self.temperature)


@dataclass(frozen=True)
class UpperBound:
    r"""The step of SupAP (Ramzi et al., NeurIPS 2021): above the Heaviside step, with a slope that does not vanish.

    At a tie it counts half, like the sigmoid.

    .. math:: x \le 0: \sigma(x / \tau), \qquad
        0 < x \le \delta: \sigma(x / \tau) + \mathrm{jump}, \qquad
        x > \delta: \rho (x - \delta) + \mathrm{offset}

    A sigmoid barely moves an item that ranks far too high; here its slope is :math:`\rho`, however far.

    Args:
        temperature: :math:`\tau`.
        slope_beyond: :math:`\rho`, the slope beyond ``margin``; the losses call it ``slope``.
        margin: :math:`\delta`.
        jump: What is added above 0; 0.5 makes it an upper bound of the Heaviside step.
        offset: Value just beyond ``margin``. None makes the step continuous there. Published configurations have 1.44
            (Stanford Online Products) and 1.0 with a jump of 0 (iNaturalist).

    Raises:
        ValueError: If ``temperature`` is not positive, or ``slope_beyond`` or ``margin`` is negative.
    """

    temperature: float = 0.01
    slope_beyond: float = 100.0
    margin: float = 0.05
    jump: float = 0.5
    offset: float | None = None

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)
        for name, value in (("slope", self.slope_beyond), ("margin", self.margin)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")

    def __call__(self, difference: Tensor) -> Tensor:
        value = difference.clamp(max=self.margin).div_(self.temperature).sigmoid_()
        comparison = torch.gt(difference, 0, out=torch.empty_like(difference))
        value.add_(comparison, alpha=self.jump)
        if self.offset is not None:
            beyond = torch.gt(difference, self.margin, out=comparison)
            value.add_(beyond, alpha=self.offset - self._continuous_offset)
        return value.add_((difference - self.margin).clamp_(min=0), alpha=self.slope_beyond)

    def slope(self, difference: Tensor) -> Tensor:
        value = (difference / self.temperature).sigmoid_()
        slope = torch.addcmul(value, value, value, value=-1).div_(self.temperature)
        beyond = torch.gt(difference, self.margin, out=value)
        return slope.lerp_(torch.full_like(slope, self.slope_beyond), beyond)

    @property
    def _continuous_offset(self) -> float:
        return 1 / (1 + math.exp(-self.margin / self.temperature)) + self.jump


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0")
