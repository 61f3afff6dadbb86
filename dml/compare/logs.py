"""What is known of runs: what every reader gives, and everything else takes."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

RUNS = {
    "data": "string",
    "loss": "string",
    "backbone": "string",
    "seed": "Int64",
    "config": "string",
    "protocol": "string",
    "epochs": "Int64",
    "best_epoch": "Int64",
    "minutes": "float64",
    "images_per_second": "float64",
    "peak_memory": "float64",
    "finished": "bool",
}
"""Columns of :attr:`RunLogs.runs`, and their types."""

CURVES = {"run": "string", "epoch": "Int64", "step": "int64", "metric": "string", "value": "float64"}
"""Columns of :attr:`RunLogs.curves`, and their types."""

CLASSES = {"run": "string", "measure": "string", "label": "int64", "sum": "float64", "count": "int64"}
"""Columns of :attr:`RunLogs.classes`, and their types."""

RETRIEVALS = {
    "run": "string",
    "section": "string",
    "query": "int64",
    "query_path": "string",
    "query_image": "object",
    "average_precision": "float64",
    "place": "int64",
    "path": "string",
    "image": "object",
    "similarity": "float64",
    "is_right": "bool",
}
"""Columns of :attr:`RunLogs.retrievals`, and their types."""


class RunLogs(NamedTuple):
    """Runs, what they logged, and what their test queries got."""

    runs: pd.DataFrame
    """A row for each run, the first that was started first; the index is its folder or ``entity/project/id``.

    ``config`` is the configuration and ``protocol`` what test values depend on besides the model, both as JSON;
    ``best_epoch`` is that of the weights that were tested, null if it is not known; ``peak_memory`` is in bytes, and
    ``finished`` says whether the run has been tested.
    """

    curves: pd.DataFrame
    """A row for each number that was logged."""

    classes: pd.DataFrame
    """Sum and number of the values of the test queries of each class, for each run and measure."""

    retrievals: pd.DataFrame
    """Queries and their nearest neighbours with small PNG images, the nearest at ``place`` 0."""

    notes: tuple[str, ...] = ()
    """What a reader could not use, and why."""


def empty(columns: dict[str, str]) -> pd.DataFrame:
    """A frame of no rows with such columns, for example :data:`CURVES`; :data:`RUNS` get an index named ``run``."""
    frame = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})
    return frame.rename_axis("run") if columns is RUNS else frame


def no_logs() -> RunLogs:
    """Logs of no run."""
    return RunLogs(empty(RUNS), empty(CURVES), empty(CLASSES), empty(RETRIEVALS))


def together(parts: Sequence[RunLogs]) -> RunLogs:
    """The runs of several readers; of a run that is in several, what the first of them says."""
    new, seen = [], set[str]()
    for part in parts:
        runs = part.runs.index[~part.runs.index.isin(seen)]
        new.append(only(part, list(runs)))
        seen.update(runs)
    filled = [part.runs for part in new if len(part.runs)]
    return RunLogs(
        pd.concat(filled) if filled else empty(RUNS),
        joined([part.curves for part in new], CURVES),
        joined([part.classes for part in new], CLASSES),
        joined([part.retrievals for part in new], RETRIEVALS),
        tuple(note for part in parts for note in part.notes),
    )


def joined(frames: Sequence[pd.DataFrame], columns: dict[str, str]) -> pd.DataFrame:
    """The rows of all frames, which have such columns."""
    filled = [frame for frame in frames if len(frame)]  # pandas takes types of empty ones, too
    return pd.concat(filled, ignore_index=True).astype(columns) if filled else empty(columns)


def only(logs: RunLogs, runs: Sequence[str]) -> RunLogs:
    """The logs of some of the runs."""
    curves, classes, retrievals = (
        frame[frame["run"].isin(runs)] for frame in (logs.curves, logs.classes, logs.retrievals)
    )
    return RunLogs(logs.runs.loc[list(runs)], curves, classes, retrievals, logs.notes)
