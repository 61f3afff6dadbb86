"""Learning-rate schedules as functions of the share of training that is done.

A schedule written in steps or epochs goes wrong when the length of a run is changed on the command line; these stretch
with it. The value is a factor of the optimizer's learning rate.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up from 0 to 1, then half a cosine down to ``final``.

    Args:
        warmup: Share of training spent warming up.
        final: Factor at the end.

    Raises:
        ValueError: If ``warmup`` is not in [0, 1), or ``final`` not in [0, 1].
    """

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of training, at least 0 and below 1")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final is {self.final}; it is a factor between 0 and 1")

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        done = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class OneCycle:
    """Up along half a cosine from ``initial`` to 1, then down to ``final``.

    The learning rate of Smith and Topin, "Super-Convergence", https://arxiv.org/abs/1708.07120, with the defaults of
    ``torch.optim.lr_scheduler.OneCycleLR``; momentum stays as it is.

    Args:
        warmup: Share of training spent going up.
        initial: Factor at the start.
        final: Factor at the end.

    Raises:
        ValueError: If ``warmup`` is not in (0, 1).
    """

    warmup: float = 0.3
    initial: float = 1 / 25
    final: float = 4e-6

    def __post_init__(self) -> None:
        if not 0 < self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of training, above 0 and below 1")

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return _cosine(self.initial, 1.0, progress / self.warmup)
        return _cosine(1.0, self.final, (progress - self.warmup) / (1 - self.warmup))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
