"""One row for each way to train, with its spread over seeds, its interval and its difference from the first."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dml.compare import notes, significance
from dml.compare.facts import best_value
from dml.compare.logs import RunLogs
from dml.compare.protocol import OTHER_CHECKPOINT
from dml.compare.significance import ClassSums
from dml.compare.splits import split
from dml.compare.variants import Variant, best_by_validation, by_validation, listed, variants

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
      the values of queries averaged over seeds; ``difference`` from the first row; ``difference_error``, its
      standard error over seeds, NaN if one of the two has a single seed; ``p_classes`` as that of
      :func:`~dml.metrics.uncertainty.paired_test` of such averages; ``p_seeds`` of Welch's test over seeds, NaN where
      the error is; and ``p_holm``, of the larger of the two, which allows for how many rows are tested. A difference
      has a star if ``p_holm`` is below 0.05, and none with a single seed, where it is of the classes alone;
    - ``val``, the best value of ``monitor``, and ``best_epoch``, where it was: means over seeds;
    - ``minutes``, ``images_per_second`` and ``peak_memory`` (bytes), means over seeds.

    What is not known is NaN. The first row is what the others are tested against: by default the best on validation,
    since the best on the test is partly the luckiest. The others are sorted by ``measure``, best first.

    Args:
        logs: Of any reader.
        measure: A test metric.
        monitor: A validation metric, of which more is better, but for a loss.
        first: A loss, the best row of which comes first, whatever validation says.
        best_of_variants: Keep of each loss and backbone the variant with the best ``val`` only.
        confidence: Of the intervals.

    Raises:
        ValueError: If no run has been tested, or a metric or loss is not there.
    """
    values = _test_values(logs)
    _check(logs, values, measure, monitor, first)
    runs, of_logs = _with_measure(logs, values[measure], measure)
    classes = logs.classes[logs.classes["measure"] == measure]
    more_is_better = _more_is_better(monitor)
    runs = runs.join(_validated(logs.curves, monitor, more_is_better))
    found = []
    for part in split(runs):
        chosen, of_runs = variants(part.runs)
        if best_of_variants:
            chosen, of_choice = best_by_validation(chosen, more_is_better)
            of_runs += of_choice
        chosen, of_order = _ordered(chosen, values[measure], monitor, first)
        rows, of_rows = _rows(chosen, values, classes, measure, confidence)
        kept = pd.concat([variant.runs for variant in chosen])
        of_kept = notes.copies(kept) + notes.tested_elsewhere(kept, monitor)
        found.append(Comparison(part.protocol, part.name, rows, (*part.notes, *of_runs, *of_order, *of_rows, *of_kept)))
    return [found[0]._replace(notes=(*of_logs, *found[0].notes)), *found[1:]]


def _check(logs: RunLogs, values: pd.DataFrame, measure: str, monitor: str, first: str | None) -> None:
    if values.empty:
        raise ValueError(
            f"no run of {len(logs.runs)} has been tested; dml test, or dml fit --test true, makes test values"
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
    found = list(logs.notes)
    for without, why in ((~logs.runs["finished"], "has not been tested"), (logs.runs["finished"], f"has no {measure}")):
        lacking = logs.runs.index[without & ~has]
        if len(lacking):
            what = why if len(lacking) == 1 else why.replace("has", "have", 1)
            found.append(
                f"{len(lacking)} run{'s' * (len(lacking) > 1)} {what}, and so not in a table: {listed(lacking)}"
            )
    return logs.runs[has], found


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


def _more_is_better(monitor: str) -> bool:
    return not monitor.endswith(("loss", "gap"))


def _ordered(
    found: list[Variant], values: pd.Series, monitor: str, first: str | None
) -> tuple[list[Variant], list[str]]:
    """The one that others are tested against and then the best first, and notes of how the former was chosen."""
    ordered = sorted(found, key=lambda variant: -float(values[variant.runs.index].mean()))
    if len(ordered) == 1:
        return ordered, []
    wanted = [variant for variant in ordered if variant.loss == first]
    told = [] if wanted or first is None else [f"no run of {first} is here"]
    reference, choice = _reference(wanted or ordered, monitor, f" of {first}" if wanted else "")
    if len(wanted) != 1:
        told.append(f"first row: {choice}")
    told += notes.validated_apart(by_validation(ordered), monitor)
    return [reference, *(variant for variant in ordered if variant is not reference)], told


def _reference(ordered: list[Variant], monitor: str, whose: str) -> tuple[Variant, str]:
    """Of some, best on the test first, the best on validation, and how it was chosen."""
    groups = by_validation([variant for variant in ordered if variant.runs["val"].notna().any()])
    if not groups:
        return ordered[0], "best on the test, as no run has validated, so p-values are too small"
    # The best on the test would make p-values too small: it is first because it was lucky, too.
    sign = 1 if _more_is_better(monitor) else -1
    best = max(
        groups[0],  # of a run tested at two checkpoints of one epoch, that which it saved itself
        key=lambda one: (sign * float(one.runs["val"].mean()), f"model.{OTHER_CHECKPOINT}" not in one.settings),
    )
    return best, f"best on validation{whose}, by {monitor}"


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
    table = _with_tests(pd.DataFrame(rows), sums, measure)
    return table, notes.gaps(found, sums) + notes.single_seeds(found, table)


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
    difference = (rows[measure] - rows[measure].iloc[0]).mask(rows.index == 0)
    variance = rows[f"{measure}_std"] ** 2 / rows["seeds"]
    classes = significance.p_over_classes(sums)
    seeds = significance.p_over_seeds(difference, variance, rows["seeds"])
    new = {
        "difference": difference,
        "difference_error": np.sqrt(variance + variance.iloc[0]).mask(rows.index == 0),
        "p_classes": classes,
        "p_seeds": seeds,
        "p_holm": significance.p_over_both(classes, seeds),
    }
    place = rows.columns.to_list().index("high") + 1
    for offset, (name, column) in enumerate(new.items()):
        rows.insert(place + offset, name, column)
    return rows
