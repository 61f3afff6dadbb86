"""From what any reader finds of a run to a row of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dml import names
from dml.callbacks.run import CONFIGURED
from dml.compare.logs import RUNS, empty
from dml.compare.protocol import monitored, protocol

GIB = 2**30

TRAINED = ("train/", "epoch/")
"""Beginnings of the metrics that are logged in training only."""


def facts(
    config: Mapping[str, Any],
    curves: pd.DataFrame,
    *,
    minutes: float,
    num_gallery: int | None = None,
    tested_epoch: float | None = None,
) -> dict[str, Any]:
    """Of the columns of :attr:`~dml.compare.logs.RunLogs.runs`.

    Args:
        config: As resolved.
        curves: What the run logged.
        minutes: Of training, NaN if not known.
        num_gallery: Items of the test's gallery, None if not known.
        tested_epoch: Of the weights that were tested, NaN if not known; by default :func:`chosen_epoch`.
    """
    return {
        "data": names.data_name(config),
        "loss": names.loss_name(config),
        "backbone": names.backbone_name(config),
        "seed": names.seed(config),
        "config": json.dumps({key: config[key] for key in CONFIGURED if key in config}),
        "protocol": json.dumps(protocol(config, num_gallery)),
        "epochs": last_epoch(curves) + 1,
        "best_epoch": chosen_epoch(config, curves) if tested_epoch is None else tested_epoch,
        "minutes": minutes,
        "images_per_second": _values(curves, "epoch/images_per_second").mean(),
        "peak_memory": _values(curves, "epoch/peak_memory_gib").max() * GIB,
        "finished": bool(begins(curves, "test/").any()),
    }


def last_epoch(curves: pd.DataFrame) -> float:
    """Of training; NaN if there was none."""
    return float(curves.loc[begins(curves, (*TRAINED, "val/")), "epoch"].astype(np.float64).max())


def chosen_epoch(config: Mapping[str, Any], curves: pd.DataFrame) -> float:
    """The best by the metric that checkpoints are chosen by; the last if there is none, or it was never logged."""
    monitor, more_is_better = monitored(config)
    best = None if monitor is None else best_value(curves, monitor, more_is_better)
    return last_epoch(curves) if best is None else float(best[0])


def best_value(curves: pd.DataFrame, metric: str, more_is_better: bool = True) -> tuple[int, float] | None:
    """Epoch and value where a metric was best first; None if it was never logged."""
    found = curves[curves["metric"] == metric].sort_values("step", kind="stable")
    if found.empty:
        return None
    place = int(found["value"].argmax() if more_is_better else found["value"].argmin())
    return found["epoch"].iloc[place], float(found["value"].iloc[place])


def minutes_of(rows: pd.DataFrame) -> float:
    """Of training, from all that a run has logged in its order: the last number, which is of all parts of the run.

    NaN if there is none, or training went on after it and was killed before it could say.
    """
    said = np.flatnonzero(rows["fit_minutes"].notna())
    metrics = [column for column in rows.columns if str(column).startswith(TRAINED)]
    trained = np.flatnonzero(rows[metrics].notna().any(axis=1))
    if not len(said) or (len(trained) and trained[-1] > said[-1]):
        return np.nan
    return float(rows["fit_minutes"].iloc[said[-1]])


def curves_of(run: str, rows: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """What was logged, from rows with the columns ``epoch``, ``step`` and metrics: the last value at each step.

    A run that went on from a checkpoint has logged some steps twice; the later counts.
    """
    values = rows[list(metrics)].to_numpy(dtype=np.float64, na_value=np.nan)
    row, column = np.nonzero(~np.isnan(values))
    step = rows["step"].to_numpy(dtype=np.int64)[row]
    # Of equal steps of a metric, the last.
    _, place = np.unique((step * len(metrics) + column)[::-1], return_index=True)
    kept = np.sort(len(row) - 1 - place)
    row, column = row[kept], column[kept]
    # Types are those of CURVES when the runs are joined: to set them here takes longer than to read the file.
    return pd.DataFrame(
        {
            "run": run,
            "epoch": rows["epoch"].to_numpy(dtype=np.float64, na_value=np.nan)[row],
            "step": step[kept],
            "metric": np.array(metrics, dtype=object)[column],
            "value": values[row, column],
        }
    )


def begins(curves: pd.DataFrame, beginning: str | tuple[str, ...]) -> pd.Series:
    """Which numbers are of metrics whose names begin so."""
    found = [metric for metric in curves["metric"].unique() if metric.startswith(beginning)]
    return curves["metric"].isin(found)


def runs_frame(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Of the facts of each run."""
    if not rows:
        return empty(RUNS)
    index = pd.Index(list(rows), dtype="string", name="run")
    return pd.DataFrame(list(rows.values()), index=index, columns=list(RUNS)).astype(RUNS)


def _values(curves: pd.DataFrame, metric: str) -> pd.Series:
    return curves.loc[curves["metric"] == metric, "value"]
