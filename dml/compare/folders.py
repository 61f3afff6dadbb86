"""Runs from their folders."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dml.compare.facts import TRAINED, begins, curves_of, facts, minutes_of, runs_frame
from dml.compare.logs import CLASSES, CURVES, RETRIEVALS, RunLogs, empty, joined
from dml.compare.per_query import read_classes
from dml.compare.protocol import protocol

_KEYS = ("epoch", "step", "fit_minutes")
_NO_CLASSES = empty(CLASSES)
# The one in C takes a tenth of the time, and is not everywhere.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Folder(NamedTuple):
    """What is in the folder of a run."""

    name: str
    path: Path
    config: dict[str, Any]
    curves: pd.DataFrame
    minutes: float
    classes: pd.DataFrame
    num_gallery: int | None
    started: float

    @property
    def is_fit(self) -> bool:
        return bool(begins(self.curves, TRAINED).any())

    @property
    def is_tested(self) -> bool:
        return bool(begins(self.curves, "test/").any())

    def of_test(self) -> pd.DataFrame:
        return self.curves[begins(self.curves, "test/")]


def read_folders(paths: Sequence[str | Path], *, with_retrievals: bool = True) -> RunLogs:
    """All runs under some folders, at any depth, the first that was started first.

    The folder of a run holds ``config.yaml`` and ``metrics.csv``, and of a test ``per_query/test.parquet``. What
    ``dml test`` measured of a checkpoint belongs to the run that made the checkpoint, if that is among these and has
    not been tested in the same way itself; tested in another way, it is another run, with the training of the first.

    Args:
        paths: Of the folders.
        with_retrievals: Whether to read the pictures of retrievals, which take the most space.

    Raises:
        ValueError: If a path is no folder, or holds no run.
    """
    notes: list[str] = []
    found = [folder for path in paths for folder in _under(path, notes)]
    found.sort(key=lambda folder: folder.started)
    folders = list({folder.path.resolve(): folder for folder in found}.values())
    fits = {folder.path.resolve(): folder for folder in folders if folder.is_fit}
    tests: dict[Path, list[_Folder]] = {path: [] for path in fits}
    taken = [(folder, folder) for folder in fits.values()]
    for folder in folders:
        if folder.is_fit or not folder.is_tested:
            continue
        checkpoint = Path(str(folder.config.get("ckpt_path")))
        run = fits.get(checkpoint.parent.parent.resolve())
        if run is None:
            notes.append(f"{folder.name} is a test of {checkpoint}, whose run is not among these: without validation")
            taken.append((folder, folder))
        else:
            tests[run.path.resolve()].append(folder)
    for path, folders_of_run in tests.items():
        taken = _attached(taken, fits[path], folders_of_run, notes)
    return _logs(sorted(taken, key=lambda pair: pair[0].started), notes, with_retrievals)


def _attached(
    taken: list[tuple[_Folder, _Folder]], run: _Folder, tests: list[_Folder], notes: list[str]
) -> list[tuple[_Folder, _Folder]]:
    """Pairs of a run and the folder with its test, once the tests of a run by ``dml test`` are among them."""
    ways = {_way(run): run} if run.is_tested else {}
    for test in reversed(tests):  # of equal ones, the latest
        if _way(test) in ways:
            notes.append(f"{test.name} repeats the test of {run.name} in {ways[_way(test)].name}, and is left out")
        else:
            ways[_way(test)] = test
    if not run.is_tested and _way(run) in ways:
        taken = [(run, ways[_way(run)]) if pair[0] is run else pair for pair in taken]
    others = [test for way, test in ways.items() if way != _way(run)]
    return [*taken, *((run, test) for test in others)]


def _way(folder: _Folder) -> str:
    return str(protocol(folder.config))


def _logs(pairs: list[tuple[_Folder, _Folder]], notes: list[str], with_retrievals: bool) -> RunLogs:
    rows: dict[str, dict[str, Any]] = {}
    curves, classes, retrievals = [], [], []
    for run, test in pairs:
        name = run.name if run is test or _way(run) == _way(test) else test.name
        logged = run.curves if run is test else pd.concat([_but_tests(run.curves), test.of_test()])
        config = run.config if run is test else {**run.config, **_tested_as(test.config, run.config)}
        last = Path(str(test.config.get("ckpt_path"))).stem == "last" and run is not test
        rows[name] = facts(config, logged, minutes=run.minutes, num_gallery=test.num_gallery, tests_last=last)
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


def _under(path: str | Path, notes: list[str]) -> Iterator[_Folder]:
    """The runs under a folder."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"paths has {str(path)!r}, which is no folder; it must hold folders of runs")
    found = False
    for where, folders, files in os.walk(root):
        folders.sort()
        logged = [file for file in files if re.fullmatch(r"metrics(\.\d+)?\.csv", file)]
        if "config.yaml" not in files or not logged:
            continue
        folders.clear()  # of its own: checkpoints and pictures
        found = True
        try:
            yield _read(Path(where), sorted(logged, key=_part), notes)
        except ValueError as error:
            notes.append(f"{where} is left out: {error}")
    if not found:
        raise ValueError(f"paths has {str(path)!r}, which holds no run: no folder with config.yaml and metrics.csv")


def _part(name: str) -> float:
    """Its place among the parts of a run that went on: 1, 2, ..., and the last without a number."""
    number = re.search(r"\d+", name)
    return float(number[0]) if number else np.inf


def _read(folder: Path, files: list[str], notes: list[str]) -> _Folder:
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
    return _Folder(
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
