"""Runs from their folders."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dml.compare.facts import begins, curves_of, facts, minutes_of, runs_frame
from dml.compare.kept import is_kept, read_kept
from dml.compare.logs import CLASSES, CURVES, RETRIEVALS, RunLogs, empty, joined, only, together
from dml.compare.pairs import Folder, Pair, pairs
from dml.compare.per_query import read_classes
from dml.compare.protocol import OTHER_CHECKPOINT
from dml.compare.variants import listed

_KEYS = ("epoch", "step", "fit_minutes")
_NO_CLASSES = empty(CLASSES)
# The one in C takes a tenth of the time, and is not everywhere.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_folders(paths: Sequence[str | Path], *, with_retrievals: bool = True) -> RunLogs:
    """All runs under some folders, at any depth, the first that was started first; those of kept logs before others.

    The folder of a run holds ``config.yaml`` and ``metrics.csv``, and of a test ``per_query/test.parquet``. What
    ``dml test`` measured of the checkpoint that validation chose belongs to the run that made it, if that is among
    these and has not been tested in the same way itself. Tested in another way, or at another checkpoint, it is another
    run, with the training of the first; its configuration then says which checkpoint, as ``model.other_checkpoint``.
    Of a run that is among logs that :func:`~dml.compare.keep` has written, too, its folder counts.

    Args:
        paths: Of the folders.
        with_retrievals: Whether to read the pictures of retrievals, which take the most space.

    Raises:
        ValueError: If a path is no folder, or holds neither runs nor kept logs, or kept logs are damaged.
    """
    notes: list[str] = []
    metrics: dict[Path, tuple[Path, list[str]]] = {}
    kept: dict[Path, Path] = {}
    for path in paths:
        of_path, kept_there = _under(path)
        metrics |= {folder.resolve(): (folder, files) for folder, files in of_path.items()}
        kept |= {folder.resolve(): folder for folder in kept_there}
    read = [_read_or_note(folder, files, notes) for folder, files in metrics.values()]
    folders = sorted((folder for folder in read if folder is not None), key=lambda folder: folder.started)
    logs = _logs(pairs(folders, notes), notes, with_retrievals)
    return together([*(_but_runs(read_kept(folder), logs, folder) for folder in kept.values()), logs])


def _but_runs(kept: RunLogs, logs: RunLogs, folder: Path) -> RunLogs:
    """Kept logs without runs whose folders were read: they may have gone on since."""
    both = kept.runs.index[kept.runs.index.isin(logs.runs.index)]
    if both.empty:
        return kept
    note = f"what {folder} keeps is left out where there is a folder of that name: {listed(both)}"
    return only(kept, list(kept.runs.index.difference(both, sort=False)))._replace(notes=(note,))


def _logs(found: Sequence[Pair], notes: list[str], with_retrievals: bool) -> RunLogs:
    rows: dict[str, dict[str, Any]] = {}
    curves, classes, retrievals = [], [], []
    for pair in found:
        run, test, name = pair.run, pair.test, pair.name
        logged = run.curves if run is test else pd.concat([_but_tests(run.curves), test.of_test()])
        config = run.config if run is test else {**run.config, **_tested_as(test.config, run.config)}
        if pair.checkpoint is not None:
            config = {**config, "model": {**config["model"], OTHER_CHECKPOINT: pair.checkpoint}}
        rows[name] = facts(
            config, logged, minutes=run.minutes, num_gallery=test.num_gallery, tested_epoch=pair.tested_epoch
        )
        if pair.checkpoint is not None and pair.tested_epoch != run.chosen_epoch:
            # Validated, too, were those weights at that epoch only.
            logged = logged[~begins(logged, "val/") | (logged["epoch"] == pair.tested_epoch)]
        curves.append(logged.assign(run=name))
        classes.append(test.classes.assign(run=name))
        pictures = test.path / "retrievals" / "test.parquet"
        if with_retrievals and pictures.is_file():
            retrievals.append(_retrievals(name, pictures, notes))
    frames = (joined(curves, CURVES), joined(classes, CLASSES), joined(retrievals, RETRIEVALS))
    return RunLogs(runs_frame(rows), *frames, notes=tuple(notes))


def _but_tests(curves: pd.DataFrame) -> pd.DataFrame:
    return curves[~begins(curves, "test/")]


def _tested_as(tested: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a test, whose weights are not those that training began with."""
    embedder = {**tested["model"]["embedder"]}
    started = trained["model"]["embedder"].get("init_args") or {}
    weights = {name: started[name] for name in ("pretrained", "weights") if name in started}
    embedder["init_args"] = {**(embedder.get("init_args") or {}), **weights}
    seed = {"seed_everything": trained.get("seed_everything")}
    return {**tested, **seed, "model": {**tested["model"], "embedder": embedder}}


def _under(path: str | Path) -> tuple[dict[Path, list[str]], list[Path]]:
    """Files of metrics of each run under a folder, and the folders with kept logs."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"paths has {str(path)!r}, which is no folder; it must hold folders of runs, or kept logs")
    runs: dict[Path, list[str]] = {}
    kept = []
    for name, folders, files in os.walk(root):
        folders.sort()
        where = Path(name)
        if is_kept(where):
            kept.append(where)
        logged = [file for file in files if re.fullmatch(r"metrics(\.\d+)?\.csv", file)]
        if "config.yaml" in files and logged:
            folders.clear()  # of its own: checkpoints and pictures
            runs[where] = sorted(logged, key=_part)
    if not runs and not kept:
        raise ValueError(
            f"paths has {str(path)!r}, which holds no run: no folder with config.yaml and metrics.csv, and none with "
            "what --keep writes"
        )
    return runs, kept


def _read_or_note(folder: Path, files: list[str], notes: list[str]) -> Folder | None:
    try:
        return _read(folder, files, notes)
    except ValueError as error:
        notes.append(f"{folder} is left out: {error}")
        return None


def _part(name: str) -> float:
    """Its place among the parts of a run that went on: 1, 2, ..., and the last without a number."""
    number = re.search(r"\d+", name)
    return float(number[0]) if number else np.inf


def _read(folder: Path, files: list[str], notes: list[str]) -> Folder:
    """A run.

    Raises:
        ValueError: If its configuration or metrics are not those of a run of ``dml``.
    """
    name, config = str(folder), _config(folder / "config.yaml")
    rows = pd.concat([_csv(folder / file) for file in files], ignore_index=True)
    metrics = [column for column in rows.columns if column not in _KEYS]
    per_query = folder / "per_query" / "test.parquet"
    classes, attributes = _NO_CLASSES, dict[str, Any]()
    if per_query.is_file():
        try:
            classes, attributes = read_classes(name, per_query)
        except ValueError as error:
            notes.append(str(error))
    return Folder(
        name,
        folder,
        config,
        curves_of(name, rows, metrics),
        minutes_of(rows),
        classes,
        attributes.get("num_gallery"),
        (folder / "config.yaml").stat().st_mtime,
    )


def _config(file: Path) -> dict[str, Any]:
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # a safe one
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config.yaml is no YAML: {' '.join(str(error).split())}") from error
    try:
        needed: Any = (
            config["trainer"],
            config["data"]["dataset"],
            config["model"]["embedder"],
            config["model"]["loss"],
        )
    except (TypeError, KeyError):
        needed = None
    if needed is None or None in needed:
        raise ValueError("config.yaml is no configuration of a run: it lacks trainer, data or model")
    found: dict[str, Any] = config
    return found


def _csv(file: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(file)
    except pd.errors.EmptyDataError:  # of a run that has just begun
        rows = pd.DataFrame()
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} is no CSV: {' '.join(str(error).split())}") from error
    rows = rows.assign(**{key: np.nan for key in _KEYS if key not in rows})
    return rows.dropna(subset="step") if rows["step"].hasnans else rows


def _retrievals(run: str, file: Path, notes: list[str]) -> pd.DataFrame:
    try:
        found = pq.read_table(file).to_pandas()
        return joined([found.assign(run=run)[list(RETRIEVALS)]], RETRIEVALS)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        notes.append(f"{file} cannot be read as retrievals: {' '.join(str(error).split())}")
        return empty(RETRIEVALS)
