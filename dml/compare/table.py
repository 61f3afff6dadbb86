"""One row for each way to train, with its spread over seeds, its interval and its difference from the first."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dml.compare import significance
from dml.compare.facts import best_value
from dml.compare.logs import RunLogs
from dml.compare.significance import ClassSums
from dml.compare.splits import split
from dml.compare.variants import Variant, best_by_validation, listed, variants

_NO_MEASURES = ("_low", "_high", "/unanswerable")
_COSTS = ("minutes", "images_per_second", "peak_memory")


class Comparison(NamedTuple):
    """Runs that may be compared, because their test values are of one protocol."""

    protocol: dict[str, Any]
    """What the rows share."""

    name: str
    """Of the data set, and what tells the protocol from others that are compared."""

    rows: pd.DataFrame
    """A row for each variant; see :func:`compare`."""

    notes: tuple[str, ...] = ()
    """What a reader of the table must know."""


def compare(
    logs: RunLogs,
    *,
    measure: str = "test/AP",
    monitor: str = "val/AP",
    first: str | None = None,
    best_of_variants: bool = False,
    confidence: float = 0.95,
) -> list[Comparison]:
    """Tables of the runs that have been tested, one for each protocol: values of two protocols are never in one.

    A row is of a variant, the runs that differ in nothing but the seed. Its columns:

    - ``data``, ``loss``, ``backbone``; ``variant``, the settings in which it differs from others of the same loss and
      backbone; ``seeds``, how many there are, and ``runs``, a list of their names;
    - each test measure by its name, ``test/AP``: the mean over seeds, and ``test/AP_std``, their standard deviation;
    - of ``measure``, ``low`` and ``high``: the interval of :func:`~dml.metrics.uncertainty.bootstrap` over classes, of
      the values of queries averaged over seeds; ``difference`` from the first row, ``p_value`` as that of
      :func:`~dml.metrics.uncertainty.paired_test` of such averages, and ``p_holm``, which allows for how many rows are
      tested. They say how far the test classes carry; ``test/AP_std`` is of the seeds alone;
    - ``val``, the best value of ``monitor``, and ``best_epoch``, where it was: means over seeds;
    - ``minutes``, ``images_per_second`` and ``peak_memory`` (bytes), means over seeds.

    What is not known is NaN. Rows are sorted by ``measure``, best first.

    Args:
        logs: Of any reader.
        measure: A test metric.
        monitor: A validation metric, of which more is better, but for a loss.
        first: A loss, the best row of which comes first, and is what the others are tested against.
        best_of_variants: Keep of each loss and backbone the variant with the highest ``val`` only.
        confidence: Of the intervals.

    Raises:
        ValueError: If no run has been tested, or a metric or loss is not there.
    """
    values = _test_values(logs)
    _check(logs, values, measure, monitor, first)
    runs, notes = _with_measure(logs, values[measure], measure)
    classes = logs.classes[logs.classes["measure"] == measure]
    more_is_better = not monitor.endswith(("loss", "gap"))
    runs = runs.join(_validated(logs.curves, monitor, more_is_better))
    found = []
    for part in split(runs):
        chosen, of_runs = variants(part.runs)
        if best_of_variants:
            chosen, of_choice = best_by_validation(chosen)
            of_runs += of_choice
        chosen = _ordered(chosen, values[measure], first)
        rows, of_rows = _rows(chosen, values, classes, measure, confidence)
        if first is not None and chosen[0].loss != first:
            of_rows.append(f"no run of {first} is here: the best row is first")
        of_rows += _tested_elsewhere(pd.concat([variant.runs for variant in chosen]), monitor)
        found.append(Comparison(part.protocol, part.name, rows, (*part.notes, *of_runs, *of_rows)))
    return [found[0]._replace(notes=(*notes, *found[0].notes)), *found[1:]]


def _check(logs: RunLogs, values: pd.DataFrame, measure: str, monitor: str, first: str | None) -> None:
    if values.empty:
        raise ValueError(
            f"logs are of {len(logs.runs)} runs, none of which has been tested; dml test makes test values"
        )
    if measure not in values:
        raise ValueError(f"measure is {measure!r}; the runs have {values.columns.tolist()}")
    validated = [name for name in logs.curves["metric"].unique() if name.startswith("val/")]
    if not monitor.startswith("val/") or (validated and monitor not in validated):
        raise ValueError(f"monitor is {monitor!r}, which must be a validation metric; the runs have {validated}")
    losses = sorted(logs.runs["loss"].unique())
    if first is not None and first not in losses:
        raise ValueError(f"first is {first!r}; the losses are {losses}")


def _with_measure(logs: RunLogs, values: pd.Series, measure: str) -> tuple[pd.DataFrame, list[str]]:
    """The runs that have a test value, and notes of the others and of what was read."""
    has = logs.runs.index.isin(values.dropna().index)
    notes = list(logs.notes)
    for without, why in ((~logs.runs["finished"], "has not been tested"), (logs.runs["finished"], f"has no {measure}")):
        lacking = logs.runs.index[without & ~has]
        if len(lacking):
            what = why if len(lacking) == 1 else why.replace("has", "have", 1)
            notes.append(
                f"{len(lacking)} run{'s' * (len(lacking) > 1)} {what}, and so not in a table: {listed(lacking)}"
            )
    return logs.runs[has], notes


def _test_values(logs: RunLogs) -> pd.DataFrame:
    """The last value of each test metric ``[runs, metrics]``, without ends of intervals and counts.

    They are in the order in which they are measured, where that is known.
    """
    tested = logs.curves[logs.curves["metric"].str.startswith("test/")]
    tested = tested[~tested["metric"].str.endswith(_NO_MEASURES)]
    values = tested.pivot_table(index="run", columns="metric", values="value", aggfunc="last", sort=False)
    measured = [name for name in logs.classes["measure"].unique() if name in values]
    return values[list(dict.fromkeys([*measured, *values.columns]))]


def _validated(curves: pd.DataFrame, monitor: str, more_is_better: bool) -> pd.DataFrame:
    """``val`` and ``val_epoch`` of each run that has validated."""
    of_monitor = curves[curves["metric"] == monitor]
    best = {run: best_value(rows, monitor, more_is_better) for run, rows in of_monitor.groupby("run")}
    frame = pd.DataFrame.from_dict(best, orient="index", columns=["val_epoch", "val"])
    return frame.astype({"val_epoch": "Int64", "val": "float64"})


def _ordered(found: list[Variant], values: pd.Series, first: str | None) -> list[Variant]:
    """Best first, but for the one that others are tested against."""

    def place(variant: Variant) -> float:
        return -float(values[variant.runs.index].mean())

    ordered = sorted(found, key=place)
    reference = next((variant for variant in ordered if variant.loss == first), ordered[0])
    return [reference, *(variant for variant in ordered if variant is not reference)]


def _rows(
    found: list[Variant], values: pd.DataFrame, classes: pd.DataFrame, measure: str, confidence: float
) -> tuple[pd.DataFrame, list[str]]:
    """The table, and notes of what could not be computed."""
    sums = [significance.over_seeds(classes, list(variant.runs.index)) for variant in found]
    values = values.loc[_all_runs(found)].dropna(axis="columns", how="all")
    rows = []
    for variant, of_row in zip(found, sums, strict=True):
        limits = significance.interval(of_row, confidence)
        rows.append(
            _facts(variant)
            | _measured(values.loc[variant.runs.index])
            | {"low": limits.low if limits else np.nan, "high": limits.high if limits else np.nan}
            | _training(variant)
        )
    table = pd.DataFrame(rows)
    return _with_tests(table, sums, measure), _gaps(found, sums)


def _all_runs(found: list[Variant]) -> list[str]:
    return [run for variant in found for run in variant.runs.index]


def _facts(variant: Variant) -> dict[str, Any]:
    return {
        "data": variant.runs["data"].iloc[0],
        "loss": variant.loss,
        "backbone": variant.backbone,
        "variant": variant.text,
        "seeds": len(variant.runs),
        "runs": list(variant.runs.index),
    }


def _measured(values: pd.DataFrame) -> dict[str, float]:
    """Mean of each measure over seeds, NaN if one of them lacks it, and standard deviation."""
    found: dict[str, float] = {}
    for name, value in values.items():
        found |= {str(name): value.mean(skipna=False), f"{name}_std": value.std(ddof=1, skipna=False)}
    return found


def _training(variant: Variant) -> dict[str, float]:
    of_runs = variant.runs.assign(best_epoch=variant.runs["val_epoch"])
    return {name: float(of_runs[name].astype(np.float64).mean()) for name in ("val", "best_epoch", *_COSTS)}


def _with_tests(rows: pd.DataFrame, sums: list[ClassSums | None], measure: str) -> pd.DataFrame:
    """With the columns that compare a row with the first, which has none of its own."""
    p_values = np.array([np.nan, *(significance.p_value(of_row, sums[0]) for of_row in sums[1:])])
    differences = (rows[measure] - rows[measure].iloc[0]).mask(rows.index == 0)
    new = {"difference": differences, "p_value": p_values, "p_holm": significance.holm(p_values)}
    place = rows.columns.to_list().index("high") + 1
    for offset, (name, column) in enumerate(new.items()):
        rows.insert(place + offset, name, column)
    return rows


def _gaps(found: list[Variant], sums: list[ClassSums | None]) -> list[str]:
    """Notes of rows without an interval or a test."""
    without = [variant.name for variant, of_row in zip(found, sums, strict=True) if of_row is None]
    notes = []
    if without:
        notes.append(f"no interval and no test without per_query/test.parquet of the same queries: {listed(without)}")
    others = [
        variant.name
        for variant, of_row in zip(found, sums, strict=True)
        if of_row is not None and sums[0] is not None and not of_row.has_queries_of(sums[0])
    ]
    if others:
        notes.append(f"not tested against {found[0].name}, whose test queries are others: {listed(others)}")
    return notes


def _tested_elsewhere(runs: pd.DataFrame, monitor: str) -> list[str]:
    """A note of runs that were not tested at their best epoch."""
    apart = runs[(runs["best_epoch"] != runs["val_epoch"]).fillna(False)]
    if apart.empty:
        return []
    told = [f"{run} (tested {row['best_epoch']}, best {row['val_epoch']})" for run, row in apart.iterrows()]
    return [f"tested at another epoch than the best by {monitor}: {listed(told)}"]
