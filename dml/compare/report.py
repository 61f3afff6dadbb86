"""One page of HTML that shows a comparison: tables, curves, bars, retrievals and settings. It needs no network."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dml import __version__
from dml.compare.bars import Panel, panels
from dml.compare.cells import Column, columns, labels_of, number
from dml.compare.curves import Chart, learning_curves
from dml.compare.differences import differing, settings
from dml.compare.logs import RunLogs
from dml.compare.pictures import Query, queries
from dml.compare.significance import SIGNIFICANT, told_apart
from dml.compare.table import Comparison

_TEMPLATES = Path(__file__).parent / "templates"
_WORD_ENDS = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[+/_])|(?<=[.])(?=[A-Za-z])")


class _Section(NamedTuple):
    """What the page says of one comparison; lists of rows are in the order of the table."""

    comparison: Comparison
    names: list[tuple[str, str]]
    finding: str
    columns: list[Column]
    panels: list[Panel]
    chart: Chart | None
    queries: list[Query]
    differences: dict[str, list[str | None]]
    protocol: dict[str, str]
    runs: pd.DataFrame


def write_html(
    logs: RunLogs,
    comparisons: Sequence[Comparison],
    path: str | Path,
    *,
    measure: str = "test/AP",
    monitor: str = "val/AP",
    confidence: float = 0.95,
    command: str | None = None,
) -> None:
    """Write one file with everything in it: style, script, drawings and images.

    Args:
        logs: Of the runs that are compared, and of others that could not be.
        comparisons: What :func:`dml.compare.table.compare` makes of them.
        path: Where to write; its folder must be there.
        measure: What rows are compared by, as in ``compare``.
        monitor: What epochs are chosen by, as in ``compare``.
        confidence: Of the intervals, as in ``compare``.
        command: That the page was made by, to be shown in it.

    Raises:
        ValueError: If there is nothing to compare, or rows lack the measure.
    """
    if not comparisons:
        raise ValueError("comparisons is empty; a page needs at least one, of runs that have been tested")
    for comparison in comparisons:
        if measure not in comparison.rows:
            raise ValueError(f"measure is {measure!r}; {comparison.name} has columns {list(comparison.rows.columns)}")
    sections = [_section(logs, comparison, measure, monitor) for comparison in comparisons]
    shown = {"measure": measure, "monitor": monitor, "confidence": confidence, "command": command}
    # The name of a file may hold bytes that are no letters.
    Path(path).expanduser().write_text(_rendered(sections, shown), encoding="utf-8", errors="replace")


def _rendered(sections: list[_Section], shown: dict[str, Any]) -> str:
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        _environment()
        .get_template("report.html")
        .render(
            sections=sections,
            datasets=list(dict.fromkeys(section.comparison.rows["data"].iloc[0] for section in sections)),
            version=__version__,
            date=datetime.now(timezone.utc),
            num_styles=max(len(section.names) for section in sections),
            style=style,
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **shown,
        )
    )


def _environment() -> Environment:
    """Of templates that escape all they are given: names of classes and files may hold any letter."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "words": _words}
    return environment


def _words(text: str) -> list[str]:
    """The words of which names of classes, settings and files are made."""
    return _WORD_ENDS.split(text)


def _section(logs: RunLogs, comparison: Comparison, measure: str, monitor: str) -> _Section:
    rows = comparison.rows
    names = _names(rows)
    return _Section(
        comparison,
        names,
        _finding(rows, [" ".join(filter(None, name)) for name in names], measure),
        columns(rows, measure, monitor),
        panels(logs, comparison, measure),
        learning_curves(logs, comparison, monitor),
        queries(logs, comparison),
        differing([json.loads(logs.runs["config"][runs[0]]) for runs in rows["runs"]]),
        settings(comparison.protocol),
        _runs(logs, comparison, measure),
    )


def _names(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Loss of each row, and what else tells it from others."""
    labels = pd.DataFrame(labels_of(rows))
    details = [", ".join(filter(None, others)) for others in labels.drop(columns="loss").to_numpy()]
    return list(zip(labels["loss"], details, strict=True))


def _finding(rows: pd.DataFrame, names: list[str], measure: str) -> str:
    """What the table says, in a sentence or two."""
    if len(rows) == 1:
        return ""
    best = int(rows[measure].to_numpy().argmax())
    sentences = [f"{names[best]} has the highest {measure}, {number(rows[measure].iloc[best])}."]
    tested = rows.iloc[1:].dropna(subset=["p_holm"])
    differs = tested[told_apart(tested)]["difference"]
    if len(tested):
        lower, higher, rest = (differs < 0).sum(), (differs > 0).sum(), len(tested) - len(differs)
        counts = f"{lower} lower and {higher} higher at p < {SIGNIFICANT}, of classes and of seeds"
        counts += f", {rest} that cannot be told apart"
        sentences.append(f"Tested against {names[0]}: {counts}.")
    return " ".join(sentences)


def _runs(logs: RunLogs, comparison: Comparison, measure: str) -> pd.DataFrame:
    """The runs of each row, with what each of them got."""
    tested = logs.curves[logs.curves["metric"] == measure].groupby("run")["value"].last()
    found = [
        {"row": row, "run": run, "test": tested.get(run)}
        for row, runs in enumerate(comparison.rows["runs"])
        for run in runs
    ]
    return pd.DataFrame(found).join(logs.runs[["seed", "epochs", "best_epoch", "minutes"]], on="run")
