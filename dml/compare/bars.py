"""Bars of test measures, with their intervals."""

import math
from typing import NamedTuple

import pandas as pd

from dml.compare.axes import Axis, axis
from dml.compare.logs import RunLogs
from dml.compare.table import Comparison


class Bar(NamedTuple):
    """A row's mean over seeds; what is not known is NaN."""

    row: int
    value: float
    low: float
    high: float
    seeds: list[float]
    """The values of the runs, one of each seed; empty if the whiskers show their spread."""


class Panel(NamedTuple):
    """The bars of one measure, in the order of the table."""

    measure: str
    axis: Axis
    bars: list[Bar]
    is_interval: bool
    """Whether the whiskers are the interval over classes; else they are a standard deviation to each side."""


def measures(rows: pd.DataFrame, measure: str) -> list[str]:
    """Names of the test measures that the rows of a comparison have, the one they are compared by first."""
    found = [str(name)[: -len("_std")] for name in rows.columns if str(name).endswith("_std")]
    return sorted((name for name in found if name in rows), key=lambda name: name != measure)


def panels(logs: RunLogs, comparison: Comparison, measure: str, *, max_panels: int = 7) -> list[Panel]:
    """Bars of the measure that rows are compared by, with intervals over classes, and of the next few others.

    Args:
        logs: Have the values of each run.
        comparison: Whose rows are drawn.
        measure: What they are compared by.
        max_panels: At most so many measures.
    """
    chosen = measures(comparison.rows, measure)[:max_panels]
    return [_panel(logs, comparison.rows, name, is_interval=name == measure) for name in chosen]


def _panel(logs: RunLogs, rows: pd.DataFrame, measure: str, *, is_interval: bool) -> Panel:
    tested = logs.curves[logs.curves["metric"] == measure].groupby("run")["value"].last()
    bars = []
    for number, row in enumerate(rows.to_dict("records")):
        value, spread = float(row[measure]), float(row[f"{measure}_std"])
        ends = (row["low"], row["high"]) if is_interval else (value - spread, value + spread)
        seeds = tested.reindex(row["runs"]).dropna().tolist() if is_interval else []
        bars.append(Bar(number, value, float(ends[0]), float(ends[1]), seeds))
    shown = [end for bar in bars for end in (bar.value, bar.low, bar.high, *bar.seeds) if math.isfinite(end)]
    scale = axis([0.0, *shown], num_ticks=5 if is_interval else 3)  # a bar begins at 0, or its length would mislead
    return Panel(measure, scale, bars, is_interval)
