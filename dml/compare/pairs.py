"""Which test is of which run, and of which of its checkpoints."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dml import names
from dml.compare.facts import TRAINED, begins, chosen_epoch, last_epoch
from dml.compare.protocol import keeping_checkpoints, monitored, protocol

_LAST, _WHITENED = "last", "whitened"
_FEWEST_PARTS = 2
_NUMBER = r"(?:[-+.\de]+|nan|inf)"


class Folder(NamedTuple):
    """What is in the folder of a run, or of a test of a run."""

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

    @property
    def checkpoint(self) -> Path:
        """Which was tested, of a folder of ``dml test``."""
        return Path(str(self.config.get("ckpt_path")))

    @property
    def protocol(self) -> str:
        """Without the size of the gallery, which older tests do not say."""
        return str(protocol(self.config))

    @property
    def chosen_epoch(self) -> float:
        """By validation."""
        return chosen_epoch(self.config, self.curves)

    def of_test(self) -> pd.DataFrame:
        return self.curves[begins(self.curves, "test/")]


class Pair(NamedTuple):
    """What becomes one run of the logs."""

    name: str
    run: Folder
    """Of the training; that of the test where there is no other."""

    test: Folder
    """That of the run itself, if it was tested there or not at all."""

    tested_epoch: float
    """NaN if not known."""

    checkpoint: str | None = None
    """Name of the one that was tested, where the run has others and validation did not choose this one."""


def pairs(folders: Sequence[Folder], notes: list[str]) -> list[Pair]:
    """Runs with their tests, the first that was started first.

    Args:
        folders: In the order in which they were started.
        notes: To which is added what a reader must know.
    """
    fits = {folder.path.resolve(): folder for folder in folders if folder.is_fit}
    tests: dict[Path, list[Folder]] = {path: [] for path in fits}
    found = []
    for folder in folders:
        if folder.is_fit or not folder.is_tested:
            continue
        path = _run_of(folder, fits)
        if path is None:
            notes.append(
                f"{folder.name} is a test of {folder.checkpoint}, whose run is not among these: without validation"
            )
            stem = folder.checkpoint.stem
            is_other = folder.config.get("ckpt_path") is not None and not _choice(folder)(stem)
            found.append(Pair(folder.name, folder, folder, np.nan, stem if is_other else None))
        else:
            tests[path].append(folder)
    for path, run in fits.items():
        found += _of_run(run, tests[path], notes)
    return sorted(found, key=lambda pair: pair.run.started)


def _of_run(run: Folder, tests: Sequence[Folder], notes: list[str]) -> list[Pair]:
    """The run with its test, and its other tests: of each protocol those of different checkpoints."""
    found: dict[tuple[str, str | None], Folder] = {(run.protocol, None): run} if run.is_tested else {}
    is_chosen = _choice(run)
    chosen: dict[str, str] = {}  # of each protocol, the checkpoint
    for test in reversed(tests):  # of equal ones, the latest
        stem = test.checkpoint.stem
        if is_chosen(stem):
            chosen.setdefault(test.protocol, stem)
        key = test.protocol, None if chosen.get(test.protocol) == stem else stem
        if key in found:
            notes.append(f"{test.name} repeats the test of {run.name} in {found[key].name}, and is left out")
        else:
            found[key] = test
    for way, stem in list(found):
        if stem == _LAST and (way, None) not in found:
            found[way, None] = found.pop((way, _LAST))
    own = found.pop((run.protocol, None), run)
    others = sorted(found.items(), key=lambda item: item[1].started)
    return [
        Pair(run.name, run, own, _tested_epoch(run, own, None)),
        *(Pair(test.name, run, test, _tested_epoch(run, test, stem), stem) for (_, stem), test in others),
    ]


def _tested_epoch(run: Folder, test: Folder, other: str | None) -> float:
    if test is not run and test.checkpoint.stem == _LAST:
        return last_epoch(run.curves)
    if other in (None, _WHITENED):  # which has the weights of the best, see dml.callbacks.LearnWhitening
        return run.chosen_epoch
    return _epoch_in(str(other))


def _epoch_in(stem: str) -> float:
    """As Lightning writes it into names of checkpoints; NaN if it does not."""
    found = re.search(r"\bepoch=(\d+)", stem)
    return float(found[1]) if found else np.nan


def _choice(run: Folder) -> Callable[[str], bool]:
    """Which names of checkpoints may be of the one that validation chose."""
    monitor, _ = monitored(run.config)
    pattern = _pattern(keeping_checkpoints(run.config))
    epoch = run.chosen_epoch

    def is_chosen(stem: str) -> bool:
        if stem == _LAST:
            return monitor is None
        known = _epoch_in(stem)
        return re.fullmatch(pattern, stem) is not None and (known == epoch or bool(np.isnan([known, epoch]).any()))

    return is_chosen


def _pattern(keeping: Mapping[str, Any]) -> str:
    """Of the names that a ``ModelCheckpoint`` gives, which counts on where there is such a file."""
    filename = keeping.get("filename")
    inserts = keeping.get("auto_insert_metric_name", True)
    parts = re.split(r"\{([^}:]*)[^}]*\}", filename or "{epoch}-{step}")
    pattern = "".join(
        re.escape(part) if place % 2 == 0 else (re.escape(f"{part}=") if inserts else "") + _NUMBER
        for place, part in enumerate(parts)
    )
    return rf"(?:{pattern}){'' if filename else '|best.*'}(?:-v\d+)?"


def _run_of(test: Folder, fits: Mapping[Path, Folder]) -> Path | None:
    """The folder of the run that made the checkpoint.

    A test knows the path as it was where it was started, which may be elsewhere, on another machine, or have another
    name by now. So it is tried from the folders around the test and from here; then its end, beside the test; then any.
    """
    if test.config.get("ckpt_path") is None:
        return None
    written = test.checkpoint.expanduser().parent.parent
    around = test.path.resolve().parents
    alike = {path: fit for path, fit in fits.items() if _model(fit) == _model(test)}
    ends = [Path(*written.parts[start:]) for start in range(1, len(written.parts) - _FEWEST_PARTS + 1)]
    whole = (place for place in ((base / written).resolve() for base in (*around, Path.cwd())) if place in fits)
    beside = (place for place in (base / end for base in around for end in ends) if place in alike)
    found = next(whole, None) or next(beside, None)
    if found is not None:
        return found
    shared = {path: _agreeing(written, fit) for path, fit in alike.items()}
    longest = max(shared.values(), default=0)
    longest_shared = [path for path, length in shared.items() if length == longest]
    return longest_shared[0] if longest and len(longest_shared) == 1 else None


def _agreeing(written: Path, fit: Folder) -> int:
    """Parts at the end that two paths share; 0 if they are too few to be of one folder."""
    parts = [part for part in Path(os.path.normpath(written)).parts if part != os.pardir]  # at its beginning
    there = (fit.path.resolve(), Path(os.path.abspath(fit.path)))  # of which one may be that of a link
    shared = max(sum(1 for _ in takewhile(bool, map(eq, reversed(parts), reversed(path.parts)))) for path in there)
    return shared if shared >= (_FEWEST_PARTS if written.is_absolute() else len(parts)) else 0


def _model(folder: Folder) -> tuple[str, str]:
    return names.loss_name(folder.config), names.backbone_name(folder.config)
