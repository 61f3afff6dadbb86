"""Learning-rate schedules as functions of the share of training that is done.

A schedule written in steps or epochs goes wrong when the length of a run is changed on the command line; these stretch
with it. The value is a factor of the optimizer's learning rate.
"""

import math
from collections.abc import Sequence
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


@dataclass(frozen=True)
class MultiStep:
    """Linear warm-up from 0 to 1, then a factor of ``gamma`` at each milestone.

    Args:
        milestones: Where the rate falls, in parts of ``length``.
        gamma: What it is multiplied by each time.
        length: Of training, in the unit of the milestones: with 100, they read as epochs of a run of 100.
        warmup: Share of training spent warming up.

    Raises:
        ValueError: If milestones do not rise or lie outside of training, ``gamma`` is not in (0, 1), or ``warmup`` is
            not in [0, 1).
    """

    milestones: Sequence[float]
    gamma: float = 0.1
    length: float = 1.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        milestones = list(self.milestones)
        if milestones != sorted(set(milestones)) or not all(0 < at < self.length for at in milestones):
            raise ValueError(
                f"milestones are {milestones}; they must rise, between 0 and length, which is {self.length}"
            )
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma is {self.gamma}; it is a factor above 0 and below 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of training, at least 0 and below 1")

    def __call__(self, progress: float) -> float:
        # A milestone of 30 in 100 is passed at 0.3 of training, however that was rounded.
        passed = sum(progress * self.length >= milestone - 1e-9 * self.length for milestone in self.milestones)
        factor: float = self.gamma**passed
        return factor * min(1.0, progress / self.warmup) if self.warmup else factor


@dataclass(frozen=True)
class Constant:
    """The learning rate as it is, for a group of parameters in a run that has a schedule."""

    def __call__(self, progress: float) -> float:
        return 1.0


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
