"""Learning curves: a validation measure by step, its mean and its range over seeds."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from dml.compare.axes import Axis, axis
from dml.compare.logs import RunLogs
from dml.compare.table import Comparison

SIDE = 1000
"""Of the square that paths are drawn in."""

_POINTS = 200  # of a line; more cannot be told apart on a screen


class Curve(NamedTuple):
    """A row's mean over seeds, the range of the seeds, and the epoch that was chosen."""

    row: int
    points: pd.DataFrame
    """Columns ``step``, ``epoch``, ``mean``, ``low`` and ``high``."""

    line: str
    band: str
    """Both as SVG paths; the band is empty if there is one seed."""

    chosen: tuple[float, float] | None
    """Step and mean at the best epoch, if there is one."""


class Chart(NamedTuple):
    """Learning curves, in the order of the table."""

    x: Axis
    y: Axis
    curves: list[Curve]


def learning_curves(logs: RunLogs, comparison: Comparison, monitor: str) -> Chart | None:
    """One curve for each row whose runs have logged the measure; none at all if no run has.

    Args:
        logs: Have the values by step.
        comparison: Whose rows are drawn.
        monitor: A validation measure.
    """
    logged = logs.curves[logs.curves["metric"] == monitor]
    found = {}
    for row, runs in enumerate(comparison.rows["runs"]):
        points = _over_seeds(logged[logged["run"].isin(runs)])
        if len(points):
            found[row] = points
    if not found:
        return None
    every = pd.concat(list(found.values()))
    x, y = axis([0.0, *every["step"]]), axis([*every["low"], *every["high"]])
    x = Axis(x.low, float(every["step"].max() or 1), [tick for tick in x.ticks if tick <= every["step"].max()])
    return Chart(x, y, [_curve(row, points, comparison, x, y) for row, points in found.items()])


def _over_seeds(logged: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest of the evaluations that are the first of their runs, of the second and so on.

    They go by their order, not by their step, since the number of steps of an epoch may differ between seeds.
    """
    once = logged.dropna(subset=["value"]).drop_duplicates(["run", "step"], keep="last").sort_values("step")
    once = once.astype({"epoch": "float64"}).assign(place=once.groupby("run").cumcount())
    found = once.groupby("place").agg(
        step=("step", "mean"),
        epoch=("epoch", "mean"),
        mean=("value", "mean"),
        low=("value", "min"),
        high=("value", "max"),
    )
    kept = np.unique(np.linspace(0, len(found) - 1, min(len(found), _POINTS)).round().astype(int))
    return found.iloc[kept].reset_index(drop=True)


def _curve(row: int, points: pd.DataFrame, comparison: Comparison, x: Axis, y: Axis) -> Curve:
    there = [_point(x, y, *pair) for pair in zip(points["step"], points["high"], strict=True)]
    back = [_point(x, y, *pair) for pair in zip(points["step"], points["low"], strict=True)][::-1]
    line = "M" + "L".join(_point(x, y, *pair) for pair in zip(points["step"], points["mean"], strict=True))
    has_range = bool((points["high"] > points["low"]).any())
    band = f"M{'L'.join(there + back)}Z" if has_range else ""
    return Curve(row, points, line, band, _chosen(points, comparison.rows["best_epoch"].iloc[row]))


def _chosen(points: pd.DataFrame, best_epoch: float) -> tuple[float, float] | None:
    known = points.dropna(subset=["epoch"])
    if pd.isna(best_epoch) or known.empty:
        return None
    step, mean = (float(np.interp(float(best_epoch), known["epoch"], known[name])) for name in ("step", "mean"))
    return step, mean


def _point(x: Axis, y: Axis, step: float, value: float) -> str:
    return f"{SIDE * x.share(step):.1f} {SIDE * (1 - y.share(value)):.1f}"
