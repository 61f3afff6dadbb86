"""What classes and seeds say of means: intervals, and differences that are not chance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from dml.metrics.uncertainty import Interval, bootstrap_classes, flip_classes

SIGNIFICANT = 0.05
"""A p-value below is of a difference that is not chance."""

_Floats = npt.NDArray[np.float64]


class ClassSums(NamedTuple):
    """Of a measure, for each class: label, sum over its queries as a mean over seeds, and how many they are."""

    labels: npt.NDArray[np.int64]
    sums: _Floats
    counts: _Floats

    def has_queries_of(self, other: "ClassSums") -> bool:
        """Whether both have the same classes, with as many queries."""
        return np.array_equal(self.labels, other.labels) and np.array_equal(self.counts, other.counts)


def over_seeds(classes: pd.DataFrame, runs: Sequence[str]) -> ClassSums | None:
    """Of runs that differ in the seed; None if one of them has none, or other queries than the others.

    Args:
        classes: Of :class:`~dml.compare.logs.RunLogs`, and of one measure.
        runs: Of one row.
    """
    found = [_of_run(classes[classes["run"] == run]) for run in runs]
    if not all(len(one.labels) and one.has_queries_of(found[0]) for one in found):
        return None
    return found[0]._replace(sums=np.mean([one.sums for one in found], axis=0))


def interval(of_row: ClassSums | None, confidence: float) -> Interval | None:
    """Of the mean over queries, by a bootstrap over classes; None if it is not to be had."""
    if of_row is None or len(of_row.labels) < 2:
        return None
    return bootstrap_classes(of_row.sums, of_row.counts, confidence=confidence)


def p_over_classes(rows: Sequence[ClassSums | None]) -> _Floats:
    """Of no difference from the first row, by flipping the signs of classes; NaN where the queries are not the same.

    There are so many flips that the smallest p-value stays below 0.001 when it is multiplied by the number of rows.
    """
    first, *others = rows
    found = np.full(len(rows), np.nan)
    differences = {
        place: of_row.sums - first.sums
        for place, of_row in enumerate(others, start=1)
        if of_row is not None and first is not None and of_row.has_queries_of(first)
    }
    if differences:
        stacked = np.stack(list(differences.values()), axis=1)
        found[list(differences)] = flip_classes(stacked, resamples=max(10_000, 2_000 * len(rows)))
    return found


def p_over_seeds(difference: pd.Series, variance: pd.Series, seeds: pd.Series) -> _Floats:
    """Of no difference from the first row, by Welch's test, which asks for no common spread; NaN with a single seed.

    Args:
        difference: Of the mean of each row from that of the first.
        variance: Of the mean of each row: that of its seeds by their number.
        seeds: Of each row.
    """
    error, freedom = variance + variance.iloc[0], variance**2 / (seeds - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2 * stats.t.sf(difference.abs() / np.sqrt(error), error**2 / (freedom + freedom.iloc[0]))
    # Runs that all have one value, as those of a loss that does not train.
    return np.where(error == 0, np.where(difference == 0, 1.0, 0.0), found)


def p_over_both(classes: _Floats, seeds: _Floats) -> _Floats:
    """Of no difference on other classes or none with other seeds: the larger, then for as many tests as there are.

    Where it is not known of seeds, that of classes.
    """
    return holm(np.where(np.isnan(classes), np.nan, np.fmax(classes, seeds)))


def told_apart(rows: pd.DataFrame) -> pd.Series:
    """Which rows differ from the first by more than other classes and other seeds would explain.

    Args:
        rows: See :func:`dml.compare.table.compare`.
    """
    return (rows["p_holm"] < SIGNIFICANT) & rows["p_seeds"].notna()


def holm(p_values: _Floats) -> _Floats:
    """P-values for as many tests as there are, those that are NaN not counted (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")  # NaN come last
    tests = int((~np.isnan(p_values)).sum())
    factors = np.maximum(tests - np.arange(len(p_values)), 1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def _of_run(classes: pd.DataFrame) -> ClassSums:
    ordered = classes.sort_values("label")
    return ClassSums(*(ordered[name].to_numpy(kind) for name, kind in _COLUMNS.items()))


_COLUMNS = {"label": np.int64, "sum": np.float64, "count": np.float64}
