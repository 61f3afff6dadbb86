"""Runs of a project of Weights & Biases, by its public interface."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dml.compare.facts import curves_of, facts, minutes_of, runs_frame
from dml.compare.logs import CLASSES, CURVES, RETRIEVALS, RunLogs, empty, joined
from dml.compare.per_query import read_classes

_STEP = "trainer/global_step"
_LOGGED = ("train/", "val/", "test/", "epoch/")
_PER_QUERY = "per_query/test.parquet"


def read_wandb(project: str, api: Any = None) -> RunLogs:
    """The runs of a project, the first that was started first.

    Sums over classes, which intervals need, are of the file ``per_query/test.parquet`` of a run, if it was uploaded.

    Args:
        project: ``entity/project``, or a project of your own entity.
        api: ``wandb.Api()``, or what has its ``runs``; by default one that is logged in as the machine is.

    Raises:
        ValueError: If there is no such project, or it holds no run of ``dml``.
    """
    rows: dict[str, dict[str, Any]] = {}
    curves, classes, notes = [], [], list[str]()
    for run in _runs(project, api):
        name = "/".join(run.path)
        config = run.config
        if not {"trainer", "model", "data"} <= set(config):
            notes.append(f"{name} is left out: its configuration is not one of dml")
            continue
        logged, minutes = _curves(name, run)
        of_classes, attributes = _classes(name, run, notes)
        num_gallery = attributes.get("num_gallery")
        rows[name] = facts(config, logged, minutes=minutes, num_gallery=num_gallery)
        curves.append(logged)
        classes.append(of_classes)
    if not rows:
        raise ValueError(f"wandb is {project!r}, which holds no run of dml")
    frames = (joined(curves, CURVES), joined(classes, CLASSES), empty(RETRIEVALS))
    return RunLogs(runs_frame(rows), *frames, notes=tuple(notes))


def _runs(project: str, api: Any) -> Iterator[Any]:
    import wandb  # takes a second, which reading folders should not pay

    try:
        yield from (wandb.Api() if api is None else api).runs(project, order="+created_at")
    except (wandb.errors.Error, ValueError) as error:  # the latter of a project that is not there
        reason = " ".join(str(error).split())
        raise ValueError(f"wandb is {project!r}, which cannot be read: {reason}") from error


def _curves(name: str, run: Any) -> tuple[pd.DataFrame, float]:
    """What was logged, and the minutes of training."""
    rows = [row for row in run.scan_history() if isinstance(row, Mapping)]
    history = pd.DataFrame(rows)
    if _STEP not in history:
        return empty(CURVES), np.nan
    metrics = [column for column in history.columns if str(column).startswith(_LOGGED)]
    # Pictures, tables and histograms are there as mappings.
    numbers = history[metrics].apply(pd.to_numeric, errors="coerce")
    steps = history[_STEP].ffill().fillna(0)
    epochs = pd.to_numeric(history["epoch"], errors="coerce") if "epoch" in history else np.nan
    minutes = minutes_of(history) if "fit_minutes" in history else np.nan
    return curves_of(name, numbers.assign(epoch=epochs, step=steps), metrics), minutes


def _classes(name: str, run: Any, notes: list[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = _downloaded(run, Path(folder))
        if file is None:
            return empty(CLASSES), {}
        try:
            return read_classes(name, file)
        except ValueError as error:
            notes.append(f"{name}: {error}")
            return empty(CLASSES), {}


def _downloaded(run: Any, folder: Path) -> Path | None:
    """The file of the test's queries, of the run's files or its artifacts."""
    for file in run.files(names=[_PER_QUERY]):
        if file.name.endswith(_PER_QUERY):
            with file.download(root=str(folder), replace=True) as opened:
                return Path(opened.name)
    for artifact in reversed(list(run.logged_artifacts())):
        for entry in artifact.manifest.entries:
            if f"/{entry}".endswith("/test.parquet") and artifact.type == "per_query":
                return Path(artifact.get_entry(entry).download(root=str(folder)))
    return None
