"""The numbers of a comparison as they are shown, on a page and elsewhere."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from dml.compare.bars import measures
from dml.compare.facts import GIB
from dml.compare.significance import told_apart

_UNKNOWN = "\N{EN DASH}"
_MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


class Cell(NamedTuple):
    """What a reader sees, and what the column is sorted by; nothing if it is not known."""

    text: str
    value: float | None
    is_best: bool = False
    detail: str = ""
    """In smaller letters, after the text."""


class Column(NamedTuple):
    """A column of numbers."""

    title: str
    cells: list[Cell]
    kind: str = ""
    """``main`` for the measure that rows are compared by, ``validation`` for what chose the epoch, ``cost`` for what
    training has taken."""


def number(value: Any, digits: int = 3) -> str:
    """A number of so many digits behind the point, or a dash if it is missing."""
    return f"{float(value):,.{digits}f}" if _is_known(value) else _UNKNOWN


def chance(p_value: Any, is_told_apart: bool = True) -> str:
    """A p-value, with stars for those below 0.05, 0.01 and 0.001 if it is of seeds as well."""
    if not _is_known(p_value):
        return _UNKNOWN
    mark = next((mark for limit, mark in _MARKS if p_value < limit and is_told_apart), "")
    return (f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001") + (f" {mark}" if mark else "")


def labels_of(rows: pd.DataFrame) -> dict[str, list[str]]:
    """What rows are called: the backbone and the variant only where they differ."""
    found = {"loss": rows["loss"].tolist()}
    if rows["backbone"].nunique() > 1:
        found["backbone"] = rows["backbone"].tolist()
    if rows["variant"].astype(bool).any():
        found["variant"] = rows["variant"].tolist()
    return found


def columns(rows: pd.DataFrame, measure: str, monitor: str) -> list[Column]:
    """The measures, the test of the differences and the costs of the rows of a comparison.

    Args:
        rows: See :func:`dml.compare.table.compare`.
        measure: What they are compared by.
        monitor: What the epoch was chosen by.
    """
    main, *others = measures(rows, measure)
    epoch_digits = 0 if (rows["best_epoch"].dropna() % 1 == 0).all() else 1
    return [
        Column("seeds", [Cell(str(count), float(count)) for count in rows["seeds"]]),
        _measure(rows, main, "main"),
        Column("difference", _differences(rows)),
        Column("p", [Cell(chance(*p), _known(p[0])) for p in zip(rows["p_holm"], told_apart(rows), strict=True)]),
        *(_measure(rows, name) for name in others),
        _plain(rows, "val", monitor, number, "validation"),
        _plain(rows, "best_epoch", "best epoch", lambda value: number(value, epoch_digits), "validation"),
        _plain(rows, "minutes", "minutes", lambda value: number(value, 1), "cost"),
        _plain(rows, "images_per_second", "images/s", lambda value: number(value, 0), "cost"),
        _plain(rows, "peak_memory", "peak GiB", lambda value: number(value / GIB, 2), "cost"),
    ]


def _measure(rows: pd.DataFrame, measure: str, kind: str = "") -> Column:
    best = number(rows[measure].max())
    cells = []
    for row in rows.to_dict("records"):
        mean, spread = row[measure], row[f"{measure}_std"]
        text, detail = number(mean), f"± {number(spread)}" if _is_known(spread) else ""
        if kind:
            text = " ".join(filter(None, (text, detail)))
            detail = f"[{number(row['low'])}, {number(row['high'])}]" if _is_known(row["low"]) else ""
        is_best = len(rows) > 1 and _is_known(mean) and number(mean) == best
        cells.append(Cell(text, _known(mean), is_best, detail))
    return Column(measure, cells, kind)


def _differences(rows: pd.DataFrame) -> list[Cell]:
    cells = [Cell(_signed(value), _known(value)) for value in rows["difference"]]
    return [Cell("", 0.0, detail="reference"), *cells[1:]]


def _signed(value: Any) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") if _is_known(value) else _UNKNOWN


def _plain(rows: pd.DataFrame, name: str, title: str, text: Callable[[Any], str], kind: str = "") -> Column:
    return Column(title, [Cell(text(value), _known(value)) for value in rows[name]], kind)


def _is_known(value: Any) -> bool:
    return bool(pd.notna(value)) and math.isfinite(value)


def _known(value: Any) -> float | None:
    return float(value) if _is_known(value) else None
