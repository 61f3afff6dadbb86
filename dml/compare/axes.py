"""Axes of charts: which values they show, and where their marks are."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

_STEPS = (1, 2, 2.5, 5, 10)


class Axis(NamedTuple):
    """From the lowest value to the highest, with a few round ones in between."""

    low: float
    high: float
    ticks: list[float]

    def share(self, value: float) -> float:
        """How far along the axis a value is: 0 at its beginning, 1 at its end."""
        return (value - self.low) / (self.high - self.low)


def axis(values: Iterable[float], *, num_ticks: int = 5) -> Axis:
    """Spans all values that are numbers, and ends at a mark on both sides."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
    ticks = [float(tick) for tick in MaxNLocator(num_ticks, steps=list(_STEPS)).tick_values(low, high)]
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), ticks)  # which may differ in the last bits
